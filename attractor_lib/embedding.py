"""Images as vector spins: patches of pixels, placed on the unit sphere without loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


class PatchEmbedding:
    """A square image as N tokens on the unit sphere, and back (notebook 02_images_as_spins).

    The P pixels p in [0, 1] of a patch become u = 2p - 1, and the token is
        x = (u, sqrt(P + 1 - |u|^2)) / sqrt(P + 1) in R^d, d = P + 1, |x| = 1.
    The last component is what |u| leaves, so nothing is lost and every patch has its own point on the sphere.

    Arguments
        image_size: height = width in pixels.
        patch_size: height = width of a patch; must divide image_size.
    Sites run row by row over the patches, components row by row over a patch's pixels.
    """

    def __init__(self, image_size: int, patch_size: int):
        if image_size < 1 or patch_size < 1 or image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size, got image_size={image_size}, patch_size={patch_size}")
        self.image_size, self.patch_size = image_size, patch_size
        self.n_pixels = patch_size**2
        self.n_sites = (image_size // patch_size) ** 2
        self.dim = self.n_pixels + 1

    def __repr__(self) -> str:
        return f"PatchEmbedding(image_size={self.image_size}, patch_size={self.patch_size})"

    def encode(self, images: Tensor) -> Tensor:
        """Images (batch, height, width) with values in [0, 1] to tokens (batch, N, d)."""
        size = self.image_size
        if images.ndim != 3 or images.shape[1:] != (size, size):
            raise ValueError(f"images must have shape (batch, {size}, {size}), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}: divide 8-bit values by 255")
        if len(images) and not (images.min() >= 0 and images.max() <= 1):  # NaN fails too
            raise ValueError(f"images must have values in [0, 1], got [{images.min():.3g}, {images.max():.3g}]")
        u = 2 * F.unfold(images[:, None], self.patch_size, stride=self.patch_size).mT - 1
        rest = (self.dim - u.square().sum(-1, keepdim=True)).sqrt()
        return torch.cat([u, rest], -1) / self.dim**0.5

    def pixels(self, tokens: Tensor) -> Tensor:
        """The pixels (batch, N, P) of each token; of a token that is no patch, the nearest values in [0, 1]."""
        if tokens.ndim != 3 or tokens.shape[1:] != (self.n_sites, self.dim):
            raise ValueError(f"tokens must have shape (batch, {self.n_sites}, {self.dim}), got {tuple(tokens.shape)}")
        if tokens.isnan().any():
            raise ValueError("tokens must be numbers, got NaN")
        return ((tokens[..., :-1] * self.dim**0.5 + 1) / 2).clamp(0, 1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, N, d) to images (batch, height, width): the exact inverse of `encode`."""
        return F.fold(self.pixels(tokens).mT, self.image_size, self.patch_size, stride=self.patch_size)[:, 0]
