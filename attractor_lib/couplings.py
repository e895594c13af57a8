r"""Couplings J^h_ij: what a site asks, what others show it, how a gradient comes back to them.

Index letters: m example, h head, i site that acts, j site that it hears, a b components, r rank.
Every kind of couplings has

- ``queries(x)``: q (batch, heads, N, r);
- ``keys(x)``: k (batch, heads, N or 1, N, r), with x_i . J_ij x_j = q_i . k_ij;
- ``read_out(o)``: what o (batch, heads, N, r), the pooled keys, send to the spins, (batch, N, d);
- ``gradient(s, of_queries, of_keys)``: the gradients of its parameters, by name, where
  dL/dk_ij = sum over (c, v) in of_keys of c_ij v_i and dL/dU_i = sum over (o, y) in of_queries of
  o_i y_i^T (there is no U at full rank); then dL/dJ_ij = dL/dk_ij s_j^T, and dL/dV_j is the sum
  over i of dL/dk_ij s_j^T;
- ``dense()``: J (heads, N, N, d, d).

It says whether its keys are ``pairwise``, one for each pair of sites (full rank), or one for each
site that is heard (low rank): kernels ask that.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, einsum, nn

from attractor_lib.checks import check_whole

Terms = list[tuple[Tensor, Tensor]]
Tie = Callable[[Tensor], Tensor]


def _parameter(w: Tensor) -> nn.Parameter:
    return nn.Parameter(w, requires_grad=False)  # trained by closed forms, never by autograd


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        check_whole(name, value, 1)


def _gaussian(*shape: int, std: float, generator: torch.Generator | None) -> Tensor:
    return std * torch.randn(shape, generator=generator or torch.Generator().manual_seed(0))


class Full(nn.Module):
    """J^h_ij, a matrix for each ordered pair of sites: query q_i = x_i, key k_ij = J_ij x_j.

    Args:
        J: (heads, N, N, d, d); J[h, i, j] acts on x_j to push x_i.
    """

    pairwise = True

    def __init__(self, J: Tensor):
        super().__init__()
        if J.ndim != 5 or J.shape[1] != J.shape[2] or J.shape[3] != J.shape[4]:
            raise ValueError(f"J must have shape (heads, N, N, d, d), got {tuple(J.shape)}")
        self.J = _parameter(J)
        self.n_heads, self.n_sites, _, self.dim, _ = J.shape
        self.numbers_per_example = J[..., 0].numel()  # in its keys

    @classmethod
    def random(cls, n_heads: int, n_sites: int, dim: int, generator: torch.Generator | None = None):
        """Gaussian and small: messages are weak at the start, attention is nearly uniform."""
        _check_sizes(n_heads=n_heads, n_sites=n_sites, dim=dim)
        return cls(
            _gaussian(n_heads, n_sites, n_sites, dim, dim, std=0.1 / dim, generator=generator)
        )

    def dense(self) -> Tensor:
        return self.J

    def queries(self, x: Tensor) -> Tensor:
        return x[:, None].expand(-1, self.n_heads, -1, -1)

    def keys(self, x: Tensor) -> Tensor:
        return einsum("hijab,mjb->mhija", self.J, x)

    def read_out(self, o: Tensor) -> Tensor:
        return o.sum(1)

    def gradient(self, s: Tensor, of_queries: Terms, of_keys: Terms) -> dict[str, Tensor]:
        dk = sum(einsum("mhij,mhia->mhija", c, v) for c, v in of_keys)
        return self.chain_rule(J=einsum("mhija,mjb->hijab", dk, s))

    def chain_rule(self, J: Tensor) -> dict[str, Tensor]:
        """The gradients of the parameters, from that of J."""
        return {"J": J}

    def n_acting(self, hears: Tensor) -> int:
        """The number of parameters that act where `hears` (N, N) says who hears whom."""
        return self.n_heads * int(hears.sum()) * self.dim**2

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, n_sites={self.n_sites}, dim={self.dim}"


class LowRank(nn.Module):
    """J^h_ij = (U^h_i)^T V^h_j: query q_i = U_i x_i, key k_j = V_j x_j, the same for all i.

    Multi-head attention with projections of their own for every site, W_O tied to W_Q and W_V to
    W_K.

    Args:
        U, V: (heads, N, rank, d).
    """

    pairwise = False

    def __init__(self, U: Tensor, V: Tensor):
        super().__init__()
        if U.ndim != 4 or U.shape != V.shape:
            raise ValueError(
                f"U and V must have one shape (heads, N, rank, d), got {tuple(U.shape)} and "
                f"{tuple(V.shape)}"
            )
        self._size(*U.shape)
        self.U, self.V = _parameter(U), _parameter(V)

    def _size(self, n_heads: int, n_sites: int, rank: int, dim: int) -> None:
        self.n_heads, self.n_sites, self.rank, self.dim = n_heads, n_sites, rank, dim
        # in its queries, keys and scores:
        self.numbers_per_example = n_heads * n_sites * (2 * rank + n_sites)

    @classmethod
    def random(
        cls,
        n_heads: int,
        n_sites: int,
        dim: int,
        rank: int,
        generator: torch.Generator | None = None,
    ):
        """Gaussian and small: messages are weak at the start, attention is nearly uniform."""
        _check_sizes(n_heads=n_heads, n_sites=n_sites, dim=dim, rank=rank)
        shape = n_heads, n_sites, rank, dim
        generator = generator or torch.Generator().manual_seed(0)
        return cls(*(_gaussian(*shape, std=0.5 * dim**-0.5, generator=generator) for _ in range(2)))

    def dense(self) -> Tensor:
        return einsum("hira,hjrb->hijab", self.U, self.V)

    def queries(self, x: Tensor) -> Tensor:
        return einsum("hira,mia->mhir", self.U, x)

    def keys(self, x: Tensor) -> Tensor:
        return einsum("hjrb,mjb->mhjr", self.V, x)[:, :, None]

    def read_out(self, o: Tensor) -> Tensor:
        return einsum("hira,mhir->mia", self.U, o)

    def gradient(self, s: Tensor, of_queries: Terms, of_keys: Terms) -> dict[str, Tensor]:
        dk = sum(einsum("mhij,mhir->mhjr", c, v) for c, v in of_keys)
        dU = sum(einsum("mhir,mia->hira", o, y) for o, y in of_queries)
        return self.chain_rule(U=dU, V=einsum("mhjr,mjb->hjrb", dk, s))

    def chain_rule(self, U: Tensor, V: Tensor) -> dict[str, Tensor]:
        """The gradients of the parameters, from those of U and V."""
        return {"U": U, "V": V}

    def n_acting(self, hears: Tensor) -> int:
        asking, heard = int(hears.any(1).sum()), int(hears.any(0).sum())
        return (asking + heard) * self.n_heads * self.rank * self.dim

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, n_sites={self.n_sites}, dim={self.dim}, rank={self.rank}"


class SharedFactors(LowRank):
    r"""Low rank in which every site weighs the rows of the same few matrices.

    ::

        U^h_i = sum_f diag(u^h_if) F^h_f ,     V^h_j = sum_f diag(v^h_jf) G^h_f ,     f <= n_shared

    F and G say what features are asked for and shown, u and v how strongly a site does. Given dL/dU
    and dL/dV, which are local, the chain rule gives dL/dF_f = sum_i diag(u_if) dL/dU_i, and
    dL/du_if = the diagonal of dL/dU_i F_f^T: a sum over sites, as weight sharing in a convolution
    has it (14_accuracy_for_its_cost). With n_shared = N and u_if = v_if = 1 at f = i, else 0,
    nothing is shared.

    Args:
        F, G: (heads, n_shared, rank, d), the shared matrices.
        u, v: (heads, N, n_shared, rank), a site's weights of their rows.
    """

    def __init__(self, F: Tensor, G: Tensor, u: Tensor, v: Tensor):
        nn.Module.__init__(self)
        shared, own = F.shape == G.shape and F.ndim == 4, u.shape == v.shape and u.ndim == 4
        if not (shared and own and (u.shape[0], *u.shape[2:]) == F.shape[:3]):
            raise ValueError(
                "F and G must have one shape (heads, n_shared, rank, d), u and v (heads, N, "
                "n_shared, rank), "
                f"got {tuple(F.shape)}, {tuple(G.shape)}, {tuple(u.shape)} and {tuple(v.shape)}"
            )
        heads, self.n_shared, rank, dim = F.shape
        self._size(heads, u.shape[1], rank, dim)
        self.F, self.G, self.u, self.v = map(_parameter, (F, G, u, v))

    @classmethod
    def random(
        cls,
        n_heads: int,
        n_sites: int,
        dim: int,
        rank: int,
        n_shared: int = 2,
        generator: torch.Generator | None = None,
    ):
        """Gaussian, so that U and V have the size that those of `LowRank` have."""
        _check_sizes(n_heads=n_heads, n_sites=n_sites, dim=dim, rank=rank, n_shared=n_shared)
        matrices, weights = (n_heads, n_shared, rank, dim), (n_heads, n_sites, n_shared, rank)
        generator = generator or torch.Generator().manual_seed(0)
        FG = [_gaussian(*matrices, std=0.5 * dim**-0.5, generator=generator) for _ in range(2)]
        uv = [
            _gaussian(*weights, std=1 / math.sqrt(n_shared), generator=generator) for _ in range(2)
        ]
        return cls(*FG, *uv)

    @property
    def U(self) -> Tensor:
        """(heads, N, rank, d), computed."""
        return einsum("hifr,hfra->hira", self.u, self.F)

    @property
    def V(self) -> Tensor:
        """(heads, N, rank, d), computed."""
        return einsum("hifr,hfra->hira", self.v, self.G)

    def chain_rule(self, U: Tensor, V: Tensor) -> dict[str, Tensor]:
        of = {}
        for d, weights, matrices in ((U, "u", "F"), (V, "v", "G")):
            of[matrices] = einsum("hifr,hira->hfra", getattr(self, weights), d)
            of[weights] = einsum("hfra,hira->hifr", getattr(self, matrices), d)
        return of

    def n_acting(self, hears: Tensor) -> int:
        return sum(p.numel() for p in self.parameters())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_shared={self.n_shared}"


class Tied(Full):
    """Full couplings under a tie: an orthogonal projection of J, and so of its gradient.

    Couplings that start tied stay so, under Adam too: it acts on each component alone, and tied
    components have the same history of gradients (12_ablations).

    Args:
        J: (heads, N, N, d, d), of which the nearest tied one is taken.
        tie: J -> the nearest J that is tied: `symmetric`, `by_offset`, `shared`.
    """

    def __init__(self, J: Tensor, tie: Tie):
        super().__init__(J)  # of the right shape
        self.J = _parameter(tie(J))
        self.tie = tie

    @classmethod
    def random(cls, n_heads, n_sites, dim, tie: Tie, generator=None) -> "Tied":
        """The nearest tied couplings of random ones, those of `Full.random`."""
        return cls(Full.random(n_heads, n_sites, dim, generator).J, tie)

    def chain_rule(self, J: Tensor) -> dict[str, Tensor]:
        return {"J": self.tie(J)}

    def n_acting(self, hears: Tensor) -> int:
        """The different values that the tie leaves in a random J, of the pairs that act."""
        J = torch.randn(
            self.J.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        return self.n_heads * len(self.tie(J[None])[0][hears.cpu()].unique())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tie={getattr(self.tie, '__name__', self.tie)}"


def symmetric(J: Tensor) -> Tensor:
    """The nearest J (heads, N, N, d, d) with J_ij = J_ji^T."""
    return (J + J.permute(0, 2, 1, 4, 3)) / 2


def by_offset(J: Tensor) -> Tensor:
    """The nearest J in which J_ij depends on the offset of i and j alone; sites in a square."""
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
