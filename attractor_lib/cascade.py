r"""Depth without backpropagation: networks one after the other that hand on hidden spins.

A cascade has one attractor network for each update (14_accuracy_for_its_cost). What stage t + 1
sees of site i is the spin x_i, which stage t has updated, and what is known besides: a hidden spin
z_i, which stage t leaves, and the token that was given at the start (18_hidden_spins). Both x_i and
z_i are vector spins with a local energy, which the attention and the keys of stage t make::

    e_i      = -(1/beta) sum_h log sum_{j != i} exp(beta s_i . J^h_ij s_j) - b_i . x_i ,  s = [x; z]
    e^z_i    = -z_i . o_i ,        o_i = sum_j a^h_i<-j V^h_j s_j of all heads h, the pooled keys
    x_i(t+1) = P[-de_i/dx_i] = P[ sum_h U^h_i^T o^h_i + b_i ]
    z_i(t+1) = rho P[-de^z_i/dz_i] = rho P[ o_i ]

Each stage is trained by a rule at the states that the stages before leave, which stay as they are:
no error passes from a stage to another. All stages may be the same network: a recurrent one, which
learns at the states that it comes to itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attractor_lib.checkpoint import fingerprint, load_state, name_of, state_of
from attractor_lib.checks import check_number, check_whole
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import check_mask, clamp


@torch.no_grad()
def start_from(stage: AttractorNetwork, before: AttractorNetwork) -> None:
    """Let a stage start its training as the one before it: with its bias, and its couplings of
    the components that both know.

    Raises:
        ValueError: for stages that differ in more than what the later one knows besides.
    """
    grows = before.dim, stage.dim
    for p, earlier in zip(stage.parameters(), before.parameters(), strict=True):
        sizes = list(zip(earlier.shape, p.shape, strict=True))
        if grows[0] > grows[1] or any(pair[0] != pair[1] and pair != grows for pair in sizes):
            got = f"{tuple(p.shape)} after {tuple(earlier.shape)}"
            raise ValueError(f"stage may differ from before in what it knows besides, got {got}")
        p[tuple(slice(n) for n in earlier.shape)] = earlier


class Cascade(nn.Module):
    """A network for each update, one after the other; without any, states stay as they are.

    The same network may be added several times. If it is the first, too, and there are hidden
    spins, it knows them from the start, where they are 0.

    Args:
        hidden: whether stages hand on hidden spins.
        given: whether the token that was given at the start is known to all later stages.
        length: rho, that of a hidden spin; > 0.

    Attributes:
        stages: the networks. Without hidden spins other modules that make tokens of tokens may be
            stages, too.

    Raises:
        ValueError: for another length.
    """

    def __init__(self, hidden: bool = False, given: bool = False, length: float = 0.4):
        super().__init__()
        self.hidden, self.given = hidden, given
        self.length = check_number("length", length, 0, open_low=True)
        self.stages = nn.ModuleList()

    def __len__(self) -> int:
        return len(self.stages)

    def n_known(self, dim: int) -> int:
        """Of the next stage's network, where tokens have dim components; the first has none, or as
        many as if it had come before itself.
        """
        return self._left_by(self.stages[-1], dim) if self.stages else 0

    def _left_by(self, stage: nn.Module, dim: int) -> int:
        """The components that a stage leaves beside tokens of dim of them."""
        return (_n_pooled(stage) if self.hidden else 0) + self.given * dim

    def add(self, stage: nn.Module) -> "Cascade":
        """Append a stage, when it is trained.

        Raises:
            ValueError: for a network of other sizes than the stages before leave; and where there
                are hidden spins, for a module that is no network.
        """
        if isinstance(stage, AttractorNetwork):
            fits = [self.n_known(stage.n_free)]
            if not self.stages:
                fits.append(self._left_by(stage, stage.n_free))
            if stage.n_known not in fits:
                expected = " or ".join(map(str, dict.fromkeys(fits)))
                raise ValueError(f"stage must have n_known={expected}, got {stage.n_known}")
            sizes = {(s.n_sites, s.n_free) for s in self.stages if isinstance(s, AttractorNetwork)}
            if sizes - {got := (stage.n_sites, stage.n_free)}:
                raise ValueError(f"stage must have sites and free components {sizes}, got {got}")
        elif self.hidden:
            raise ValueError(f"only an AttractorNetwork has hidden spins, got {type(stage)}")
        self.stages.append(stage)
        return self

    def states(self, given: Tensor, sites: Tensor, n_stages: int | None = None) -> Iterator[Tensor]:
        """What each stage sees in turn, and what the last one leaves: (batch, N, d + n_known).

        Args:
            given: corrupted tokens (batch, N, d).
            sites: boolean (N,) or (batch, N), those that are restored; the others are clamped.
            n_stages: only the first so many; all if None.

        Raises:
            ValueError: for sites of another form, or more stages than there are; and what the
                stages raise.
        """
        if n_stages is not None:
            check_whole("n_stages", n_stages, 0, len(self))
        clamped, state = ~check_mask(sites, given, "sites"), given
        if self.stages and getattr(self.stages[0], "n_known", 0):
            known = [given] if self.given else []
            hidden = self.stages[0].n_known - self.given * self.stages[0].n_free
            state = torch.cat([given, given.new_zeros(*given.shape[:-1], hidden), *known], -1)
        yield state
        for stage in self.stages[:n_stages]:
            x, known = self._with_hidden(stage, state) if self.hidden else (stage(state), [])
            x = clamp(x[..., : given.shape[-1]], given, clamped)
            state = torch.cat([x, *known, *([given] if self.given else [])], -1)
            yield state

    def _with_hidden(self, stage: AttractorNetwork, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The update of a stage, and the hidden spins, from the same pooled keys."""
        o = stage.pooled(state)
        h = stage.read_out(o.transpose(1, 2))
        return stage.moved(state, h), [self.length * F.normalize(o.flatten(2), dim=-1)]

    def seen(self, given: Tensor, sites: Tensor, n_stages: int | None = None) -> Tensor:
        """What the next stage sees of corrupted tokens: (batch, N, d + n_known)."""
        *_, last = self.states(given, sites, n_stages)
        return last

    def forward(self, given: Tensor, sites: Tensor, n_stages: int | None = None) -> Tensor:
        """Tokens (batch, N, d), restored by the first n_stages stages, all if None."""
        return self.seen(given, sites, n_stages)[..., : given.shape[-1]]

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, given={self.given}, length={self.length}"


