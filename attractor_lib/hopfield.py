"""Hopfield networks of vector spins: couplings from the patterns, and the modern network."""

import torch
from torch import Tensor

from attractor_lib.checks import check_number
from attractor_lib.patterns import require_memory
from attractor_lib.states import check_norms, project


def check_patterns(patterns: Tensor, least_sites: int = 1) -> Tensor:
    """patterns, if they are floating (n >= 1, N >= least_sites, d), of norm 1; else ValueError."""
    got = type(patterns).__name__
    if isinstance(patterns, Tensor):
        got, shape = f"{patterns.dtype} {tuple(patterns.shape)}", patterns.shape
        if patterns.is_floating_point() and len(shape) == 3 and shape[0]:
            if shape[1] >= least_sites:
                return check_norms(patterns, "patterns")
    raise ValueError(
        f"patterns must be a floating tensor of shape (n >= 1, N >= {least_sites}, d), got {got}"
    )


def check_state(x: Tensor, patterns: Tensor) -> Tensor:
    """x, if it is (batch, N, d) as patterns have it, of norm 1; else ValueError."""
    if x.ndim != 3 or x.shape[1:] != patterns.shape[1:] or x.dtype != patterns.dtype:
        sizes = ", ".join(map(str, patterns.shape[1:]))
        raise ValueError(
            f"x must be {patterns.dtype} of shape (batch, {sizes}), got {x.dtype} {tuple(x.shape)}"
        )
    return check_norms(x, "x")


def _require_couplings(patterns: Tensor) -> None:
    _, n_sites, dim = patterns.shape
    require_memory(
        2 * (n_sites * dim) ** 2 * patterns.dtype.itemsize,
        f"couplings of {n_sites} sites and {dim} components",
        patterns.device,
    )


@torch.no_grad()
def hebbian_couplings(patterns: Tensor) -> Tensor:
    """Hebb's rule for vector spins (09_synthetic_patterns)::

        J_ij = sum_mu xi^mu_i (xi^mu_j)^T for j != i ,     J_ii = 0

    Normalised so that a single pattern sends messages J_ij xi_j = xi_i of norm 1. Symmetric,
    J_ij = J_ji^T.

    Args:
        patterns: (n, N, d), tokens of norm 1.

    Returns:
        (1, N, N, d, d), the couplings of a one-head full-rank network, whatever n.

    Raises:
        ValueError: for other patterns.
        MemoryError: where J would not fit.
    """
    _, n_sites, _ = check_patterns(patterns).shape
    _require_couplings(patterns)
    J = torch.einsum("mia,mjb->ijab", patterns, patterns)
    J[range(n_sites), range(n_sites)] = 0
    return J[None]


@torch.no_grad()
def pseudo_inverse_couplings(patterns: Tensor) -> Tensor:
    """The smallest couplings with which every site is the mean of its messages, or nearest.

    ::

        1/(N-1) sum_{j != i} J_ij xi^mu_j = xi^mu_i
        J_i. = (N - 1) X_i^T (X_rest^T)^+ ,     X_i (n, d) the patterns' tokens at site i,
                                                X_rest (n, (N-1) d) all the others

    The limit beta -> 0 of the prediction rule on clean states, trained from couplings zero by
    gradient descent. For n <= (N - 1) d patterns in general position the error is zero, and with
    the projector Q on the span of the patterns and D the blocks i = j of 1 - Q::

        J = (N - 1) [1 - D^-1 (1 - Q)]

    Derived in 09_synthetic_patterns.

    Args:
        patterns: (n, N >= 2, d), tokens of norm 1.

    Returns:
        (1, N, N, d, d), not symmetric, blocks i = j zero.

    Raises:
        ValueError: for other patterns.
        MemoryError: where J would not fit.
    """
    _, n_sites, dim = check_patterns(patterns, least_sites=2).shape
    _require_couplings(patterns)
    J = patterns.new_zeros(1, n_sites, n_sites, dim, dim)
    for i in range(n_sites):
        others = [j for j in range(n_sites) if j != i]
        rest = patterns[:, others].flatten(1).double()
        solution = torch.linalg.pinv(rest, rtol=1e-6) @ patterns[:, i].double()
        J[0, i, others] = (n_sites - 1) * solution.unflatten(0, (-1, dim)).mT.to(J.dtype)
    return J


class ModernHopfield:
    """A modern Hopfield network: it keeps the patterns, and a state attends to them::

        E(x)     = -(1/beta) log sum_mu exp(beta sum_i xi^mu_i . x_i)
        p_mu     = softmax over mu of (beta sum_j xi^mu_j . x_j)
        x_i(t+1) = P[ -dE/dx_i ] = P[ sum_mu p_mu xi^mu_i ]

    One global energy, and it never rises, whichever sites are updated together: E is concave, so
    E(x') - E(x) <= -sum_i g_i . (x'_i - x_i) with g = -dE/dx, and x'_i = P[g_i] has the largest
    g_i . x'_i there is. Derived in 09_synthetic_patterns.

    Args:
        patterns: (n, N, d), tokens of norm 1; kept, not copied: n N d numbers.
        beta: inverse temperature, > 0.

    Raises:
        ValueError: for other patterns, beta, or states.
    """

    def __init__(self, patterns: Tensor, beta: float):
        self.patterns = check_patterns(patterns)
        self.beta = check_number("beta", beta, 0, open_low=True)

    def _blocks(self, x: Tensor):
        flat = self.patterns.flatten(1)
        at_once = max(1, 2**24 // len(flat))  # states, each with n scores
        for b in check_state(x, self.patterns).split(at_once):
            yield self.beta * b.flatten(1) @ flat.mT, flat

    def energy(self, x: Tensor) -> Tensor:
        """E(x): (batch, N, d) to (batch)."""
        return torch.cat([-scores.logsumexp(-1) / self.beta for scores, _ in self._blocks(x)])

    def attention(self, x: Tensor) -> Tensor:
        """p_mu: (batch, N, d) to (batch, n)."""
        return torch.cat([scores.softmax(-1) for scores, _ in self._blocks(x)])

    def update(self, x: Tensor) -> Tensor:
        """x(t+1), all sites at once: (batch, N, d). A site without any field stays where it is."""
        field = torch.cat([scores.softmax(-1) @ flat for scores, flat in self._blocks(x)]).view_as(
            x
        )
        return project(field, otherwise=x)
