"""States: vector spins on the unit sphere, which of them a rule predicts, and which are held."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def project(x: Tensor, otherwise: Tensor) -> Tensor:
    """P: each token divided by its norm; where that is zero, `otherwise` stands. NaN stays NaN."""
    norm = x.norm(dim=-1, keepdim=True)
    none = norm == 0  # divided by 1 there: autograd makes NaN even of a 0 / 0 that is not taken
    return torch.where(none, otherwise, x / norm.masked_fill(none, 1))


def check_norms(x: Tensor, name: str) -> Tensor:
    """x, if every token (last axis) has norm 1 to 1e-3; else ValueError."""
    off = (x.detach().norm(dim=-1) - 1).abs()
    if not (off <= 1e-3).all():  # written so that NaN fails too
        raise ValueError(
            f"{name} must have tokens of norm 1, got norms that differ from 1 by up to "
            f"{off.max():.3g}"
        )
    return x


def is_finite(x: Tensor) -> bool:
    """Whether no number of x is NaN or infinite.

    A finite sum has finite terms only. An infinite one may have, too: then each is looked at.
    """
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


@dataclass(frozen=True)
class Sphere:
    """Where the tokens live: on the unit sphere, |x_i| = 1."""

    unit = True

    def check(self, x: Tensor, name: str) -> Tensor:
        return check_norms(x, name)

    def project(self, x: Tensor, otherwise: Tensor) -> Tensor:
        return project(x, otherwise)


@dataclass(frozen=True)
class Flat:
    """Tokens of any finite norm: the update without its projection P (an ablation)."""

    unit = False

    def check(self, x: Tensor, name: str) -> Tensor:
        if not is_finite(x):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        return x

    def project(self, x: Tensor, otherwise: Tensor) -> Tensor:
        return x


def check_mask(mask: Tensor, x: Tensor, name: str) -> Tensor:
    """mask, if boolean, (N,) or (batch, N) for x (batch, N, ...), on its device; else
    ValueError.
    """
    if isinstance(mask, Tensor):
        fits = mask.dtype == torch.bool and mask.shape in (x.shape[:2], x.shape[1:2])
        if fits and mask.device == x.device:
            return mask
        got = f"{mask.dtype} of shape {tuple(mask.shape)} on {mask.device}"
    else:
        got = type(mask).__name__
    raise ValueError(
        f"{name} must be boolean of shape {tuple(x.shape[1:2])} or {tuple(x.shape[:2])} on "
        f"{x.device}, got {got}"
    )


def clamp(new: Tensor, old: Tensor, clamped: Tensor | None) -> Tensor:
    """The new state, but for the clamped sites, (N,) or (batch, N): they keep their old token."""
    return new if clamped is None else torch.where(clamped[..., None], old, new)


def check_example(network, state: Tensor, target: Tensor, sites: Tensor | None) -> Tensor:
    """The sites (batch, N) that a rule predicts, if the example is valid; else ValueError."""
    network.check(state, "state")
    if len(state) == 0:
        raise ValueError("state must hold at least one example, got an empty batch")
    shape = network.spins(state).shape
    if (target.shape, target.dtype, target.device) != (shape, state.dtype, state.device):
        raise ValueError(
            f"target must be {state.dtype} of shape {tuple(shape)} on {state.device}, "
            f"got {target.dtype} of shape {tuple(target.shape)} on {target.device}"
        )
    if target is not state and not is_finite(target):
        raise ValueError("target must be finite, got NaN or infinity")
    if sites is None:
        sites = torch.ones(state.shape[1], dtype=torch.bool, device=state.device)
    return check_mask(sites, state, "sites").expand(state.shape[:2])


def exclude_self(values: Tensor) -> Tensor:
    """values (..., i, j) with -inf on the diagonal j = i."""
    itself = torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
    return values.masked_fill(itself, -math.inf)


def blocks(network, *states: Tensor):
    """Views of the states over blocks of examples whose keys stay in the processor's cache.

    So working memory does not grow with the batch. A block has one example at least.
    """
    n = len(states[0])
    parts = max(1, min(n, -(-n * network.couplings.numbers_per_example // 2**20)))
    return zip(*(s.tensor_split(parts) for s in states), strict=True)


def builds_graph(network, x: Tensor) -> bool:
    """Whether autograd is to follow what is computed: it cannot follow a fused kernel."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *network.parameters()))
