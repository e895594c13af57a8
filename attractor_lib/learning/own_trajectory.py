"""Learning on states along the network's own trajectories, with no gradient through time."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor_lib.checkpoint import load_state, name_of, state_of
from attractor_lib.dynamics import run
from attractor_lib.learning.rules import Gradients
from attractor_lib.model import AttractorNetwork


@dataclass(frozen=True)
class OwnTrajectory:
    """A corruption: states that the network comes to from corrupted ones (13_memories_that_stay).

    A batch is first corrupted by `corrupt`. With probability `share` the network then takes it T
    steps on, T drawn uniformly from 1 ... max_steps for the whole batch; sites that were not
    corrupted are clamped. Nothing is kept of the way there, so a rule applied to the result passes
    no error through time.

    Args:
        update: the network's own ``update``, as it is at that moment of the training.
        corrupt: (tokens, generator) -> (state, sites).
        max_steps: the longest way, at least 1.
        share: of the batches that are taken on, from 0 to 1.

    Raises:
        ValueError: for max_steps or share out of range.
    """

    update: Callable[[Tensor], Tensor]
    corrupt: Callable
    max_steps: int
    share: float = 0.5

    def __post_init__(self):
        if self.max_steps < 1 or not 0 <= self.share <= 1:
            raise ValueError(
                "max_steps must be at least 1 and share from 0 to 1, "
                f"got {self.max_steps} and {self.share}"
            )

    def __repr__(self) -> str:
        corrupt = name_of(self.corrupt)
        return f"OwnTrajectory({corrupt}, max_steps={self.max_steps}, share={self.share})"

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        state, sites = self.corrupt(tokens, generator)
        draw, where = torch.rand(2, generator=generator, device=tokens.device).tolist()
        if draw < self.share:
            n_steps = 1 + int(where * self.max_steps)
            state = run(self.update, state, n_steps, clamped=~sites).final
        return state, sites

    def state_dict(self) -> dict:
        return state_of(self.corrupt)

    def load_state_dict(self, state: dict) -> None:
        load_state(self.corrupt, state)


class PersistentTrajectories:
    """A rule that applies another to states on the network's own way (13_memories_that_stay)::

        s(0) = the corrupted example ,     the rule at every s it comes to: h(s) is to equal x ,
        s(t + n_steps) = n_steps updates of s(t), uncorrupted sites clamped

    The trajectories of `n_batches` batches are kept. Each call takes up the one that has waited
    longest, runs it `n_steps` on with the couplings as they are now, starts each of its examples
    afresh with probability `renewal` (with the corrupted example that the trainer has given), and
    applies the rule. So the age of a state is n_steps times a geometric number, from 0 on, of mean
    1/renewal - 1, and costs n_steps updates a batch however old it is. s is data to the rule: no
    error passes through a step. (Persistent contrastive divergence keeps its chains so, too.)

    Until n_batches batches have come, all are fresh. What is kept is part of a checkpoint, whose
    size it may well be.

    Args:
        rule: (network, state, target, sites) -> (loss, gradients), such as ``prediction_rule``.
        n_steps: updates between two visits, at least 1.
        renewal: probability of a fresh start at a visit, in (0, 1]. At 1 this is the plain rule.
        n_batches: batches kept, at least 1; two states' worth of memory each. With few, successive
            batches are alike.
        seed: of the fresh starts.

    Raises:
        ValueError: for arguments out of range, or a batch of another size than the ones kept.
    """

    def __init__(
        self,
        rule: Callable,
        n_steps: int = 3,
        renewal: float = 0.05,
        n_batches: int = 240,
        seed: int = 0,
    ):
        if n_steps < 1 or n_batches < 1 or not 0 < renewal <= 1:
            raise ValueError(
                "n_steps and n_batches must be at least 1 and renewal in (0, 1], "
                f"got {n_steps}, {n_batches} and {renewal}"
            )
        self.rule, self.n_steps, self.renewal = rule, n_steps, renewal
        self.n_batches, self.seed = n_batches, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.kept: deque[tuple[Tensor, Tensor, Tensor]] = deque()

    def __repr__(self) -> str:
        return (
            f"PersistentTrajectories({name_of(self.rule)}, n_steps={self.n_steps}, "
            f"renewal={self.renewal}, n_batches={self.n_batches}, seed={self.seed})"
        )

    @torch.no_grad()
    def __call__(
        self, network: AttractorNetwork, state: Tensor, target: Tensor, sites: Tensor
    ) -> tuple[Tensor, Gradients]:
        """Loss and gradients by name, of the batch taken up; `state` may start it afresh."""
        if len(self.kept) == self.n_batches:
            s, x, where = (part.to(state.device) for part in self.kept.popleft())
            if s.shape != state.shape:
                raise ValueError(
                    f"state must have the shape of the batches kept, {tuple(s.shape)}, "
                    f"got {tuple(state.shape)}"
                )
            s = run(network.update, s, self.n_steps, clamped=~where).final
            fresh = (torch.rand(len(s), generator=self.generator) < self.renewal).to(s.device)
            state = torch.where(fresh[:, None, None], state, s)
            target = torch.where(fresh[:, None, None], target, x)
            sites = torch.where(fresh[:, None], sites, where)
        self.kept.append((state, target, sites))
        return self.rule(network, state, target, sites)

    def state_dict(self) -> dict:
        return {
            "rule": state_of(self.rule),
            "generator": state_of(self.generator),
            "kept": list(self.kept),
        }

    def load_state_dict(self, state: dict) -> None:
        load_state(self.rule, state["rule"])
        load_state(self.generator, state["generator"])
        self.kept = deque(state["kept"])
