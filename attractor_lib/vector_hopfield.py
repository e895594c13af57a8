"""Hopfield networks of vector spins of thousands of sites: the couplings are never built."""

import torch
from torch import Tensor

from attractor_lib.checks import check_number
from attractor_lib.hopfield import check_patterns, check_state
from attractor_lib.states import exclude_self, project


class VectorHopfield:
    """Hebb's couplings, with uniform or softmax attention, from the patterns alone::

        J_ij     = sum_mu xi_i^mu (xi_j^mu)^T for j != i
        h_i      = (1/N) sum_{j != i} J_ij x_j                                   beta None
        h_i      = sum_{j != i} a_ij J_ij x_j ,   a_i. = softmax(beta x_i . J_ij x_j)
        x_i(t+1) = P[ h_i + gamma x_i ]

    With the components of every site along its patterns the scores are products of vectors of P
    numbers, so that a step of the softmax takes N^2 P operations and N^2 numbers::

        c_i^mu = xi_i^mu . x_i ,     x_i . J_ij x_j = c_i . c_j ,
        h_i    = sum_mu xi_i^mu sum_{j != i} a_ij c_j^mu

    The same softmax field as that of `AttractorNetwork` with `hebbian_couplings`; as beta goes to 0
    it becomes N/(N-1) times the field without softmax. Used in 17_mean_field.

    Args:
        patterns: (P >= 1, N >= 2, d), tokens of norm 1, floating.
        beta: inverse temperature of the softmax, > 0; None for uniform attention.
        gamma: weight of the self-term, >= 0.

    Raises:
        ValueError: for other patterns, numbers or states.
    """

    def __init__(self, patterns: Tensor, beta: float | None = None, gamma: float = 0.0):
        self.patterns = check_patterns(patterns, least_sites=2)
        self.beta = beta if beta is None else check_number("beta", beta, 0, open_low=True)
        self.gamma = check_number("gamma", gamma, 0)
        self._own = torch.einsum("mia,mib->iab", patterns, patterns) / patterns.shape[1]

    @torch.no_grad()
    def field(self, x: Tensor) -> Tensor:
        """h_i without the gamma term: (batch, N, d) to the same."""
        flat = check_state(x, self.patterns).flatten(1)
        if self.beta is not None:
            fields = [self._softmax_field(state) for state in x]
            return torch.stack(fields) if fields else torch.zeros_like(x)
        m = flat @ self.patterns.flatten(1).mT / x.shape[1]
        all_sites = (m @ self.patterns.flatten(1)).view_as(x)
        return all_sites - torch.einsum("iab,kib->kia", self._own, x)

    @torch.no_grad()
    def attention(self, x: Tensor) -> Tensor:
        """a_ij: (batch, N, d) to (batch, N, N); 1/(N - 1) off the diagonal where beta is None."""
        weights = [self._weights(self._components(s)) for s in check_state(x, self.patterns)]
        return torch.stack(weights) if weights else x.new_zeros(0, x.shape[1], x.shape[1])

    def update(self, x: Tensor) -> Tensor:
        """x(t+1), all sites at once: (batch, N, d). A site without any field stays where it is."""
        return project(self.field(x) + self.gamma * x, otherwise=x)

    def _components(self, state: Tensor) -> Tensor:
        return torch.einsum("mia,ia->im", self.patterns, state)

    def _weights(self, c: Tensor) -> Tensor:
        return exclude_self((self.beta or 0.0) * (c @ c.mT)).softmax(-1)

    def _softmax_field(self, state: Tensor) -> Tensor:
        c = self._components(state)
        return torch.einsum("im,mia->ia", self._weights(c) @ c, self.patterns)