def _n_pooled(stage: AttractorNetwork) -> int:
    c = stage.couplings
    return c.n_heads * (c.dim if c.pairwise else c.rank)


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
        stages = f"{self.cascade!r}, {fingerprint(self.cascade)}"
        return f"AfterStages({stages}, {name_of(self.corrupt)})"

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        state, sites = self.corrupt(tokens, generator)
        return self.cascade.seen(state, sites), sites

    def state_dict(self) -> dict:
        return state_of(self.corrupt)

    def load_state_dict(self, state: dict) -> None:
        load_state(self.corrupt, state)


@dataclass(frozen=True)
class AmongStages(AfterStages):
    """A corruption: what some stages make of corrupted tokens, from none to all but the last; as
    many for a whole batch, drawn anew for each (18_hidden_spins).

    So a recurrent network learns, which all the stages are: at the states that it comes to with
    the couplings that it has by then. Those are data to the rule: no error passes through time.
    (``learning.own_trajectory`` has this for a network without hidden spins.)

    Args:
        cascade: one network, added as often as it is to be used.
        corrupt: as for `AfterStages`.

    Raises:
        ValueError: for stages that are not one network, or none.
    """

    def __post_init__(self):
        if len(networks := set(self.cascade.stages)) != 1:
            raise ValueError(f"the stages of cascade must be one network, got {len(networks)}")

    def __repr__(self) -> str:
        return f"AmongStages({self.cascade!r}, {name_of(self.corrupt)})"

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        state, sites = self.corrupt(tokens, generator)
        draw = torch.rand((), generator=generator, device=tokens.device).item()
        return self.cascade.seen(state, sites, int(draw * len(self.cascade))), sites
