"""Learning on states along the network's own trajectories, with no gradient through time: thrown away or kept."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attractor_lib.dynamics import run
from attractor_lib.learning import Gradients
from attractor_lib.model import AttractorNetwork


@dataclass(frozen=True)
class OwnTrajectory:
    """States that the network itself produces on its way from corrupted ones (notebook 13_memories_that_stay).

    A batch is first corrupted by `corrupt`. With probability `share` the network then takes it T steps on, T drawn
    uniformly from 1 ... max_steps for the whole batch; sites that were not corrupted are clamped. Nothing is kept of the
    way there, so a rule applied to the result passes no error through time.

    update: the network's own ``update``, as it is at that moment of the training.
    """

    update: Callable[[Tensor], Tensor] = field(repr=False)
    corrupt: Callable
    max_steps: int
    share: float = 0.5

    def __post_init__(self):
        if self.max_steps < 1 or not 0 <= self.share <= 1:
            raise ValueError(f"max_steps must be at least 1 and share from 0 to 1, got {self.max_steps} and {self.share}")

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        state, sites = self.corrupt(tokens, generator)
        draw, where = torch.rand(2, generator=generator, device=tokens.device).tolist()
        if draw < self.share:
            state = run(self.update, state, 1 + int(where * self.max_steps), clamped=~sites).final
        return state, sites


@dataclass(frozen=True)
class AfterStages:
    """States that networks trained before leave: what the next stage of a cascade learns from.

        s(t) = update of stage t at s(t-1) ,   s(0) = the corrupted example ,   sites that were not corrupted clamped

    A cascade is an attractor network with couplings J(t) of its own for each update. Stage t + 1 is trained by a rule at
    s(t), which is data to it: no error passes back to the stages before, which stay as they are.

    updates: the ``update`` of each stage before, in order; none for the first.
    """

    updates: tuple[Callable[[Tensor], Tensor], ...] = field(repr=False)
    corrupt: Callable

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        state, sites = self.corrupt(tokens, generator)
        if self.updates:
            state = run(self.updates, state, len(self.updates), clamped=~sites, observe=lambda x: x[:0]).final
        return state, sites


class PersistentTrajectories:
    """A rule for ``train`` that applies another rule to states on the network's own way (notebook 13_memories_that_stay).

        s(0) = the corrupted example ,   s(t + n_steps) = n_steps updates of s(t), uncorrupted sites clamped ,
        the rule at every s it comes to:   h(s) is to equal the example x

    The trajectories of `n_batches` batches are kept. Each call takes up the one that has waited longest, runs it
    `n_steps` on with the couplings as they are now, starts each of its examples afresh with probability `renewal` (with
    the corrupted example that the trainer has given), and applies the rule. So the age of a state is n_steps times a
    geometric number of mean 1/renewal, and costs n_steps updates a batch however old it is. s is data to the rule: no
    error passes through a step. (Persistent contrastive divergence keeps its chains in the same way.)

    rule: (network, state, target, sites) -> (loss, gradients), such as ``prediction_rule``.
    n_steps: updates between two visits, at least 1.
    renewal: probability of a fresh start at a visit, in (0, 1]. At 1 this is the plain rule.
    n_batches: batches kept, at least 1; three states' worth of memory each. With few, successive batches are alike.
    seed: of the fresh starts.
    Until n_batches batches have come, all are fresh. The trajectories are no part of a checkpoint: a resumed training
    starts them anew. Raises ValueError for arguments out of range, or a batch of another size than the ones kept.
    """

    def __init__(self, rule: Callable, n_steps: int = 3, renewal: float = 0.05, n_batches: int = 240, seed: int = 0):
        if n_steps < 1 or n_batches < 1 or not 0 < renewal <= 1:
            raise ValueError("n_steps and n_batches must be at least 1 and renewal in (0, 1], "
                             f"got {n_steps}, {n_batches} and {renewal}")
        self.rule, self.n_steps, self.renewal, self.n_batches, self.seed = rule, n_steps, renewal, n_batches, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.kept: deque[tuple[Tensor, Tensor, Tensor]] = deque()

    def __repr__(self) -> str:
        return (f"PersistentTrajectories({getattr(self.rule, '__name__', self.rule)}, n_steps={self.n_steps}, "
                f"renewal={self.renewal}, n_batches={self.n_batches}, seed={self.seed})")

    @torch.no_grad()
    def __call__(self, network: AttractorNetwork, state: Tensor, target: Tensor, sites: Tensor) -> tuple[Tensor, Gradients]:
        if len(self.kept) == self.n_batches:
            s, x, where = self.kept.popleft()
            if s.shape != state.shape:
                raise ValueError(f"state must have the shape of the batches kept, {tuple(s.shape)}, got {tuple(state.shape)}")
            s = run(network.update, s, self.n_steps, clamped=~where).final
            fresh = (torch.rand(len(s), generator=self.generator) < self.renewal).to(s.device)
            state, target = (torch.where(fresh[:, None, None], new, old) for new, old in ((state, s), (target, x)))
            sites = torch.where(fresh[:, None], sites, where)
        self.kept.append((state, target, sites))
        return self.rule(network, state, target, sites)
