"""Draw the book's logo: a spin on its way, attracted by a memory and led past it.

python book/logo.py        writes _static/logo.svg (logo and icon) and _static/logo.png (social
cards)
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrow

SPIN, MEMORY = "#2a8fd0", "#de8f05"  # both legible on white and on black
STATIC = Path(__file__).parent / "_static"


def path(angle: np.ndarray) -> np.ndarray:
    """The orbit r = 0.62 (1 + e) / (1 + e cos angle) around the memory, e = 0.3, which comes
    nearest on the upper right.
    """
    r = 0.62 * 1.3 / (1 + 0.3 * np.cos(angle))
    return np.stack([r * np.cos(angle + np.pi / 4), r * np.sin(angle + np.pi / 4)])


def draw(n_spins: int = 5) -> Figure:
    """The spin at equal steps of the angle, an arrow along the way each time, the stronger the
    nearer it is.
    """
    figure = Figure(figsize=(2, 2))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-1.13, 0.92), ylim=(-1.13, 0.92), aspect="equal")
    ax.axis("off")
    for angle in np.linspace(-2.1, 2.1, n_spins):
        (x, y), (u, v) = path(angle - 0.44), path(angle + 0.44) - path(angle - 0.44)
        ax.add_patch(
            FancyArrow(
                x,
                y,
                u,
                v,
                width=0.15,
                head_width=0.4,
                head_length=0.3,
                length_includes_head=True,
                linewidth=0,
                color=SPIN,
                alpha=0.65 + 0.35 * np.cos(angle / 2.1 * np.pi / 2),
            )
        )
    ax.add_patch(Circle((0, 0), 0.27, color=MEMORY, linewidth=0))
    return figure


def write(folder: Path) -> None:
    """The same bytes at each run: no date, no random names."""
    with matplotlib.rc_context({"svg.hashsalt": "logo"}):
        draw().savefig(
            folder / "logo.svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    draw().savefig(folder / "logo.png", transparent=True, dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    write(STATIC)
