"""Data sets by name, fetched at the first use and checked at every one."""

from attractor_lib.data.images import load_images

__all__ = ["load_images"]
