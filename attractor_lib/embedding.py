"""Images as vector spins: patches of pixels, or their low frequencies, on the unit sphere."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.checkpoint import sketch
from attractor_lib.checks import check_whole


class PatchEmbedding:
    """A square image as N tokens on the unit sphere, and back (02_images_as_spins).

    The P pixels p in [0, 1] of a patch become u = 2p - 1, and the token is::

        x = (u, sqrt(P + 1 - |u|^2)) / sqrt(P + 1) in R^d ,     d = P + 1 ,     |x| = 1

    The last component is what ``|u|`` leaves, so nothing is lost and every patch has its own point
    on the sphere. With ``n_frequencies=c`` a token holds C u in place of u, the c lowest
    frequencies of the patch's discrete cosine transform (C: c orthonormal rows), and d = c + 1.
    Then `pixels` gives the patch without its high frequencies. In colour, P counts the values of
    all channels, and a frequency is one of one channel. With `components` each site has a C of its
    own, which may be learned (`principal_components`).

    Args:
        image_size: height = width in pixels.
        patch_size: height = width of a patch; must divide image_size.
        n_frequencies: None for all pixels, or c from 1 to P.
        channels: 1 for images (batch, height, width), or more for (batch, channels, height, width).
        components: in place of n_frequencies, C of each site: (N, c, P), orthonormal rows.

    Sites run row by row over the patches. Components run channel by channel, in each row by row
    over a patch's pixels; or from low frequency to high, the channels of each side by side.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        n_frequencies: int | None = None,
        channels: int = 1,
        components: Tensor | None = None,
    ):
        check_whole("image_size", image_size, 1)
        if image_size % check_whole("patch_size", patch_size, 1):
            raise ValueError(
                f"patch_size must divide image_size, got image_size={image_size}, "
                f"patch_size={patch_size}"
            )
        check_whole("channels", channels, 1)
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        self.n_pixels = channels * patch_size**2
        self.n_sites = (image_size // patch_size) ** 2
        self.n_frequencies = n_frequencies
        if components is not None:
            self.dim, self.C = self._check(components).shape[1] + 1, components
        elif n_frequencies is None:
            self.dim, self.C = self.n_pixels + 1, None
        else:
            n = check_whole("n_frequencies", n_frequencies, 1, self.n_pixels)
            self.dim, self.C = n + 1, _cosines(patch_size, channels)[:n]

    def _check(self, components: Tensor) -> Tensor:
        n, p = self.n_sites, self.n_pixels
        if not isinstance(components, Tensor):
            raise ValueError(f"components must be a tensor, got {type(components).__name__}")
        if self.n_frequencies is not None:
            got = self.n_frequencies
            raise ValueError(f"n_frequencies must be None where components are given, got {got}")
        got = tuple(components.shape)
        if len(got) != 3 or got[1] < 1 or (got[0], got[2]) != (n, p):
            raise ValueError(f"components must have shape ({n}, c >= 1, {p}), got {got}")
        off = (components @ components.mT - torch.eye(got[1]).to(components)).abs().max()
        if not off < 1e-4:
            raise ValueError(
                f"components must have orthonormal rows, got products off by {off:.2g}"
            )
        return components

    def __repr__(self) -> str:
        low = "" if self.n_frequencies is None else f", n_frequencies={self.n_frequencies}"
        if self.n_frequencies is None and self.C is not None:
            low = f", components={sketch(self.C)}"
        low += "" if self.channels == 1 else f", channels={self.channels}"
        return f"PatchEmbedding(image_size={self.image_size}, patch_size={self.patch_size}{low})"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image: (height, width), or (channels, height, width)."""
        return ((self.channels,) if self.channels > 1 else ()) + 2 * (self.image_size,)

    def check(self, images: Tensor) -> Tensor:
        """images, if they are (batch, *image_shape) with values in [0, 1]; else ValueError."""
        if not isinstance(images, Tensor):
            raise ValueError(
                f"images must be a torch.Tensor, got {type(images).__name__}: torch.as_tensor "
                "makes one of an array"
            )
        if images.ndim != 1 + len(self.image_shape) or images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"images must have shape (batch, {expected}), got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"images must be floating point in [0, 1], got {images.dtype}: divide 8-bit "
                "values by 255"
            )
        if len(images) and not (images.min() >= 0 and images.max() <= 1):  # NaN fails too
            raise ValueError(
                f"images must have values in [0, 1], got [{images.min():.3g}, {images.max():.3g}]"
            )
        return images

    def encode(self, images: Tensor) -> Tensor:
        """Images (batch, *image_shape) with values in [0, 1] to tokens (batch, N, d)."""
        self.check(images)
        u = 2 * self.patches(images) - 1
        if self.C is not None:
            u = self._in_frame(u, self.C.to(u).mT)
        norm_squared = self.n_pixels + 1
        rest = (norm_squared - u.square().sum(-1, keepdim=True)).sqrt()
        return torch.cat([u, rest], -1) / norm_squared**0.5

    def pixels(self, tokens: Tensor) -> Tensor:
        """The pixels (batch, N, P) of each token, or the nearest values in [0, 1]."""
        if tokens.ndim != 3 or tokens.shape[1:] != (self.n_sites, self.dim):
            raise ValueError(
                f"tokens must have shape (batch, {self.n_sites}, {self.dim}), got "
                f"{tuple(tokens.shape)}"
            )
        if tokens.isnan().any():
            raise ValueError("tokens must be numbers, got NaN")
        u = tokens[..., :-1] * (self.n_pixels + 1) ** 0.5
        if self.C is not None:
            u = self._in_frame(u, self.C.to(u))
        return ((u + 1) / 2).clamp(0, 1)

    def _in_frame(self, u: Tensor, frame: Tensor) -> Tensor:
        """u (batch, N, a) times a frame (a, b) of all sites, or (N, a, b) of each."""
        return u @ frame if frame.ndim == 2 else torch.einsum("mia,iab->mib", u, frame)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, N, d) to images: the exact inverse of `encode` if it keeps all pixels."""
        images = F.fold(
            self.pixels(tokens).mT, self.image_size, self.patch_size, stride=self.patch_size
        )
        return images.view(-1, *self.image_shape)

    def patches(self, images: Tensor) -> Tensor:
        """Images (batch, *image_shape) as the pixels (batch, N, P) of their patches."""
        images = images.view(-1, self.channels, *images.shape[-2:])
        return F.unfold(images, self.patch_size, stride=self.patch_size).mT


def _cosines(size: int, channels: int) -> Tensor:
    """The discrete cosine transform of a patch, each channel its own: (P, P), orthonormal rows,
    rising frequency.
    """
    k = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi * (k + 0.5) * k[:, None] / size)
    rows /= rows.norm(dim=1, keepdim=True)
    order = (k.square()[:, None] + k.square()).flatten().argsort(stable=True)
    of_patch = torch.kron(rows, rows)[order]
    return torch.stack([torch.kron(e, of_patch) for e in torch.eye(channels).double()], 1).flatten(
        0, 1
    )


def principal_components(images: Tensor, embedding: PatchEmbedding, n: int) -> Tensor:
    """C of each site, learned from its own patches alone: (N, n, P), orthonormal rows.

    Of the projections of u = 2p - 1 to n dimensions it is the one that keeps most of its square,
    on average over images (the first principal components, around zero).

    Args:
        images: (batch, *image_shape), values in [0, 1].
        embedding: of all pixels, whose patches are meant.
        n: how many, 1 to P.

    Raises:
        ValueError: for n out of range, and for images that the embedding refuses, or none.
    """
    check_whole("n", n, 1, embedding.n_pixels)
    if not len(embedding.check(images)):
        raise ValueError("images must be at least one, got none")
    u = (2 * embedding.patches(images) - 1).double()
    moments = torch.einsum("mia,mib->iab", u, u) / len(u)
    _, vectors = torch.linalg.eigh(moments)  # rising eigenvalues
    return vectors.flip(-1)[..., :n].mT.to(images.dtype).contiguous()
