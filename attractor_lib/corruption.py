"""What is done to clean tokens before a model sees them: they are hidden, turned, or get noise.

A corruption is a function ``corrupt(tokens, generator) -> state, sites``: the corrupted tokens
(batch, N, d), on the sphere, and the sites (batch, N), boolean, that a model is to restore. The
attractor and the baselines share them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.checkpoint import sketch
from attractor_lib.checks import check_number, check_whole
from attractor_lib.embedding import PatchEmbedding


def _all_sites(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def no_corruption(
    tokens: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The clean example itself, every site predicted from the others."""
    return tokens, _all_sites(tokens)


def mean_token(tokens: Tensor) -> Tensor:
    """The mean over examples of each site's token, put back on the sphere: (N, d)."""
    return F.normalize(tokens.mean(0), dim=-1)


@dataclass(frozen=True)
class HideTokens:
    """Put another token in place of some of each example's N, chosen at random.

    Args:
        n_hidden: how many, 1 to N.
        fill: (N, d), the token that stands in at each site.
        least: if given, each example hides a number of its own, drawn uniformly from least ...
            n_hidden.

    Raises:
        ValueError: for numbers out of range, and for tokens of another shape than fill.
    """

    n_hidden: int
    fill: Tensor
    least: int | None = None

    def __post_init__(self):
        check_whole("n_hidden", self.n_hidden, 1, len(self.fill))
        if self.least is not None:
            check_whole("least", self.least, 1, self.n_hidden)

    def __repr__(self) -> str:
        fill = sketch(self.fill)
        return f"HideTokens(n_hidden={self.n_hidden}, fill={fill}, least={self.least})"

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if tokens.shape[1:] != self.fill.shape:
            raise ValueError(
                f"tokens must be (batch, {', '.join(map(str, self.fill.shape))}) as fill is, "
                f"got {tuple(tokens.shape)}"
            )
        draw = {"generator": generator, "device": tokens.device}
        order = torch.rand(tokens.shape[:2], **draw).argsort(-1)
        hidden = self.n_hidden
        if self.least is not None:
            hidden = torch.randint(self.least, self.n_hidden + 1, (len(tokens), 1), **draw)
        sites = order < hidden
        return torch.where(sites[..., None], self.fill, tokens), sites


@dataclass(frozen=True)
class AddNoise:
    """Add Gaussian noise to the pixels, cut to [0, 1]; every site is to be restored.

    Args:
        low, high: each image has a standard deviation of its own, drawn uniformly between them;
            0 <= low <= high, in units of the pixels' range.
        embedding: how tokens are made of pixels.

    Raises:
        ValueError: for low and high out of range.
    """

    low: float
    high: float
    embedding: PatchEmbedding

    def __post_init__(self):
        check_number("low", self.low, 0)
        check_number("high", self.high, self.low)

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = self.embedding.decode(tokens)
        draw = {"generator": generator, "device": tokens.device, "dtype": tokens.dtype}
        each = len(images), *[1] * (images.ndim - 1)  # three colours have one sigma
        sigma = self.low + (self.high - self.low) * torch.rand(each, **draw)
        noisy = (images + sigma * torch.randn(images.shape, **draw)).clamp(0, 1)
        return self.embedding.encode(noisy), _all_sites(tokens)


@dataclass(frozen=True)
class Rotate:
    """Turn every token by an angle in a direction of its own, drawn evenly from the tangent space::

        s_i = cos(angle) x_i + sin(angle) u_i ,     u_i . x_i = 0 ,     |u_i| = 1

    The overlap with the original is exactly cos(angle), on each site (10_basins).

    Args:
        angle: 0 to pi, in radians.

    Raises:
        ValueError: for another angle, and for tokens of fewer than 2 components.
    """

    angle: float

    def __post_init__(self):
        if not 0 <= self.angle <= math.pi:
            raise ValueError(f"angle must be between 0 and pi radians, got {self.angle}")

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if tokens.shape[-1] < 2:
            raise ValueError(
                f"tokens must have at least 2 components to be turned, got {tokens.shape[-1]}"
            )
        draw = {"generator": generator, "device": tokens.device, "dtype": tokens.dtype}
        u = torch.randn(tokens.shape, **draw)
        u = F.normalize(u - (u * tokens).sum(-1, keepdim=True) * tokens, dim=-1)
        return math.cos(self.angle) * tokens + math.sin(self.angle) * u, _all_sites(tokens)
