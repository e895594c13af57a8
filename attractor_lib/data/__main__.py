"""``python -m attractor_lib.data``: fetch a data set ahead of its first use, and check it."""

import argparse
import sys

from attractor_lib.data.files import known_name
from attractor_lib.data.images import IMAGE_SETS, load_images
from attractor_lib.data.text import TEXTS, load_text


def found(name: str, split: str, root: str | None) -> str:
    """What there is, in words."""
    name = known_name(name, split, [*IMAGE_SETS, *TEXTS])
    if name in TEXTS:
        return f"{len(load_text(name, split, root)):,} letters"
    n, *channels, height, width = load_images(name, split, root).shape
    colours = f" in {channels[0]} colours" if channels else ""
    return f"{n:,} images of {height} x {width}{colours}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m attractor_lib.data",
        description="Fetch a data set and check it.",
        epilog="example: python -m attractor_lib.data MNIST --root ~/data",
    )
    known = ", ".join([*IMAGE_SETS, *TEXTS])
    parser.add_argument("name", nargs="?", default="MNIST", help=f"one of {known} (default: MNIST)")
    parser.add_argument(
        "--root",
        help="where to look and to put it (default: $ATTRACTOR_DATA, else ~/.cache/attractor_lib)",
    )
    given = parser.parse_args()
    try:
        for split in ("train", "test"):
            print(f"{given.name} {split}: {found(given.name, split, given.root)}, checksums match")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
