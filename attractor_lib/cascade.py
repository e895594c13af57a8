r"""Depth without backpropagation: networks one after the other that hand on hidden spins.

A cascade has one attractor network for each update (14_accuracy_for_its_cost). What stage t + 1
sees of site i is the spin x_i, which stage t has updated, and what is known besides: hidden spins
z_i, which stage t leaves, and the token that was given at the start (18_hidden_spins). Both are
vector spins that minimise a local energy at the attention a^h_i<-j of stage t::

    e_i = -(1/beta) sum_h log sum_{j != i} exp(beta s_i . J^h_ij s_j) - b_i . x_i
    x_i(t+1) = P[ sum_h sum_j U^h_i^T a^h_i<-j V^h_j s_j + b_i ] ,     s = [x; z]
    z_i(t+1) = rho P[ sum_h sum_j R^h a^h_i<-j V^h_j s_j ] ,            R random and fixed

Each stage is trained by a rule at the states that the stages before leave. They stay as they are,
and R is never trained: no error passes from a stage to another.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attractor_lib.checkpoint import load_state, name_of, state_of
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import check_mask, clamp


def random_read(n_hidden: int, n_heads: int, rank: int, generator: torch.Generator) -> Tensor:
    """R (n_hidden, heads r) for `Cascade.add`: Gaussian, the same for all sites."""
    return torch.randn(n_hidden, n_heads * rank, generator=generator)


@torch.no_grad()
def principal_read(stage: AttractorNetwork, states: Tensor, n_hidden: int) -> Tensor:
    """R (n_hidden, heads r) of the largest principal components of a network's pooled keys.

    Of their second moments over all sites of the states (batch, N, d), without centring: what a
    linear network learns by Oja's rule from the pooled keys alone.

    Raises:
        ValueError: for more components than there are.
    """
    c = stage.couplings
    n_pooled = c.n_heads * (c.dim if c.pairwise else c.rank)
    if not 1 <= n_hidden <= n_pooled:
        raise ValueError(f"n_hidden must be from 1 to {n_pooled}, got {n_hidden}")
    read = torch.eye(n_pooled).to(states).expand(c.n_sites, -1, -1)
    pooled = stage.pooled(states, read).flatten(0, 1)
    return torch.linalg.eigh(pooled.mT @ pooled).eigenvectors[:, -n_hidden:].mT.flip(0)


@torch.no_grad()
def start_from(stage: AttractorNetwork, before: AttractorNetwork) -> None:
    """Let a stage start its training as the one before it: with its bias, and its couplings of
    the components that both know.
    """
    for p, earlier in zip(stage.parameters(), before.parameters(), strict=True):
        p[..., : earlier.shape[-1]] = earlier


class Cascade(nn.Module):
    """A network for each update, one after the other; without any, states stay as they are.

    Args:
        keeps_given: whether the token that was given at the start is known to all later stages.
        length: rho, that of a hidden spin; > 0.

    Attributes:
        stages: the networks, or other modules that make tokens of tokens, which hand on no more.
        reads: R of each stage, or None where there are no hidden spins.
    """

    def __init__(self, keeps_given: bool = False, length: float = 0.4):
        super().__init__()
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"length must be a finite number > 0, got {length}")
        self.keeps_given, self.length = keeps_given, length
        self.stages, self.reads = nn.ModuleList(), []

    def __len__(self) -> int:
        return len(self.stages)

    def n_known(self, dim: int) -> int:
        """Of the next stage's network, where tokens have dim components."""
        if not self.stages:
            return 0
        hidden = 0 if self.reads[-1] is None else len(self.reads[-1])
        return hidden + (dim if self.keeps_given else 0)

    def add(self, stage: nn.Module, read: Tensor | None = None) -> "Cascade":
        """Append a stage, when it is trained.

        Args:
            stage: an `AttractorNetwork` with n_known as the cascade has it, or another module.
            read: R (n_hidden, heads r), from a network's pooled keys to hidden spins.

        Raises:
            ValueError: for a stage or an R of other sizes.
        """
        if isinstance(stage, AttractorNetwork):
            expected, c = self.n_known(stage.n_free), stage.couplings
            if stage.n_known != expected:
                raise ValueError(f"stage must have n_known={expected}, got {stage.n_known}")
            pooled = c.n_heads * (c.dim if c.pairwise else c.rank)
            if read is not None and read.shape[1:] != (pooled,):
                shape = tuple(read.shape)
                raise ValueError(f"read must have shape (n_hidden, {pooled}), got {shape}")
        elif read is not None:
            raise ValueError(f"only an AttractorNetwork has keys to read, got {type(stage)}")
        self.stages.append(stage)
        self.reads.append(read)
        return self

    def states(self, given: Tensor, sites: Tensor, n_stages: int | None = None) -> Iterator[Tensor]:
        """What each stage sees in turn, and what the last one leaves: (batch, N, d + n_known).

        Args:
            given: corrupted tokens (batch, N, d).
            sites: boolean (N,) or (batch, N), those that are restored; the others are clamped.
            n_stages: only the first so many; all if None.

        Raises:
            ValueError: for sites of another form; and what the stages raise.
        """
        clamped, state = ~check_mask(sites, given, "sites"), given
        yield state
        for stage, read in list(zip(self.stages, self.reads, strict=True))[:n_stages]:
            x, hidden = (
                (stage(state), None) if read is None else self._with_hidden(stage, read, state)
            )
            x = clamp(x[..., : given.shape[-1]], given, clamped)
            known = [z for z in (hidden, given if self.keeps_given else None) if z is not None]
            state = torch.cat([x, *known], -1)
            yield state

    def seen(self, given: Tensor, sites: Tensor) -> Tensor:
        """What the next stage sees of corrupted tokens: (batch, N, d + n_known)."""
        *_, last = self.states(given, sites)
        return last

    def forward(self, given: Tensor, sites: Tensor, n_stages: int | None = None) -> Tensor:
        """Tokens (batch, N, d), restored by the first n_stages stages, all if None."""
        *_, last = self.states(given, sites, n_stages)
        return last[..., : given.shape[-1]]

    def extra_repr(self) -> str:
        return f"keeps_given={self.keeps_given}, length={self.length}"

    def _with_hidden(self, stage: AttractorNetwork, read: Tensor, state: Tensor) -> tuple:
        """The spins after the update of a stage, and the hidden spins."""
        out = stage.couplings.read_out_matrix()[:, : stage.n_free]
        read = read.to(out).expand(len(out), -1, -1)
        pooled, spins = stage.pooled(state, torch.cat([out, read], 1)), stage.spins(state)
        field = pooled[..., : stage.n_free] + stage.bias + stage.gamma * spins
        hidden = self.length * F.normalize(pooled[..., stage.n_free :], dim=-1)
        return stage.space.project(field, otherwise=spins), hidden


@dataclass(frozen=True)
class AfterStages:
    """A corruption: what a cascade makes of corrupted tokens, for the stage that comes next.

    The next stage is trained by a rule at these states. They are data to it: no error passes back
    to the stages before, which stay as they are.

    Args:
        cascade: the stages before; without any, the corrupted tokens themselves.
        corrupt: (tokens, generator) -> (state, sites).
    """

    cascade: Cascade
    corrupt: Callable

    def __repr__(self) -> str:
        return f"AfterStages({self.cascade!r}, {name_of(self.corrupt)})"

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        state, sites = self.corrupt(tokens, generator)
        return self.cascade.seen(state, sites), sites

    def state_dict(self) -> dict:
        return state_of(self.corrupt)

    def load_state_dict(self, state: dict) -> None:
        load_state(self.corrupt, state)
