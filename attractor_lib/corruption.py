"""What is done to clean tokens before a model sees them: some are hidden, or the pixels get noise.

A corruption is a function ``corrupt(tokens, generator) -> state, sites``: the corrupted tokens (batch, N, d), on the
sphere, and the sites (batch, N) that a model is to restore. The attractor and the baselines share them.
"""

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
    """Put `fill` (N, d) in place of `n_hidden` of each example's N tokens, chosen at random."""

    n_hidden: int
    fill: Tensor

    def __post_init__(self):
        if not 1 <= self.n_hidden <= len(self.fill):
            raise ValueError(f"n_hidden must be between 1 and the number of sites {len(self.fill)}, got {self.n_hidden}")

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        order = torch.rand(tokens.shape[:2], generator=generator, device=tokens.device).argsort(-1)
        sites = order < self.n_hidden
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
