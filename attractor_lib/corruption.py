"""What is done to clean tokens before a model sees them: some are hidden or turned, or the pixels get noise.

A corruption is a function ``corrupt(tokens, generator) -> state, sites``: the corrupted tokens (batch, N, d), on the
sphere, and the sites (batch, N) that a model is to restore. The attractor and the baselines share them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.embedding import PatchEmbedding


def no_corruption(tokens: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The clean example itself, every site predicted from the others."""
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def mean_token(tokens: Tensor) -> Tensor:
    """The mean over examples of each site's token, put back on the sphere: (N, d)."""
    return F.normalize(tokens.mean(0), dim=-1)


@dataclass(frozen=True)
class HideTokens:
    """Put `fill` (N, d) in place of `n_hidden` of each example's N tokens, chosen at random.

    With `least` given, each example hides a number of its own, drawn uniformly from least ... n_hidden.
    """

    n_hidden: int
    fill: Tensor
    least: int | None = None

    def __post_init__(self):
        if not 1 <= self.n_hidden <= len(self.fill):
            raise ValueError(f"n_hidden must be between 1 and the number of sites {len(self.fill)}, got {self.n_hidden}")
        if self.least is not None and not 1 <= self.least <= self.n_hidden:
            raise ValueError(f"least must be between 1 and n_hidden = {self.n_hidden}, got {self.least}")

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if tokens.shape[1:] != self.fill.shape:
            raise ValueError(f"tokens must be (batch, {', '.join(map(str, self.fill.shape))}) as fill is, got {tuple(tokens.shape)}")
        order = torch.rand(tokens.shape[:2], generator=generator, device=tokens.device).argsort(-1)
        hidden = self.n_hidden
        if self.least is not None:
            hidden = torch.randint(self.least, self.n_hidden + 1, (len(tokens), 1), generator=generator, device=tokens.device)
        sites = order < hidden
        return torch.where(sites[..., None], self.fill, tokens), sites


@dataclass(frozen=True)
class AddNoise:
    """Add Gaussian noise of standard deviation `low` to `high` (drawn for each image) to the pixels, cut to [0, 1]."""

    low: float
    high: float
    embedding: PatchEmbedding

    def __post_init__(self):
        if not 0 <= self.low <= self.high:
            raise ValueError(f"noise must satisfy 0 <= low <= high, got low={self.low}, high={self.high}")

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = self.embedding.decode(tokens)
        draw = {"generator": generator, "device": tokens.device, "dtype": tokens.dtype}
        sigma = self.low + (self.high - self.low) * torch.rand((len(images), 1, 1), **draw)
        noisy = (images + sigma * torch.randn(images.shape, **draw)).clamp(0, 1)
        return self.embedding.encode(noisy), torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


@dataclass(frozen=True)
class Rotate:
    """Turn every token by `angle` radians, 0 to pi, in a direction of its own, drawn evenly from the tangent space.

        s_i = cos(angle) x_i + sin(angle) u_i,   u_i . x_i = 0,   |u_i| = 1

    The overlap with the original is exactly cos(angle), on each site (notebook 10_basins). Tokens need d >= 2.
    """

    angle: float

    def __post_init__(self):
        if not 0 <= self.angle <= math.pi:
            raise ValueError(f"angle must be between 0 and pi radians, got {self.angle}")

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if tokens.shape[-1] < 2:
            raise ValueError(f"tokens must have at least 2 components to be turned, got {tokens.shape[-1]}")
        u = torch.randn(tokens.shape, generator=generator, device=tokens.device, dtype=tokens.dtype)
        u = F.normalize(u - (u * tokens).sum(-1, keepdim=True) * tokens, dim=-1)
        sites = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return math.cos(self.angle) * tokens + math.sin(self.angle) * u, sites
