r"""The best linear predictor, in closed form: the simplest thing that could have done it.

For states s, corrupted examples, and their targets x (15_linear_predictor)::

    h_i(s) = sum_j A_ij s_j + b_i ,    E |h_i(s) - x_i|^2 least where site i is predicted

Only the first and second moments of states and targets enter, so it is also the best that any
uniform attention can do, and all of it is known for Gaussian data of the same covariance. With
z = s - origin, and a constant as the last input: the normal equations S A^T = B of every site, with
S = E[z z^T], B = E[z x^T], solved without the site's own token or with it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, einsum

from attractor_lib.states import project


@dataclass(frozen=True)
class LinearPredictor:
    """h_i(s) = sum_j A_ij (s_j - origin_j) + b_i, and the update P[h].

    Attributes:
        matrix: A (N, d, N, d); A[i, :, i] is zero where a site does not see its own token.
        bias: b (N, d).
        origin: (N, d).
    """

    matrix: Tensor
    bias: Tensor
    origin: Tensor

    def field(self, s: Tensor) -> Tensor:
        """h(s) (batch, N, d) of states (batch, N, d), not on the sphere."""
        if s.shape[1:] != self.bias.shape:
            raise ValueError(
                f"s must be (batch, {', '.join(map(str, self.bias.shape))}), got {tuple(s.shape)}"
            )
        z = (s - self.origin.to(s)).flatten(1)
        n = self.bias.numel()
        return (z @ self.matrix.to(s).reshape(n, n).mT).view_as(s) + self.bias.to(s)

    def update(self, s: Tensor) -> Tensor:
        """P[h(s)] (batch, N, d); a site without any field stays where it is."""
        return project(self.field(s), otherwise=s)

    __call__ = update


@dataclass(frozen=True)
class Moments:
    """What the best linear predictor depends on, D = N d + 1 with the constant input, in float64.

    Attributes:
        second: E[z z^T] (D, D), over the states where a site is predicted, the same for all sites.
        cross: E[z x^T] (D, N, d).
        square: E[x^2] (N, d), of each component of the targets.
        origin: (N, d); z = s - origin.
        sees_itself: whether a site may use its own token; a hidden one has none.
    """

    second: Tensor
    cross: Tensor
    square: Tensor
    origin: Tensor
    sees_itself: bool

    def _inputs(self, i: int) -> Tensor:
        N, d = self.square.shape
        used = torch.ones(N * d + 1, dtype=torch.bool)
        if not self.sees_itself:
            used[i * d : (i + 1) * d] = False
        return used.nonzero()[:, 0]

    def solve(self, ridge: float = 0.0) -> LinearPredictor:
        """The best linear predictor.

        Args:
            ridge: adds ridge sum_ij |A_ij|^2 to the mean squared error; at 0 the predictor of least
                norm among the best, by the pseudo-inverse. At least 0.
        """
        if not (math.isfinite(ridge) and ridge >= 0):
            raise ValueError(f"ridge must be a finite number >= 0, got {ridge}")
        N, d = self.square.shape
        A = torch.zeros(N, d, N * d + 1, dtype=torch.float64)
        for i in range(N):
            used = self._inputs(i)
            S, B = self.second[used][:, used], self.cross[used, i]
            if ridge:
                penalty = torch.full((len(S),), float(ridge), dtype=S.dtype)
                penalty[-1] = 0  # the constant is free
                A[i][:, used] = torch.linalg.solve(S + penalty.diag(), B).mT
            else:
                A[i][:, used] = (torch.linalg.pinv(S, rtol=1e-10, hermitian=True) @ B).mT
        return LinearPredictor(A[..., :-1].unflatten(-1, (N, d)), A[..., -1], self.origin)

    def error(self, predictor: LinearPredictor) -> Tensor:
        """E (h_i - x_i)^2 for each component (N, d), before the projection, from these moments::

            E[x^2] - 2 A B + A S A^T

        The predictor may be that of other moments: one fitted to 4 hidden tokens, where 8 are.
        """
        shift = einsum("iajb,jb->ia", predictor.matrix, self.origin - predictor.origin)
        A = torch.cat([predictor.matrix.flatten(2), (predictor.bias + shift)[..., None]], -1)
        against = einsum("iap,pia->ia", A, self.cross)
        return self.square - 2 * against + einsum("iap,pq,iaq->ia", A, self.second, A)


def _augmented(z: Tensor) -> Tensor:
    return torch.cat([z.flatten(1), z.new_ones(len(z), 1)], 1)


def sampled_moments(
    tokens: Tensor,
    corrupt: Callable,
    generator: torch.Generator,
    passes: int = 1,
    sees_itself: bool = True,
    block: int = 2000,
) -> Moments:
    """Moments of corrupted examples, every site predicted in every state: noise, or none.

    Args:
        tokens: clean examples (n, N, d).
        corrupt: (tokens, generator) -> (states, sites), as for the trainer.
        generator: of the corruption.
        passes: over the examples, each corrupted anew.
        sees_itself: whether a site's own corrupted token is an input.

    Raises:
        ValueError: for no examples or passes, or a corruption that leaves sites out: those of
            hidden tokens are given by `hidden_moments`, exactly.
    """
    if passes < 1 or len(tokens) == 0:
        raise ValueError(f"expected examples and passes >= 1, got {len(tokens)} and {passes}")
    N, d = tokens.shape[1:]
    zero = {"dtype": torch.float64}
    second, cross = torch.zeros(N * d + 1, N * d + 1, **zero), torch.zeros(N * d + 1, N * d, **zero)
    square = torch.zeros(N, d, **zero)
    for _ in range(passes):
        for x in tokens.split(block):
            s, sites = corrupt(x, generator)
            if not sites.all():
                raise ValueError(
                    "corrupt must leave every site to be predicted; for hidden tokens "
                    "there is hidden_moments"
                )
            z, x = _augmented(s.double().cpu()), x.double().cpu()
            second += z.mT @ z
            cross += z.mT @ x.flatten(1)
            square += x.square().sum(0)
    n = passes * len(tokens)
    return Moments(
        second / n,
        cross.unflatten(1, (N, d)) / n,
        square / n,
        torch.zeros(N, d, **zero),
        sees_itself,
    )


def hidden_moments(
    tokens: Tensor, fill: Tensor, n_hidden: int, least: int | None = None, block: int = 2000
) -> Moments:
    """Moments of examples of which k tokens are hidden behind `fill`, averaged over all choices.

    Given that site i is hidden another one is visible with the chance p1, two others with p2::

        p1 = (N - k) / (N - 1) ,     p2 = p1 (N - k - 1) / (N - 2)
        E[z_j z_l^T] = p2 C_jl ,  p1 C_jj for j = l ,     C = E[(x - fill)(x - fill)^T]

    Exact, without drawing any: the masks are independent of the examples.

    Args:
        tokens: clean examples (n, N, d), N >= 3.
        fill: (N, d), the token that stands in.
        n_hidden: k, from 1 to N.
        least: if given, k is drawn uniformly from least ... n_hidden, as `HideTokens` does.

    Raises:
        ValueError: for numbers out of range, or tokens of another shape than fill.
    """
    N, d = fill.shape
    if tokens.shape[1:] != fill.shape or len(tokens) == 0 or N < 3:
        raise ValueError(
            f"tokens must be (n >= 1, {N}, {d}) as fill is, of 3 sites at least, "
            f"got {tuple(tokens.shape)}"
        )
    least = n_hidden if least is None else least
    if not 1 <= least <= n_hidden <= N:
        raise ValueError(
            f"expected 1 <= least <= n_hidden <= {N}, got least={least}, n_hidden={n_hidden}"
        )
    ks = torch.arange(least, n_hidden + 1, dtype=torch.float64)
    weight = ks / ks.sum()  # a site is hidden in proportion to k
    p1 = (weight * (N - ks) / (N - 1)).sum().item()
    p2 = (weight * (N - ks) * (N - ks - 1) / ((N - 1) * (N - 2))).sum().item()
    everything = sampled_moments(
        tokens - fill,
        lambda z, _: (z, torch.ones(z.shape[:2], dtype=torch.bool)),
        None,
        1,
        False,
        block,
    )
    C, origin = everything.second, fill.double().cpu()
    share = torch.full_like(C, p2)
    for i in range(N):
        share[i * d : (i + 1) * d, i * d : (i + 1) * d] = p1
    share[-1], share[:, -1], share[-1, -1] = p1, p1, 1
    # E[z x^T] = E[z (x - fill)^T] + E[z] fill^T
    mean = C[:, -1]
    cross = (everything.cross + mean[:, None, None] * origin) * share[:, -1, None, None]
    square = everything.square + 2 * mean[:-1].view(N, d) * origin + origin.square()
    return Moments(C * share, cross, square, origin, False)
