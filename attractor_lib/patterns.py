"""Synthetic patterns: random vector spins with a chosen correlation."""

import os

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.checks import check_number, check_whole


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes that the device can still give out; None where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        # Linux: counts the file cache as free, which sysconf does not
        with open("/proc/meminfo") as lines:
            return next(
                int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
            )
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def require_memory(n_bytes: int, what: str, device: torch.device | str = "cpu") -> None:
    """MemoryError, before anything is allocated, if the device has less than n_bytes left."""
    there = available_memory(device)
    if there is not None and n_bytes > there:
        raise MemoryError(
            f"{what} need {n_bytes / 2**30:.3g} GiB, but {device} has {there / 2**30:.3g} GiB "
            "left: take fewer patterns, sites or components"
        )


def random_patterns(
    n: int,
    n_sites: int,
    dim: int,
    generator: torch.Generator,
    correlation: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """n random patterns of vector spins (n, N, d), uniform on the sphere at every site::

        xi^mu_i = P[ sqrt(c) g_i + sqrt(1 - c) g^mu_i ]     g_i, g^mu_i Gaussian, g_i common to all

    At c = 0 the patterns are independent; at c = 1 they are all the same. Two patterns are Gaussian
    vectors of correlation c, normalised, so the mean of their overlap is::

        E[xi^mu_i . xi^nu_i] = c (2/d) (Gamma((d+1)/2) / Gamma(d/2))^2  2F1(1/2, 1/2; d/2 + 1; c^2)

    (mean over g_i too), which is c at c = 0 and c = 1 and a little less between: 0.46 at c = 0.5,
    d = 5, and (2/pi) arcsin c at d = 1. Used in 09_synthetic_patterns.

    Args:
        n, n_sites, dim: whole numbers, at least 1.
        correlation: c, from 0 to 1.
        generator: the patterns lie on its device. Seed it apart from that of a corruption: two
            generators of one seed draw the same numbers, and a turn then points toward another
            pattern instead of a random way.

    Raises:
        ValueError: for anything else.
        MemoryError: before allocating, where the patterns would not fit.
    """
    for name, value in [("n", n), ("n_sites", n_sites), ("dim", dim)]:
        check_whole(name, value, 1)
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, got {generator!r}")
    check_number("correlation", correlation, 0, 1)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type, got {dtype}")
    require_memory(
        3 * n * n_sites * dim * dtype.itemsize,
        f"{n} patterns of {n_sites} sites and {dim} components",
        generator.device,
    )
    draw = {"generator": generator, "device": generator.device, "dtype": dtype}
    common = torch.randn((n_sites, dim), **draw)
    own = torch.randn((n, n_sites, dim), **draw)
    return F.normalize(own.mul_((1 - correlation) ** 0.5).add_(correlation**0.5 * common), dim=-1)
