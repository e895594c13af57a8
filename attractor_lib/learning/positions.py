"""Tokens that carry their site, for couplings that are the same for all pairs (12_ablations)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.checkpoint import load_state, name_of, state_of
from attractor_lib.learning.rules import Gradients


def with_positions(x: Tensor, c: float) -> Tensor:
    """Tokens that carry their site: (x_i, c onehot_i) / sqrt(1 + c^2), (batch, N, d + N)."""
    position = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    return torch.cat([x, c * position], -1) / math.sqrt(1 + c**2)


def without_positions(x: Tensor) -> Tensor:
    """The inverse: the first d components put back on the sphere, (batch, N, d)."""
    return F.normalize(x[..., : -x.shape[1]], dim=-1)


@dataclass(frozen=True)
class Positioned:
    """A rule for a network on tokens with positions, called with tokens without.

    Positions are given, not predicted: their residual is made zero by a target that equals the
    field there.

    Args:
        rule: (network, state, target, sites) -> (loss, gradients), such as ``prediction_rule``.
            What it carries from step to step is part of a checkpoint.
        c: weight of the positions, see `with_positions`.
    """

    rule: Callable
    c: float

    def __repr__(self) -> str:
        return f"Positioned({name_of(self.rule)}, c={self.c})"

    @torch.no_grad()
    def __call__(
        self, network, state: Tensor, target: Tensor, sites: Tensor | None = None
    ) -> tuple[Tensor, Gradients]:
        """Loss and gradients by name, at tokens without positions (batch, N, d)."""
        s = with_positions(state, self.c)
        positions = network.field(s)[..., target.shape[-1] :]
        target = torch.cat([target / math.sqrt(1 + self.c**2), positions], -1)
        return self.rule(network, s, target, sites)

    def state_dict(self) -> dict:
        return {"rule": state_of(self.rule)}

    def load_state_dict(self, state: dict) -> None:
        load_state(self.rule, state["rule"])
