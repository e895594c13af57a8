"""Measurements on states and trajectories: errors, overlaps, lifetimes, what is reached."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attractor_lib import kernels
from attractor_lib.dynamics import run
from attractor_lib.embedding import PatchEmbedding


def overlap(x: Tensor, y: Tensor) -> Tensor:
    """m = (1/N) sum_i x_i . y_i, from -1 to 1: (..., N, d) with (..., N, d) to (...)."""
    if x.shape[-2:] != y.shape[-2:]:
        raise ValueError(
            f"x and y must have the same last two dimensions (N, d), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    return (x * y).sum(-1).mean(-1)


def nearest_overlap(x: Tensor, examples: Tensor, block: int = 1000) -> tuple[Tensor, Tensor]:
    """The largest overlap of each state x (batch, N, d) with the examples (n, N, d), and that
    example's index: (batch,).
    """
    if x.shape[1:] != examples.shape[1:] or len(examples) == 0:
        raise ValueError(
            f"examples must have shape (n >= 1, {x.shape[1]}, {x.shape[2]}), got "
            f"{tuple(examples.shape)}"
        )
    flat = examples.flatten(1).mT / x.shape[1]
    best = [(b.flatten(1) @ flat).max(-1) for b in x.split(block)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


@torch.no_grad()
def pixel_error(tokens: Tensor, true: Tensor, sites: Tensor, embedding: PatchEmbedding) -> Tensor:
    """Mean squared error per pixel on some sites of each example: (batch,).

    Args:
        tokens: (batch, N, d), predicted.
        true: (batch, N, P), the pixels of the patches, values in [0, 1].
        sites: boolean (batch, N).
        embedding: how tokens are made of pixels.
    """
    squares = (embedding.pixels(tokens) - true).square().mean(-1) * sites
    return squares.sum(-1) / sites.sum(-1)


def restoration_error(
    update: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
    tokens: Tensor,
    corrupt: Callable,
    embedding: PatchEmbedding,
    n_steps: int = 1,
    seed: int = 0,
    block: int = 1000,
    pixels: Tensor | None = None,
) -> Tensor:
    """Mean squared error per pixel on the corrupted sites, at t = 0 ... n_steps: (n_steps + 1, n).

    One value for each example, so that the caller has the standard error too. Sites that were not
    corrupted are clamped. The corruption is the same for the same seed.

    Args:
        update: a network's ``update``, or any model's prediction; or a sequence of n_steps of them,
            one for each step.
        pixels: (n, N, P) of the true patches, values in [0, 1], where the tokens do not hold all.

    Raises:
        ValueError: for pixels of another number of images.
    """
    generator = torch.Generator(tokens.device).manual_seed(seed)
    pixels = embedding.pixels(tokens) if pixels is None else pixels
    if len(pixels) != len(tokens):
        raise ValueError(f"pixels must be of {len(tokens)} images, as tokens, got {len(pixels)}")
    errors = []
    for x, true in zip(tokens.split(block), pixels.split(block), strict=True):
        state, sites = corrupt(x, generator)
        error = partial(pixel_error, true=true, sites=sites, embedding=embedding)
        errors.append(run(update, state, n_steps, clamped=~sites, observe=error).states)
    return torch.cat(errors, 1)


def operations(call: Callable[[], object]) -> int:
    """Multiplications and additions of the matrix products in a call, counted by torch as they run.

    By the batched kernel and unfused attention, whose products are the same: torch sees neither
    inside a fused kernel nor inside fused attention.
    """

    def in_place(total, a, b, **_):
        return 2 * a[0] * a[1] * a[2] * b[2]

    # not counted by default
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place})
    with kernels.only("batched"), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return counter.get_total_flops()


def transient_lifetime(m: Tensor, threshold: float) -> Tensor:
    """The last step up to which the overlap has stayed at or above the threshold: (batch,).

    0 if it is below already at t = 1; n_steps if it never falls below: read that as "at least".

    Args:
        m: (n_steps + 1, batch), the overlaps.
    """
    if m.ndim != 2:
        raise ValueError(f"m must have shape (n_steps + 1, batch), got {tuple(m.shape)}")
    return (m[1:] >= threshold).long().cumprod(0).sum(0)


def distinct_states(x: Tensor, same: float = 0.99) -> tuple[Tensor, Tensor]:
    """Group states (batch, N, d) of mutual overlap above `same`, greedily.

    A state joins the first group whose representative it matches.

    Returns:
        Indices of one state a group, and the groups' sizes, largest first.
    """
    representatives, sizes = [], []
    left = torch.arange(len(x), device=x.device)
    while len(left):
        matches = overlap(x[left], x[left[0]]) >= same
        matches[0] = True
        representatives.append(left[0])
        sizes.append(matches.sum())
        left = left[~matches]
    if not sizes:
        return left, left
    order = torch.stack(sizes).argsort(descending=True, stable=True)
    return torch.stack(representatives)[order], torch.stack(sizes)[order]


@torch.no_grad()
def retrieval(
    update: Callable[[Tensor], Tensor],
    examples: Tensor,
    corrupt: Callable,
    n_steps: int = 100,
    threshold: float = 0.95,
    clamp: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Whether examples (n, N, d) come back from a corrupted start (10_basins).

    An example xi is retrieved if the run ends at an overlap of at least the threshold with it::

        m(t) = (1/N) sum_i x_i(t) . xi_i ,     m(n_steps) >= threshold

    The best overlap on the way is ``m[1:].amax(0)``.

    Args:
        update: a step function, such as ``network.update``.
        corrupt: (tokens, generator) -> (state, sites). The same for the same seed.
        clamp: hold the sites that were not corrupted.

    Returns:
        Retrieved (n,), and the overlaps m (n_steps + 1, n).

    Raises:
        ValueError: for a threshold outside (-1, 1], or what `run` refuses.
    """
    if not -1 < threshold <= 1:
        raise ValueError(f"threshold must be an overlap, above -1 and at most 1, got {threshold}")
    state, sites = corrupt(examples, torch.Generator(examples.device).manual_seed(seed))
    m = run(
        update,
        state,
        n_steps,
        clamped=~sites if clamp else None,
        observe=lambda x: overlap(x, examples),
    ).states
    return m[-1] >= threshold, m


def basin_radius(strengths: Tensor, fractions: Tensor, level: float = 0.5) -> float:
    """The strength at which the fraction retrieved first falls below `level`.

    Linear between measured points: strengths (k,), rising, and fractions (k,), k >= 2. 0 if it is
    below at the first strength already (there is no basin to speak of); inf if it never falls
    below: the radius is larger than the largest strength tried.
    """
    if (
        strengths.ndim != 1
        or strengths.shape != fractions.shape
        or len(strengths) < 2
        or not (strengths.diff() > 0).all()
    ):
        raise ValueError(
            "expected rising strengths (k >= 2,) and as many fractions, got "
            f"{strengths.tolist()} and "
            f"{fractions.tolist()}"
        )
    below = (fractions < level).nonzero()
    if len(below) == 0:
        return float("inf")
    k = below[0].item()
    if k == 0:
        return 0.0
    high, low = fractions[k - 1].item(), fractions[k].item()
    return (
        strengths[k - 1] + (strengths[k] - strengths[k - 1]) * (high - level) / (high - low)
    ).item()
