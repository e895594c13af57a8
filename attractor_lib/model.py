"""The attractor network: local energies, the attention that is their derivative, and the update."""

import math

import torch
from torch import Tensor, nn

from attractor_lib import fast, fast_cuda


def project(x: Tensor, otherwise: Tensor) -> Tensor:
    """P: each token divided by its norm; where the norm is zero there is no direction, and `otherwise` stands."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, otherwise)


def exclude_self(scores: Tensor) -> Tensor:
    """The one place where j != i is enforced: scores (..., i, j) with -inf on the diagonal."""
    return scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device), -math.inf)


def sites_first(w: Tensor) -> Tensor:
    """(heads, [N,] N, r, d) seen as (N, heads, [N,] r, d): a matrix for each site that acts."""
    return w.movedim(-3, 0)


def sites_last(w: Tensor) -> Tensor:
    """The inverse of `sites_first`."""
    return w.movedim(0, -3)


class AttractorNetwork(nn.Module):
    r"""Vector spins x_i on the unit sphere, each descending a local energy of its own.

        e_i(x)   = -(1/beta) sum_h log sum_{j != i} exp(beta x_i . J^h_ij x_j) - b_i . x_i - (gamma/2) |x_i|^2
        a^h_i<-j = softmax over j != i of beta x_i . J^h_ij x_j
        x_i(t+1) = P[ -de_i/dx_i ] = P[ sum_h sum_{j != i} a^h_i<-j J^h_ij x_j + b_i + gamma x_i ]

    Derived in notebook 01_local_energies. With ``rank=r`` the couplings are J^h_ij = (U^h_i)^T V^h_j and every
    equation stays; site i then asks with the query q_i = U_i x_i, and site j shows every other site the same key
    k_j = V_j x_j. With full rank the query is x_i itself and the key depends on the pair: k_ij = J_ij x_j. That is the
    whole difference: the keys of an example and head are one matrix (N, r) for all sites, or one (N, d) for each.

    Arguments
        n_sites: N >= 2, the number of sites (tokens).
        dim: d >= 1, the number of components of a token.
        n_heads: number of heads h; their log-sum-exps add up in the energy.
        rank: None for full d x d couplings (the paper's), or the rank of the factors U and V.
        beta: inverse temperature, > 0. The paper's form has beta absorbed in J.
        gamma: weight of the self-term gamma x_i, >= 0.
        generator: a CPU ``torch.Generator`` for the initial couplings; without it, seed 0.

    Parameters (none ever requires a gradient: they are trained by the closed forms of ``attractor_lib.learning``)
        couplings (heads, N, N, d, d): couplings[h, i, j] acts on x_j to push x_i; the blocks i = j never act.
        U, V (heads, N, rank, d): in place of `couplings` when `rank` is given; `couplings` is then their product.
        bias (N, d): the field b_i of a site alone. Starts at zero.

    States x are (batch, N, d), with |x_i| = 1, in the dtype and on the device of the parameters. Every method refuses
    anything else with a ValueError that says what was expected and what came.
    """

    def __init__(self, n_sites: int, dim: int, n_heads: int = 1, rank: int | None = None, beta: float = 1.0,
                 gamma: float = 0.0, generator: torch.Generator | None = None):
        super().__init__()
        for name, value, least in [("n_sites", n_sites, 2), ("dim", dim, 1), ("n_heads", n_heads, 1), ("rank", rank, 1)]:
            if not (name == "rank" and rank is None) and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(f"beta must be a finite number > 0, got {beta}")
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"gamma must be a finite number >= 0, got {gamma}")
        self.n_sites, self.dim, self.n_heads, self.rank, self.beta, self.gamma = n_sites, dim, n_heads, rank, beta, gamma
        generator = generator or torch.Generator().manual_seed(0)
        # Small: at the start messages are weak and attention is nearly uniform.
        self._make_couplings(
            lambda *shape, std: nn.Parameter(std * torch.randn(shape, generator=generator), requires_grad=False))
        self.bias = nn.Parameter(torch.zeros(n_sites, dim), requires_grad=False)

    def _make_couplings(self, gaussian) -> None:
        heads, n, r, d = self.n_heads, self.n_sites, self.rank, self.dim
        if r is None:
            # Past `register_parameter`, which refuses a name that is also a property.
            self._parameters["couplings"] = gaussian(heads, n, n, d, d, std=0.1 / d)
        else:
            self.U = gaussian(heads, n, r, d, std=0.5 * d**-0.5)
            self.V = gaussian(heads, n, r, d, std=0.5 * d**-0.5)

    def pull_back(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the parameters, from those of J (at low rank of U and V) and of the bias. Here these are the parameters."""
        return gradients

    @property
    def n_acting(self) -> int:
        """The number of parameters that act: not the couplings of a site with itself, nor a bias that is all zero."""
        itself = 0 if self.rank is not None else self.n_heads * self.n_sites * self.dim**2
        return sum(p.numel() for p in self.parameters() if p.any()) - itself

    @property
    def couplings(self) -> Tensor:
        """J (heads, N, N, d, d): a parameter at full rank, U^T V (computed, read-only) at low rank."""
        if self.rank is None:
            return self._parameters["couplings"]
        return torch.einsum("hira,hjrb->hijab", self.U, self.V)

    def check(self, x: Tensor, name: str = "x") -> Tensor:
        """x, if it is a valid state of this network.

        Raises ValueError for a wrong shape, dtype or device, NaN or infinity, or a token off the unit sphere.
        """
        shape = (self.n_sites, self.dim)
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[1:] != shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must have shape (batch, {shape[0]}, {shape[1]}), got {got}")
        if (x.dtype, x.device) != (self.bias.dtype, self.bias.device):
            raise ValueError(f"{name} must be {self.bias.dtype} on {self.bias.device} like the network, "
                             f"got {x.dtype} on {x.device}")
        self.check_norms(x, name)
        return x

    def check_norms(self, x: Tensor, name: str) -> None:
        off = (x.detach().norm(dim=-1) - 1).abs()
        if not (off <= 1e-3).all():  # written so that NaN fails too
            raise ValueError(f"{name} must have tokens of norm 1, got norms that differ from 1 by up to {off.max():.3g}")

    def fast_path(self, x: Tensor):
        """The module that computes field and prediction rule at x faster, ``fast`` or ``fast_cuda``; None for variants of this class."""
        path = fast_cuda if x.is_cuda else fast
        return path if type(self) is AttractorNetwork and path.serves(self, x) else None

    def blocks(self, *states: Tensor):
        """Views of the states over blocks of examples small enough for their keys to stay in the processor's cache.

        So working memory does not grow with the batch. A block has one example at least.
        """
        floats = self.n_heads * self.n_sites * (
            self.n_sites * self.dim if self.rank is None else 2 * self.rank + self.n_sites)
        n = len(states[0])
        parts = max(1, min(n, -(-n * floats // 2**20)))
        return zip(*(s.tensor_split(parts) for s in states))

    def matrices(self) -> tuple[Tensor | None, Tensor]:
        """U and V (None and J at full rank) as `sites_first` shows them, copied to lie so in memory, once for all blocks."""
        if self.rank is None:
            return None, sites_first(self.couplings).contiguous()
        return sites_first(self.U).contiguous(), sites_first(self.V).contiguous()

    def queries(self, x: Tensor, U: Tensor | None = None) -> Tensor:
        """q (batch, heads, N, r): U_i x_i at low rank, x_i itself (r = d) at full rank. U: of `matrices`, if at hand."""
        if self.rank is None:
            return x[:, None].expand(-1, self.n_heads, -1, -1)
        return self._acted(self.matrices()[0] if U is None else U, x).permute(1, 2, 0, 3)

    def keys(self, x: Tensor, V: Tensor | None = None) -> Tensor:
        """k: J_ij x_j (batch, heads, N, N, d) at full rank, V_j x_j (batch, heads, N, r) at low rank.

        In memory j comes first, as the matrix product leaves them; what follows reads them where they lie. V: of
        `matrices`, if at hand.
        """
        return self._acted(self.matrices()[1] if V is None else V, x).movedim(0, -2)

    def _acted(self, w: Tensor, x: Tensor) -> Tensor:
        """w_j x_j for all sites j, heads (and i): (N, batch, heads, [N,] r), one matrix product a site."""
        return torch.bmm(x.transpose(0, 1), w.flatten(1, -2).transpose(1, 2)).unflatten(2, w.shape[1:-1])

    def products(self, q: Tensor, k: Tensor) -> Tensor:
        """q_i . k_ij (batch, heads, N, N)."""
        return torch.bmm(self._rows(q), k.flatten(0, -3).transpose(1, 2)).view(*q.shape[:3], self.n_sites)

    def _rows(self, q: Tensor) -> Tensor:
        """(batch, heads, N, r) as a matrix for each set of keys: of all N rows at low rank, of one row at full rank."""
        return q.reshape(-1, 1 if self.rank is None else self.n_sites, q.shape[-1])

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """beta x_i . J_ij x_j = beta q_i . k_ij, with -inf at j = i: (batch, heads, N, N)."""
        return exclude_self(self.products(q, k).mul_(self.beta))

    # The energy is a function phi of a site's scores, e_i = -(1/beta) sum_h phi(scores of i) - ..., and attention is its
    # derivative. Here phi is the log-sum-exp; notebook 12_ablations puts others in its place, by these three methods.

    def potential(self, scores: Tensor) -> Tensor:
        """phi = log sum_j exp score_ij (batch, heads, N)."""
        return scores.logsumexp(-1)

    def weights(self, scores: Tensor) -> Tensor:
        """a_i<-j = dphi/dscore_ij: the softmax over j (batch, heads, N, N)."""
        return scores.softmax(-1)

    def weights_gradient(self, a: Tensor, u: Tensor, mean: Tensor) -> Tensor:
        """z_ij = beta sum_j' u_ij' da_ij'/dscore_ij = beta a_ij (u_ij - mean_i), for mean_i = sum_j a_ij u_ij."""
        return (u - mean).mul_(a).mul_(self.beta)

    def pooled(self, a: Tensor, k: Tensor) -> Tensor:
        """o_i = sum_j a_i<-j k_ij (batch, heads, N, r)."""
        return torch.bmm(self._rows(a), k.flatten(0, -3)).view(*a.shape[:3], k.shape[-1])

    def output(self, o: Tensor) -> Tensor:
        """h_i = sum_h (U_i)^T o_i + b_i (batch, N, d); at full rank U_i is the identity."""
        if self.rank is None:
            return o.sum(1) + self.bias
        return torch.einsum("mhir,hira->mia", o, self.U) + self.bias

    def local_energies(self, x: Tensor) -> Tensor:
        """e_i(x) (batch, N), dimensionless."""
        self.check(x)
        phi = torch.cat([self.potential(scores).sum(1) for scores, _ in self._over_blocks(x)])
        return -phi / self.beta - (self.bias * x).sum(-1) - self.gamma / 2 * x.square().sum(-1)

    def attention(self, x: Tensor) -> Tensor:
        """a^h_i<-j (batch, heads, N, N): rows sum to 1, the diagonal is 0."""
        self.check(x)
        return torch.cat([self.weights(scores) for scores, _ in self._over_blocks(x)])

    def _over_blocks(self, x: Tensor):
        """Scores and keys, block by block."""
        U, V = self.matrices()
        for b, in self.blocks(x):
            k = self.keys(b, V)
            yield self.scores(self.queries(b, U), k), k

    def field(self, x: Tensor) -> Tensor:
        """h_i(x) = sum_h sum_{j != i} a^h_i<-j J^h_ij x_j + b_i (batch, N, d): -de_i/dx_i without the gamma term."""
        self.check(x)
        if path := self.fast_path(x):
            return path.field(self, x)
        return torch.cat([self.output(self.pooled(self.weights(scores), k)) for scores, k in self._over_blocks(x)])

    def update(self, x: Tensor) -> Tensor:
        """x(t+1) = P[h(x) + gamma x] (batch, N, d), on the sphere. A site without any field stays where it is."""
        return project(self.field(x) + self.gamma * x, otherwise=x)

    def forward(self, x: Tensor) -> Tensor:
        return self.update(x)

    def extra_repr(self) -> str:
        return (f"n_sites={self.n_sites}, dim={self.dim}, n_heads={self.n_heads}, rank={self.rank}, "
                f"beta={self.beta}, gamma={self.gamma}")
