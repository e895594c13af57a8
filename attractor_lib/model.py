"""The attractor network: local energies, the attention that is their derivative, and the update.

Index letters, here and in ``couplings`` and ``learning``: m example, h head, i site that acts, j
site that it hears, a b components, r rank.
"""

import copy
import math
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor, einsum, nn

from attractor_lib.checks import check_number, check_whole
from attractor_lib.couplings import Full, LowRank
from attractor_lib.kernels import accelerated, in_blocks
from attractor_lib.states import Sphere, is_finite

# The potential phi of a site's scores t_j, which are -inf where it does not hear j: a local energy
# is made of it, its gradient is the attention a, and its second derivative says how attention
# answers a change u of the scores.


@dataclass(frozen=True)
class LogSumExp:
    """phi = log sum_j exp t_j: attention is the softmax."""

    fused = True  # the kernels for one CPU or GPU have it built in

    def value(self, t: Tensor) -> Tensor:
        return t.logsumexp(-1)

    def gradient(self, t: Tensor) -> Tensor:
        return t.softmax(-1)

    def response(self, t: Tensor, a: Tensor, u: Tensor) -> Tensor:
        return (u - (a * u).sum(-1, keepdim=True)).mul_(a)


@dataclass(frozen=True)
class Square:
    """phi = 1/2 sum_j t_j^2: linear attention, a_j = t_j, of any sign and any sum (an ablation)."""

    fused = False

    def value(self, t: Tensor) -> Tensor:
        return _heard(t).square().sum(-1) / 2

    def gradient(self, t: Tensor) -> Tensor:
        return _heard(t)

    def response(self, t: Tensor, a: Tensor, u: Tensor) -> Tensor:
        return u.masked_fill(t == -math.inf, 0)


