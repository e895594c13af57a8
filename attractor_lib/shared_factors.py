"""Low-rank couplings whose factors the sites share: fewer parameters, the same equations."""

import math

import torch
from torch import Tensor, nn

from attractor_lib.model import AttractorNetwork


class SharedFactors(AttractorNetwork):
    r"""Couplings J^h_ij = (U^h_i)^T V^h_j in which every site weighs the rows of the same few matrices (notebook 14_accuracy_for_its_cost).

        U^h_i = sum_m diag(u^h_im) F^h_m ,     V^h_j = sum_m diag(v^h_jm) G^h_m ,     m = 1 ... n_shared

    F and G say what features are asked for and shown, u and v how strongly a site does. Given a rule's dL/dU and dL/dV, which are
    local, the chain rule gives dL/dF_m = sum_i diag(u_im) dL/dU_i and dL/du_im = the diagonal of dL/dU_i F_m^T: a sum over sites, as
    weight sharing in a convolution has it. Everything else is that of ``AttractorNetwork`` with `rank` r.

    n_shared: the number of matrices M >= 1; with M = N and u_im = v_im = 1 at m = i, else 0, nothing is shared.

    Parameters
        F, G (heads, n_shared, rank, d): the shared matrices.
        u, v (heads, N, n_shared, rank): a site's weights of their rows.
        bias (N, d).
    """

    def __init__(self, n_sites: int, dim: int, n_heads: int = 1, rank: int = 16, n_shared: int = 2, beta: float = 1.0,
                 gamma: float = 0.0, generator: torch.Generator | None = None):
        for name, value in (("rank", rank), ("n_shared", n_shared)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        self.n_shared = n_shared  # `_make_couplings` needs it
        super().__init__(n_sites, dim, n_heads, rank, beta, gamma, generator)

    def _make_couplings(self, gaussian) -> None:
        heads, n, r, d, m = self.n_heads, self.n_sites, self.rank, self.dim, self.n_shared
        self.F, self.G = (gaussian(heads, m, r, d, std=0.5 * d**-0.5) for _ in range(2))
        self.u, self.v = (gaussian(heads, n, m, r, std=1 / math.sqrt(m)) for _ in range(2))

    @property
    def U(self) -> Tensor:
        """(heads, N, rank, d), computed."""
        return torch.einsum("himr,hmra->hira", self.u, self.F)

    @property
    def V(self) -> Tensor:
        """(heads, N, rank, d), computed."""
        return torch.einsum("himr,hmra->hira", self.v, self.G)

    def pull_back(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        of = {"bias": gradients["bias"]}
        for name, weights, matrices in (("U", "u", "F"), ("V", "v", "G")):
            of[matrices] = torch.einsum("himr,hira->hmra", getattr(self, weights), gradients[name])
            of[weights] = torch.einsum("hmra,hira->himr", getattr(self, matrices), gradients[name])
        return of

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_shared={self.n_shared}"
