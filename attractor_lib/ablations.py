"""Variants of the attractor network, each one equation away from it (notebook 12_ablations).

The local energy is e_i = -(1/beta) sum_h phi(score_i1, ..., score_iN) - b_i . x_i - (gamma/2) |x_i|^2, the attention is
a_i<-j = dphi/dscore_ij, and the prediction rule needs phi's second derivative. Other phi give other networks; ties of the
couplings are orthogonal projections of J and of its gradient.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.learning import Gradients
from attractor_lib.model import AttractorNetwork, exclude_self

Tie = Callable[[Tensor], Tensor]


class SelfAttending(AttractorNetwork):
    """j = i takes part: a_i<-j = softmax over all j of beta x_i . J_ij x_j.

    Where J_ii acts, x_i enters its own score twice, and -de_i/dx_i gains the term a_i<-i J_ii^T x_i. This update leaves
    it out: it is what a transformer does, and no longer minus the derivative of the own local energy.
    """

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return self.beta * self.products(q, k)

    @property
    def n_acting(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.any())


class LinearAttention(AttractorNetwork):
    """Attention without the softmax: a_i<-j = beta x_i . J_ij x_j for j != i, of any sign and any sum.

    phi = (1/2) sum_{j != i} score_ij^2, so e_i = -(beta/2) sum_h sum_{j != i} (x_i . J_ij x_j)^2 - b_i . x_i - ...
    The field is of second order in J: beta and the scale of J are one parameter, and J = 0 is a saddle of the loss.
    """

    def potential(self, scores: Tensor) -> Tensor:
        return _without_self(scores).square().sum(-1) / 2

    def weights(self, scores: Tensor) -> Tensor:
        return _without_self(scores)

    def weights_gradient(self, a: Tensor, u: Tensor, mean: Tensor) -> Tensor:
        return self.beta * _without_self(u)


class UniformAttention(AttractorNetwork):
    """The limit beta -> 0: a_i<-j = 1 / (N - 1), the local field sum_j J_ij x_j / (N - 1) of a vector Hopfield network.

    phi is the mean of the scores (the softmax's phi less its constant log(N - 1), which diverges in e_i as beta -> 0).
    """

    def potential(self, scores: Tensor) -> Tensor:
        return _without_self(scores).sum(-1) / (self.n_sites - 1)

    def weights(self, scores: Tensor) -> Tensor:
        return _without_self(torch.ones_like(scores)) / (self.n_sites - 1)

    def weights_gradient(self, a: Tensor, u: Tensor, mean: Tensor) -> Tensor:
        return torch.zeros_like(u)


class Unprojected(AttractorNetwork):
    """The update without P: x_i(t+1) = h_i(x) + gamma x_i = -de_i/dx_i. Tokens may have any finite norm."""

    def check_norms(self, x: Tensor, name: str) -> None:
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")

    def update(self, x: Tensor) -> Tensor:
        return self.field(x) + self.gamma * x


def _without_self(scores: Tensor) -> Tensor:
    """Zero where `exclude_self` puts -inf."""
    excluded = exclude_self(scores)
    return excluded.masked_fill(excluded == -math.inf, 0)


def symmetric(J: Tensor) -> Tensor:
    """The nearest J (heads, N, N, d, d) with J_ij = J_ji^T."""
    return (J + J.permute(0, 2, 1, 4, 3)) / 2


def by_offset(J: Tensor) -> Tensor:
    """The nearest J in which J_ij depends on the offset (row_i - row_j, column_i - column_j) alone; sites in a square."""
    side = math.isqrt(J.shape[1])
    if side**2 != J.shape[1]:
        raise ValueError(f"by_offset needs sites that form a square, got {J.shape[1]} sites")
    site = torch.arange(side**2, device=J.device)
    row, column = site // side, site % side
    rows, columns = row[:, None] - row, column[:, None] - column
    return _mean_over(J, (rows + side) * 2 * side + columns + side)


def shared(J: Tensor) -> Tensor:
    """The nearest J in which every pair of different sites has one and the same J_ij."""
    return _mean_over(J, torch.eye(J.shape[1], dtype=torch.long, device=J.device))


def _mean_over(J: Tensor, kind: Tensor) -> Tensor:
    """Each J_ij becomes the mean over the pairs of its kind (N, N): an orthogonal projection."""
    kind = kind.flatten().unique(return_inverse=True)[1]
    flat = J.flatten(1, 2)
    total = flat.new_zeros(len(J), int(kind.max()) + 1, *J.shape[3:]).index_add_(1, kind, flat)
    return (total / kind.bincount()[:, None, None])[:, kind].unflatten(1, J.shape[1:3])


def tied(rule: Callable, tie: Tie) -> Callable:
    """The rule with its gradient of the couplings projected: couplings that were tied stay so, under Adam too.

    (Adam acts on each component alone, and tied components have the same history of gradients.) Tie the initial
    couplings with ``network.couplings.copy_(tie(network.couplings))``. Raises ValueError for low rank.
    """

    def tied_rule(network: AttractorNetwork, *arguments) -> tuple[Tensor, Gradients]:
        if network.rank is not None:
            raise ValueError(f"ties are for full rank, got a network of rank {network.rank}")
        loss, gradients = rule(network, *arguments)
        return loss, {**gradients, "couplings": tie(gradients["couplings"])}

    tied_rule.__name__ = f"{tie.__name__} {rule.__name__}"
    return tied_rule


def n_free(tie: Tie, n_sites: int, dim: int) -> int:
    """How many parameters a tie leaves to one full head: the different values in a tied random J, i != j."""
    J = torch.randn(1, n_sites, n_sites, dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return len(tie(J)[0][~torch.eye(n_sites, dtype=torch.bool)].unique())


def with_positions(x: Tensor, c: float) -> Tensor:
    """Tokens that carry their site: x'_i = (x_i, c onehot_i) / sqrt(1 + c^2), (batch, N, d) to (batch, N, d + N)."""
    position = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    return torch.cat([x, c * position], -1) / math.sqrt(1 + c**2)


def without_positions(x: Tensor) -> Tensor:
    """The inverse: the first d components put back on the sphere, (batch, N, d + N) to (batch, N, d)."""
    return F.normalize(x[..., : -x.shape[1]], dim=-1)


def positioned(rule: Callable, c: float) -> Callable:
    """The rule for a network on tokens with positions, called with tokens without: positions are given, not predicted.

    Their residual is made zero by a target that equals the field there.
    """

    @torch.no_grad()
    def positioned_rule(network: AttractorNetwork, state: Tensor, target: Tensor, *sites) -> tuple[Tensor, Gradients]:
        s = with_positions(state, c)
        target = torch.cat([target / math.sqrt(1 + c**2), network.field(s)[..., target.shape[-1]:]], -1)
        return rule(network, s, target, *sites)

    positioned_rule.__name__ = f"positioned {rule.__name__}"
    return positioned_rule
