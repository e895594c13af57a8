"""Tokens that carry their site, for couplings that are the same for all pairs (12_ablations)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.learning.rules import Gradients


def with_positions(x: Tensor, c: float) -> Tensor:
    """Tokens that carry their site: (x_i, c onehot_i) / sqrt(1 + c^2), (batch, N, d + N)."""
    position = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    return torch.cat([x, c * position], -1) / math.sqrt(1 + c**2)


def without_positions(x: Tensor) -> Tensor:
    """The inverse: the first d components put back on the sphere, (batch, N, d)."""
    return F.normalize(x[..., : -x.shape[1]], dim=-1)


def positioned(rule: Callable, c: float) -> Callable:
    """The rule for a network on tokens with positions, called with tokens without.

    Positions are given, not predicted: their residual is made zero by a target that equals the
    field there.
    """

    @torch.no_grad()
    def positioned_rule(
        network, state: Tensor, target: Tensor, sites: Tensor | None = None
    ) -> tuple[Tensor, Gradients]:
        s = with_positions(state, c)
        target = torch.cat(
            [target / math.sqrt(1 + c**2), network.field(s)[..., target.shape[-1] :]], -1
        )
        return rule(network, s, target, sites)

    positioned_rule.__name__ = f"positioned {rule.__name__}"
    return positioned_rule
