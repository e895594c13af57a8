r"""The best linear predictor, in closed form: the simplest thing that could have done it.

For states s, corrupted examples, and their targets x (15_linear_predictor)::

    h_i(s) = sum_j A_ij s_j + b_i ,    E |h_i(s) - x_i|^2 least where site i is predicted

Only the first and second moments of states and targets enter, so it is also the best that any
uniform attention can do, and all of it is known for Gaussian data of the same covariance. With
z = s - origin, and a constant as the last input: the normal equations S A^T = B of every site, with
S = E[z z^T], B = E[z x^T], solved without the site's own token or with it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, einsum

from attractor_lib.checks import check_number
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

    def sweep(self, s: Tensor) -> Tensor:
        """P[h_i] site after site, each at the newest tokens of the others: (batch, N, d)."""
        z, d = s - self.origin.to(s), s.shape[-1]
        matrix, bias, origin = (
            part.to(s).flatten(0, 1) for part in (self.matrix.flatten(2), self.bias, self.origin)
        )
        z = z.flatten(1)
        for i in range(0, len(bias), d):
            here = slice(i, i + d)
            token = project(bias[here] + z @ matrix[here].mT, otherwise=z[:, here] + origin[here])
            z[:, here] = token - origin[here]
        return (z + origin).view_as(s)

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
        check_number("ridge", ridge, 0)
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


def clean_moments(tokens: Tensor, origin: Tensor, block: int = 2000) -> Moments:
    """Moments of clean examples, each token from the others: what all others here derive from.

    One pass over the examples, E[z z^T] and E[x^2]; the cross moments are E[z x^T] =
    E[z z^T] + E[z] origin^T.

    Args:
        tokens: clean examples (n, N, d), N >= 3.
        origin: (N, d), what is taken off; `with_hidden` takes it for the token that stands in.

    Raises:
        ValueError: for no tokens, or tokens of another shape than origin.
    """
    N, d = origin.shape
    if tokens.shape[1:] != origin.shape or len(tokens) == 0 or N < 3:
        raise ValueError(
            f"tokens must be (n >= 1, {N}, {d}) as origin, or as fill is, of 3 sites at least, "
            f"got {tuple(tokens.shape)}"
        )
    second, origin = torch.zeros(N * d + 1, N * d + 1, dtype=torch.float64), origin.double().cpu()
    for x in tokens.split(block):
        z = _augmented(x.double().cpu() - origin)
        second += z.mT @ z
    second /= len(tokens)
    mean = second[:-1, -1]
    cross = second[:, :-1] + second[:, -1:] * origin.flatten()
    square = second.diagonal()[:-1] + (2 * mean + origin.flatten()) * origin.flatten()
    return Moments(second, cross.unflatten(1, (N, d)), square.view(N, d), origin, False)


def with_hidden(clean: Moments, n_hidden: int, least: int | None = None) -> Moments:
    """Moments of the same examples with k tokens hidden behind `clean.origin`, over all choices.

    Given that site i is hidden another one is visible with the chance p1, two others with p2::

        p1 = (N - k) / (N - 1) ,     p2 = p1 (N - k - 1) / (N - 2)
        E[z_j z_l^T] = p2 C_jl ,  p1 C_jj for j = l ,     C = E[(x - origin)(x - origin)^T]

    Exact, without drawing any: the masks are independent of the examples. At k = 1 they are the
    clean moments themselves.

    Args:
        clean: `clean_moments` of the examples, from the token that stands in.
        n_hidden: k, from 1 to N.
        least: if given, k is drawn uniformly from least ... n_hidden, as `HideTokens` does.

    Raises:
        ValueError: for numbers out of range, or moments of sites that see themselves.
    """
    if clean.sees_itself:
        raise ValueError("clean must be moments of others alone: a hidden token has no own")
    N, d = clean.square.shape
    least = n_hidden if least is None else least
    if not 1 <= least <= n_hidden <= N:
        raise ValueError(
            f"expected 1 <= least <= n_hidden <= {N}, got least={least}, n_hidden={n_hidden}"
        )
    ks = torch.arange(least, n_hidden + 1, dtype=torch.float64)
    weight = ks / ks.sum()  # a site is hidden in proportion to k
    p1 = (weight * (N - ks) / (N - 1)).sum().item()
    p2 = (weight * (N - ks) * (N - ks - 1) / ((N - 1) * (N - 2))).sum().item()
    share = torch.full_like(clean.second, p2)
    for i in range(N):
        share[i * d : (i + 1) * d, i * d : (i + 1) * d] = p1
    share[-1], share[:, -1], share[-1, -1] = p1, p1, 1
    cross = clean.cross * share[:, -1, None, None]
    return replace(clean, second=clean.second * share, cross=cross)


def hidden_moments(
    tokens: Tensor, fill: Tensor, n_hidden: int, least: int | None = None, block: int = 2000
) -> Moments:
    """`with_hidden` of `clean_moments`: examples of which k tokens are hidden behind `fill`.

    For several k of the same examples take the clean moments once.

    Args:
        tokens: clean examples (n, N, d), N >= 3.
        fill: (N, d), the token that stands in.
        n_hidden: k, from 1 to N.
        least: if given, k is drawn uniformly from least ... n_hidden, as `HideTokens` does.

    Raises:
        ValueError: for numbers out of range, or tokens of another shape than fill.
    """
    return with_hidden(clean_moments(tokens, fill, block), n_hidden, least)


def best_self_term(field: Tensor, state: Tensor, target: Tensor) -> float:
    """The gamma with which h + gamma s, divided by 1 + gamma, is nearest to the target::

        gamma = (v - c) / (s - c) ,   v = E|h - x|^2 ,  s = E|s - x|^2 ,  c = E (h - x).(s - x)

    For a Gaussian with conditional variance v and independent noise, c = 0, it is the posterior
    mean of x given both, v / sigma^2 (15_linear_predictor).

    Args:
        field, state, target: h, s, x (batch, N, d).

    Returns:
        At least 0; inf where the state is the better guess alone.
    """
    h, s = field - target, state - target
    v, noise, c = h.square().mean(), s.square().mean(), (h * s).mean()
    if noise <= c:
        return math.inf
    return max(0.0, ((v - c) / (noise - c)).item())


def learning_curve(clean: Moments, numbers: Sequence[int], ridge: float) -> tuple[Tensor, Tensor]:
    """Errors to expect of the regression on n examples, from the moments of very many.

    For each site, with the covariance C of its D inputs, the best map w and its error v (taken as
    noise), on the n - 1 examples that the free constant leaves, ridge added to the mean squared
    error::

        n = tr C (C + kappa)^-1 + n ridge / kappa
        test  = (kappa^2 w^T C (C + kappa)^-2 w + v) / (1 - g) ,   g = tr C^2 (C + kappa)^-2 / n
        train = (ridge / kappa)^2 test

    Exact for Gaussian inputs as n and D grow together (15_linear_predictor has the derivation).
    Without ridge and for n > D it is v / (1 - D/n) on test and v (1 - D/n) on train examples.

    Args:
        clean: moments of very many examples.
        numbers: the n, each at least 2.
        ridge: > 0; a small one stands for none.

    Returns:
        Train and test: E (h_i - x_i)^2 for each component, (len(numbers), N, d), before P.

    Raises:
        ValueError: for n below 2, or a ridge that is not positive.
    """
    check_number("ridge", ridge, 0, open_low=True)
    if min(numbers) < 2:
        raise ValueError(f"numbers must each be at least 2, got {list(numbers)}")
    N, d = clean.square.shape
    mean, centre = clean.second[:-1, -1], clean.cross[-1]
    train, test = (torch.zeros(len(numbers), N, d, dtype=torch.float64) for _ in range(2))
    for i in range(N):
        used = clean._inputs(i)[:-1]
        C = clean.second[used][:, used] - torch.outer(mean[used], mean[used])
        spectrum, vectors = torch.linalg.eigh(C)
        spectrum = spectrum.clamp_min(0)
        along = vectors.mT @ (clean.cross[used, i] - torch.outer(mean[used], centre[i]))
        kept = spectrum > 1e-10 * spectrum[-1]
        w2 = torch.where(kept[:, None], along / spectrum.clamp_min(1e-300)[:, None], 0).square()
        total = clean.square[i] - centre[i].square()
        v = total - (spectrum[:, None] * w2).sum(0)
        for row, n in enumerate(numbers):
            kappa = _effective_ridge(spectrum, n - 1, ridge)
            part = spectrum / (spectrum + kappa)
            missed = kappa**2 * ((part / (spectrum + kappa))[:, None] * w2).sum(0)
            test[row, i] = (missed + v) / (1 - part.square().sum() / (n - 1))
            train[row, i] = (ridge / kappa) ** 2 * test[row, i]
    return train, test


def _effective_ridge(spectrum: Tensor, n: int, ridge: float) -> float:
    """The kappa of n = sum_a c_a / (c_a + kappa) + n ridge / kappa, by bisection."""
    low, high = math.log(ridge), math.log(ridge + spectrum.sum().item() / n)
    for _ in range(60):
        kappa = math.exp((low + high) / 2)
        if (spectrum / (spectrum + kappa)).sum().item() + n * ridge / kappa > n:
            low = math.log(kappa)
        else:
            high = math.log(kappa)
    return kappa


def step_matrix(predictor: LinearPredictor, one_by_one: bool = False) -> Tensor:
    """One update without P as a matrix on (z, 1): (N d + 1, N d + 1), z = s - origin.

    Args:
        one_by_one: the sites are updated in turn, each at the newest values of the others (the
            iteration of Gauss and Seidel); all at once if not (that of Jacobi).
    """
    n, d = predictor.bias.numel(), predictor.bias.shape[1]
    step = torch.eye(n + 1, dtype=torch.float64)
    bias = (predictor.bias - predictor.origin).reshape(n, 1)
    rows = torch.cat([predictor.matrix.reshape(n, n), bias], 1).double()
    if not one_by_one:
        step[:-1] = rows
        return step
    for i in range(0, n, d):
        step[i : i + d] = rows[i : i + d] @ step
    return step


def overlap_in_time(moments: Moments, step: Tensor, n_steps: int) -> Tensor:
    """1 - E|x(t) - x(0)|^2 / 2N at t = 0 ... n_steps of a linear update from the examples::

        m(t) = 1 - tr[ (G^t - 1) E[z z^T] (G^t - 1)^T ] / 2N

    For states on the sphere it would be their overlap with the start. Exact, without any run.

    Args:
        moments: of the examples, from the origin of the predictor that step is made of.
        step: G of `step_matrix`.

    Raises:
        ValueError: for a step of another size than the moments.
    """
    if step.shape != moments.second.shape:
        raise ValueError(
            f"step must be {tuple(moments.second.shape)} as the moments are, "
            f"got {tuple(step.shape)}"
        )
    one = torch.eye(len(step), dtype=torch.float64)
    power, m = one, []
    for _ in range(n_steps + 1):
        moved = power - one
        lost = ((moved @ moments.second) * moved)[:-1].sum()
        m.append(1 - lost / (2 * len(moments.square)))
        power = step @ power
    return torch.stack(m)


def precision(clean: Moments, ridge: float = 0.0) -> Tensor:
    """The inverse (C + ridge)^-1 of the covariance of the examples: (N d, N d).

    With D its diagonal blocks, the regression of each site on all others, with that ridge, is
    1 - D^-1 times it: updating all sites at once is the block Jacobi iteration of a Gaussian.
    """
    mean = clean.second[:-1, -1]
    C = clean.second[:-1, :-1] - torch.outer(mean, mean)
    return torch.linalg.inv(C + ridge * torch.eye(len(C), dtype=torch.float64))
