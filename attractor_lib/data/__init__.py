"""Data sets by name, fetched at the first use and checked at every one."""

from attractor_lib.data.images import load_images
from attractor_lib.data.text import Alphabet, load_text

__all__ = ["Alphabet", "load_images", "load_text"]