@dataclass(frozen=True)
class Mean:
    """phi = the mean of the scores: uniform attention, the limit beta -> 0 (an ablation).

    That is the local field of a vector Hopfield network. (The softmax's phi has the log of the
    number of sites heard besides, a constant that diverges in e_i as beta -> 0.)
    """

    fused = False

    def value(self, t: Tensor) -> Tensor:
        return _heard(t).sum(-1) / (t > -math.inf).sum(-1)

    def gradient(self, t: Tensor) -> Tensor:
        heard = t > -math.inf
        return heard.to(t.dtype) / heard.sum(-1, keepdim=True)

    def response(self, t: Tensor, a: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


def _heard(t: Tensor) -> Tensor:
    return t.masked_fill(t == -math.inf, 0)


class AttractorNetwork(nn.Module):
    r"""Vector spins x_i on the unit sphere, each descending a local energy of its own::

        t^h_ij   = beta x_i . J^h_ij x_j = beta q_i . k_ij    for the j that i hears: j != i
        e_i(x)   = -(1/beta) sum_h phi(t^h_i) - b_i . x_i - (gamma/2) |x_i|^2
        phi(t)   = log sum_j exp t_j
        a^h_i<-j = dphi/dt_ij                                 the attention, a softmax over j
        x_i(t+1) = P[ -de_i/dx_i ] = P[ sum_h sum_j a^h_i<-j J^h_ij x_j + b_i + gamma x_i ]

    With n_known > 0 a token is [x_i; z_i]: a spin and n_known components that are known. They take
    part in queries and keys, but e_i is an energy of x_i alone: fields and biases have the spin's
    components, and no update moves z_i.

    Args:
        n_sites: N >= 2, the number of sites (tokens).
        dim: d >= 1, the number of components of a token.
        n_heads: number of heads h; their potentials add up in the energy.
        rank: None for full d x d couplings (the paper's), or r for J^h_ij = (U^h_i)^T V^h_j.
        beta: inverse temperature, > 0. The paper's form has beta absorbed in J.
        gamma: weight of the self-term gamma x_i, >= 0.
        generator: a CPU ``torch.Generator`` for the initial couplings; without it, seed 0.
        couplings: an object of ``attractor_lib.couplings`` in place of n_heads, rank and generator.
        potential: phi: `LogSumExp` (the default), or the ablations' `Square` and `Mean`.
        hears: boolean (N, N), hears[i, j] where site i hears site j; by default all others, j != i.
            A causal chain has j < i; h_i then still asks with x_i itself, so hide the token that is
            to be predicted. A site that hears none has its bias alone. Where i hears itself, its
            update is no longer minus the derivative of its own energy. Not in the state_dict.
        space: where spins live, `Sphere` (the default), or `Flat`: any norm, and no P.
        n_known: the last so many of the dim components are known: finite numbers of any size.

    Attributes:
        couplings: J and its parameters; ``couplings.dense()`` is J (heads, N, N, d, d).
        bias: (N, d), the field b_i of a site alone, (N, d - n_known) if some are known. Starts at
            zero.
        phi: the potential. `hears`, `space`, `beta` and `gamma` are as given, too, and `at` gives
            the same network at another beta or gamma.

    Derived in 01_local_energies. No parameter ever requires a gradient: the closed forms of
    ``attractor_lib.learning`` train them. States x are (batch, N, d), with ``|x_i| = 1``, in the
    dtype and on the device of the parameters.

    Raises:
        ValueError: for arguments out of range; and from every method for a state that is not as
            above.
    """

    def __init__(
        self,
        n_sites: int,
        dim: int,
        n_heads: int = 1,
        rank: int | None = None,
        beta: float = 1.0,
        gamma: float = 0.0,
        generator: torch.Generator | None = None,
        *,
        couplings: nn.Module | None = None,
        potential=LogSumExp(),
        hears: Tensor | None = None,
        space=Sphere(),
        n_known: int = 0,
    ):
        super().__init__()
        least = {"n_sites": (n_sites, 2), "dim": (dim, 1), "n_heads": (n_heads, 1)}
        for name, (value, low) in (least | ({} if rank is None else {"rank": (rank, 1)})).items():
            check_whole(name, value, low)
        check_whole("n_known", n_known, 0, dim - 1)
        self.n_sites, self.dim, self.phi, self.space = n_sites, dim, potential, space
        self.n_known, self.n_free = n_known, dim - n_known
        self._set(beta, gamma)
        if couplings is None:
            sizes = n_heads, n_sites, dim
            couplings = (
                Full.random(*sizes, generator)
                if rank is None
                else LowRank.random(*sizes, rank, generator)
            )
        elif not isinstance(couplings, nn.Module):
            raise ValueError(
                "couplings must be an object such as Full(J) or LowRank(U, V), got "
                f"{type(couplings).__name__}"
            )
        elif (couplings.n_sites, couplings.dim, n_heads, rank) != (n_sites, dim, 1, None):
            raise ValueError(
                f"couplings must be for {n_sites} sites of {dim} components and come without "
                f"n_heads and rank, got {couplings}, n_heads={n_heads}, rank={rank}"
            )
        elif generator is not None:
            raise ValueError("generator must be None where couplings are given, got one to draw by")
        for name, part in (("potential", potential), ("space", space)):
            if isinstance(part, type | str):
                raise ValueError(f"{name} must be an object such as LogSumExp(), got {part!r}")
        self.couplings = couplings
        bias = next(couplings.parameters()).new_zeros(n_sites, self.n_free)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("_hears", None, persistent=False)
        self.hears = ~torch.eye(n_sites, dtype=torch.bool) if hears is None else hears

    def _set(self, beta: float, gamma: float) -> None:
        self.beta = check_number("beta", beta, 0, open_low=True)
        self.gamma = check_number("gamma", gamma, 0)

    def at(self, beta: float | None = None, gamma: float | None = None) -> "AttractorNetwork":
        """The same network, its parameters shared, at another beta or gamma."""
        view = copy.copy(self)
        for own in ("_parameters", "_buffers", "_modules"):  # what is assigned to one stays its own
            view.__dict__[own] = dict(view.__dict__[own])
        view._set(self.beta if beta is None else beta, self.gamma if gamma is None else gamma)
        return view

    @property
    def hears(self) -> Tensor:
        """Who hears whom, boolean (N, N), with True at [i, j] where site i hears site j."""
        return self._hears

    @hears.setter
    def hears(self, mask: Tensor) -> None:
        n = self.n_sites
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (n, n):
            got = (
                f"{mask.dtype} {tuple(mask.shape)}"
                if isinstance(mask, Tensor)
                else type(mask).__name__
            )
            raise ValueError(f"hears must be a boolean tensor of shape ({n}, {n}), got {got}")
        self._hears = mask.to(self.bias.device).clone(memory_format=torch.contiguous_format)

    @property
    def all_hear(self) -> bool:
        """Whether no site hears none."""
        return bool(self.hears.any(-1).all())

    @property
    def n_heads(self) -> int:
        return self.couplings.n_heads

    @property
    def n_acting(self) -> int:
        """How many parameters act, which J_ij does not where i does not hear j, nor a zero bias."""
        return self.couplings.n_acting(self.hears) + (self.bias.numel() if self.bias.any() else 0)

    def check(self, x: Tensor, name: str = "x") -> Tensor:
        """x, if it is a valid state of this network.

        Raises:
            ValueError: for a wrong shape, dtype or device, NaN or infinity, or a token off the unit
                sphere.
        """
        shape = (self.n_sites, self.dim)
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[1:] != shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must have shape (batch, {shape[0]}, {shape[1]}), got {got}")
        if (x.dtype, x.device) != (self.bias.dtype, self.bias.device):
            raise ValueError(
                f"{name} must be {self.bias.dtype} on {self.bias.device} like the network, got "
                f"{x.dtype} on {x.device}"
            )
        if self.n_known and not is_finite(x):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        self.space.check(self.spins(x), name)
        return x

    def spins(self, x: Tensor) -> Tensor:
        """The tokens' components that are not known: (..., d) to (..., d - n_known)."""
        return x[..., : self.n_free] if self.n_known else x

    def with_known(self, spins: Tensor, x: Tensor) -> Tensor:
        """These spins beside what is known in x (..., d)."""
        return torch.cat([spins, x[..., self.n_free :]], -1) if self.n_known else spins

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """t_ij = beta q_i . k_ij (batch, heads, N, N), and -inf where i does not hear j."""
        return (self.beta * einsum("mhir,mhijr->mhij", q, k)).masked_fill(~self.hears, -math.inf)

    def weights(self, t: Tensor) -> Tensor:
        """a_i<-j (batch, heads, N, N) of scores t; a site that hears none attends to none."""
        a = self.phi.gradient(t)
        return a if self.all_hear else a.masked_fill(~self.hears, 0)

    def energies(self, t: Tensor, x: Tensor) -> Tensor:
        """e_i (batch, N) of scores t and spins x."""
        phi = self.phi.value(t)
        phi = phi if self.all_hear else phi.masked_fill(~self.hears.any(-1), 0)
        return (
            -phi.sum(1) / self.beta - (self.bias * x).sum(-1) - self.gamma / 2 * x.square().sum(-1)
        )

    @in_blocks
    def local_energies(self, x: Tensor) -> Tensor:
        """e_i(x) (batch, N), dimensionless."""
        t = self.scores(self.couplings.queries(x), self.couplings.keys(x))
        return self.energies(t, self.spins(x))

    @in_blocks
    def attention(self, x: Tensor) -> Tensor:
        """a^h_i<-j (batch, heads, N, N), 0 where i does not hear j; a softmax's rows sum to 1."""
        return self.weights(self.scores(self.couplings.queries(x), self.couplings.keys(x)))

    @accelerated
    @in_blocks
    def field(self, x: Tensor) -> Tensor:
        """h_i(x) = sum_h sum_j a^h_i<-j J^h_ij x_j + b_i, without the gamma term: of what moves,
        (batch, N, n_free).
        """
        q, k = self.couplings.queries(x), self.couplings.keys(x)
        o = einsum("mhij,mhijr->mhir", self.weights(self.scores(q, k)), k)
        return self.read_out(o)

    def read_out(self, o: Tensor) -> Tensor:
        """The field of pooled keys o (batch, heads, N, r): (batch, N, n_free)."""
        return self.spins(self.couplings.read_out(o)) + self.bias

    @accelerated
    @in_blocks
    def pooled(self, x: Tensor) -> Tensor:
        """The pooled keys o^h_i = sum_j a^h_i<-j k^h_ij: (batch, N, heads, r).

        The field is what ``couplings.read_out`` makes of them, and b_i.
        """
        q, k = self.couplings.queries(x), self.couplings.keys(x)
        return einsum("mhij,mhijr->mihr", self.weights(self.scores(q, k)), k)

    def update(self, x: Tensor) -> Tensor:
        """x(t+1) = P[h(x) + gamma x] (batch, N, d). A site without any field stays where it is, and
        what is known stays as it is.
        """
        return self.moved(x, self.field(x))

    def moved(self, x: Tensor, h: Tensor) -> Tensor:
        """P[h + gamma x] (batch, N, d) for a field h, beside what is known in x."""
        spins = self.spins(x)
        return self.with_known(self.space.project(h + self.gamma * spins, otherwise=spins), x)

    def forward(self, x: Tensor) -> Tensor:
        return self.update(x)

    def extra_repr(self) -> str:
        others = ~torch.eye(self.n_sites, dtype=torch.bool, device=self.hears.device)
        key = sha256(self.hears.cpu().numpy().tobytes()).hexdigest()[:6]
        some = f"{int(self.hears.sum())} of {self.n_sites**2} pairs ({key})"
        return (
            f"n_sites={self.n_sites}, dim={self.dim}, beta={self.beta}, gamma={self.gamma}, "
            f"potential={self.phi}, hears={'others' if self.hears.equal(others) else some}, "
            f"space={self.space}" + (f", n_known={self.n_known}" if self.n_known else "")
        )
