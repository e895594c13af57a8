"""Figures that the reader works: precomputed arrays behind sliders, the energy of one spin to drag
it in, and texts behind lists, in plain HTML that needs no kernel and no network.
"""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import seaborn as sns
from jinja2 import Environment, PackageLoader
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from PIL import Image

from attractor_book.plots import COLOURS

LEFT, RIGHT, TOP, BOTTOM = 54, 334, 10, 178  # the frame of the curves, in units of the drawing
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
MINUS = "\N{MINUS SIGN}"
SHADES = 31  # steps of grey; fewer than 255 halve the page's weight


@dataclass(frozen=True, repr=False)
class WorkedFigure:
    """Results on a grid of controls, images and curves side by side; the reader moves the controls.

    Play, step and the horizontal axis follow one control, `along`; a mark shows where it stands on
    every curve. It starts to move only when asked to. In a notebook or book the object shows
    itself; without JavaScript, and in print, as a still.

    Args:
        name: its id, unique on the page: letters, digits and hyphens, a letter first.
        controls: label -> values, in the order of the leading axes of the arrays. Numbers make a
            slider, text a list.
        along: the label of the control that is the horizontal axis; its values are rising numbers.
        images: label -> (*controls, height, width), values in [0, 1]; at least one image.
        curves: label -> (*controls), one to four; kept to a thousandth of the largest value. Labels
            in `plots.COLOURS` have their colour.
        ylabel, alt: of the curves' axis; what the figure shows, for those who do not see it. Plain
            text.
        start: label -> position at which a control stands first; 0 if not given.

    An axis of size 1 stands for a control on which an array does not depend.

    Raises:
        ValueError: for arrays of another shape, NaN, images outside [0, 1], too many curves or
            none, a name that is no control's, a position that it has not, or a control along the
            axis that does not rise.
    """

    name: str
    controls: Mapping[str, Sequence]
    along: str
    images: Mapping[str, np.ndarray]
    curves: Mapping[str, np.ndarray]
    ylabel: str
    alt: str
    start: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if not {self.along, *self.start} <= set(self.controls):
            raise ValueError(
                f"along and start must name controls out of {list(self.controls)}, "
                f"got {self.along!r} and {list(self.start)}"
            )
        if not 1 <= len(self.curves) <= len(DASHES):
            raise ValueError(f"curves must be from 1 to {len(DASHES)}, got {len(self.curves)}")
        x = np.asarray(self.controls[self.along])
        is_number = x.dtype.kind in "iuf" and np.isfinite(x).all()
        if not is_number or len(x) < 2 or np.diff(x).min() <= 0:
            got = list(self.controls[self.along])
            raise ValueError(f"{self.along} must have two numbers at least, that rise, got {got}")
        for label, at in self.start.items():
            last = len(self.controls[label]) - 1
            if not isinstance(at, int | np.integer) or not 0 <= at <= last:
                raise ValueError(f"start of {label} must be from 0 to {last}, got {at!r}")
        grid = tuple(len(values) for values in self.controls.values())
        for kind, trailing in (("images", 2), ("curves", 0)):
            for label, array in getattr(self, kind).items():
                array, n = np.asarray(array), len(grid)
                fits = array.ndim == n + trailing and all(
                    size in (1, full) for size, full in zip(array.shape[:n], grid)
                )
                if not fits:
                    raise ValueError(
                        f"{kind} {label!r} must have leading axes {grid}, or 1 in place of any, "
                        f"and {trailing} more, got {array.shape}"
                    )
                low, high = (0, 1) if kind == "images" else (-math.inf, math.inf)
                if not (np.isfinite(array).all() and array.min() >= low and array.max() <= high):
                    raise ValueError(
                        f"{kind} {label!r} must hold finite numbers from {low} to {high}"
                    )

    def __repr__(self) -> str:
        controls = "; ".join(
            f"{label}: {len(v)} from {text(v[0])} to {text(v[-1])}"
            for label, v in self.controls.items()
        )
        return (
            f"WorkedFigure {self.name}\n  controls  {controls}\n"
            f"  images    {'; '.join(self.images)}\n"
            f"  curves    {'; '.join(self.curves)}, against {self.along}"
        )

    def _repr_html_(self) -> str:
        axis = list(self.controls).index(self.along)
        at = [self.start.get(label, 0) for label in self.controls]
        controls = [
            {
                "label": label,
                "start": self.start.get(label, 0),
                "texts": [text(v) for v in values],
                "slider": not isinstance(values[0], str),
            }
            for label, values in self.controls.items()
        ]
        x, xticks = scale(self.controls[self.along], LEFT, RIGHT)
        largest = max(np.abs(array).max() for array in self.curves.values())
        decimals = max(0, 3 - math.floor(math.log10(largest))) if largest else 3
        curves = {
            label: np.asarray(array, float).round(decimals) for label, array in self.curves.items()
        }
        y, yticks = scale(
            np.concatenate([c.ravel() for c in curves.values()]), BOTTOM, TOP, widen=True
        )
        along = [round(x(v), 1) for v in self.controls[self.along]]
        images = [picture(label, np.asarray(array), at) for label, array in self.images.items()]
        lines = []
        for (label, c), colour, dash in zip(
            curves.items(), sns.color_palette("colorblind"), DASHES
        ):
            line = c[
                tuple(
                    slice(None) if k == axis else min(at[k], size - 1)
                    for k, size in enumerate(c.shape)
                )
            ]
            line = np.broadcast_to(line, len(along))
            lines.append(
                {
                    "label": label,
                    "colour": to_hex(COLOURS.get(label, colour)),
                    "dash": dash,
                    "shape": c.shape,
                    "values": c.ravel().tolist(),
                    "points": " ".join(f"{p},{y(v):.1f}" for p, v in zip(along, line)),
                    "mark": f"{y(line[at[axis]]):.1f}",
                    "number": f"{line[at[axis]]:.{decimals}f}".replace("-", MINUS),
                }
            )
        data = {
            "along": axis,
            "decimals": decimals,
            "x": along,
            "y": [y(0), y(1) - y(0)],
            "texts": [c["texts"] for c in controls],
            "images": [{k: i[k] for k in ("shape", "columns", "width", "height")} for i in images],
            "curves": [{k: line[k] for k in ("shape", "values")} for line in lines],
        }
        return rendered(
            "worked_figure.html",
            name=self.name,
            alt=self.alt,
            ylabel=self.ylabel,
            along=self.along,
            left=LEFT,
            right=RIGHT,
            top=TOP,
            bottom=BOTTOM,
            xticks=xticks,
            yticks=yticks,
            now=along[at[axis]],
            controls=controls,
            images=images,
            curves=lines,
            data=data,
        )


@dataclass(frozen=True, repr=False)
class WorkedLandscape:
    """The energy of one spin on the circle, all others held, in which the reader drags the spin;
    the tangent bound at the spin, and its update, follow ({eq}`eq-tangent-bound`, chapter 1).

    Without JavaScript, and in print, the object is a still at `start` and the first beta.

    Args:
        name: its id, unique on the page: letters, digits and hyphens, a letter first.
        messages: m_j = J_ij x_j of one head, (N - 1, 2).
        betas: inverse temperatures to choose from.
        alt: what it shows, for those who do not see it. Plain text.
        start: the angle at which the spin stands first [degrees], a whole number.

    Raises:
        ValueError: if messages are not vectors of the plane, or beta is not positive.
    """

    name: str
    messages: np.ndarray
    betas: Sequence[float]
    alt: str
    start: int = 0

    def __post_init__(self):
        if np.ndim(self.messages) != 2 or np.shape(self.messages)[1] != 2:
            raise ValueError(f"messages must be (N - 1, 2), got {np.shape(self.messages)}")
        if not min(self.betas) > 0:
            raise ValueError(f"betas must be positive, got {list(self.betas)}")

    def __repr__(self) -> str:
        return (
            f"WorkedLandscape {self.name}\n  {len(self.messages)} messages\n"
            f"  beta      {'; '.join(map(text, self.betas))}"
        )

    def energy(self, angles: np.ndarray, beta: float) -> np.ndarray:
        """e(x) at angles [degrees], any shape."""
        scores = beta * spins(angles) @ np.transpose(self.messages)
        return -np.logaddexp.reduce(scores, -1) / beta

    def field(self, angle: float, beta: float) -> np.ndarray:
        """h(x) = sum_j a_j m_j, (2,)."""
        scores = beta * spins(angle) @ np.transpose(self.messages)
        return np.exp(scores - np.logaddexp.reduce(scores)) @ self.messages

    def bound(self, angles: np.ndarray, at: float, beta: float) -> np.ndarray:
        """The tangent bound at one angle, as seen from others: e(x) - h . (y - x)."""
        h = self.field(at, beta)
        return self.energy(at, beta) - (spins(angles) - spins(at)) @ h

    def _repr_html_(self) -> str:
        angles = np.arange(-180, 181, 3)
        of = [self.energy(angles, beta) for beta in self.betas]
        lowest = min(self.bound(angles, at, beta).min() for at in angles for beta in self.betas)
        y, yticks = scale(np.stack([lowest, np.max(of) + np.ptp(of) / 3]), BOTTOM, TOP, widen=True)
        x, _ = scale(angles, LEFT, RIGHT)

        def points(values):
            return " ".join(f"{x(a):.1f},{y(v):.1f}" for a, v in zip(angles, values))

        beta, (hx, hy) = self.betas[0], self.field(self.start, self.betas[0])
        update = math.degrees(math.atan2(hy, hx))
        return rendered(
            "worked_landscape.html",
            name=self.name,
            along="angle of the spin",
            ylabel="local energy",
            alt=self.alt,
            left=LEFT,
            right=RIGHT,
            top=TOP,
            bottom=BOTTOM,
            xticks=[(x(a), text(a) + "\N{DEGREE SIGN}") for a in (-180, -90, 0, 90, 180)],
            yticks=yticks,
            betas=[text(b) for b in self.betas],
            start=self.start,
            energy=points(of[0]),
            bound=points(self.bound(angles, self.start, beta)),
            spin=(x(self.start), y(self.energy(self.start, beta))),
            update=(x(update), y(self.energy(update, beta))),
            colour=COLOURS["attractor, 1 full head"],
            data={
                "messages": np.round(self.messages, 4).tolist(),
                "betas": list(self.betas),
                "y": [y(0), y(1) - y(0)],
            },
        )


@dataclass(frozen=True, repr=False)
class WorkedText:
    """Texts on a grid of choices, of which the reader sees one.

    In a notebook or book the object shows itself; without JavaScript, and in print, the one
    that the lists stand at.

    Args:
        name: its id, unique on the page: letters, digits and hyphens, a letter first.
        controls: label -> values, each a list to choose from.
        texts: (a value of each control) -> what was given, and what comes after it; one for each
            combination.
        alt: what it is, for those who do not see it. Plain text.
        start: label -> position at which a list stands first; 0 if not given.

    Raises:
        ValueError: if a combination has no text, or there are texts of others.
    """

    name: str
    controls: Mapping[str, Sequence]
    texts: Mapping[tuple, tuple[str, str]]
    alt: str
    start: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if set(self.texts) != set(self.grid):
            raise ValueError(
                f"texts must be for all {len(self.grid)} combinations of the controls, got "
                f"{len(self.texts)}, of which {len(set(self.texts) - set(self.grid))} are none"
            )

    @property
    def grid(self) -> list[tuple]:
        return list(itertools.product(*self.controls.values()))

    def __repr__(self) -> str:
        controls = "; ".join(f"{label}: {len(v)}" for label, v in self.controls.items())
        return f"WorkedText {self.name}\n  controls  {controls}"

    def _repr_html_(self) -> str:
        texts = [list(self.texts[key]) for key in self.grid]
        start = {label: self.start.get(label, 0) for label in self.controls}
        first = np.ravel_multi_index(list(start.values()), [len(v) for v in self.controls.values()])
        return rendered(
            "worked_text.html",
            name=self.name,
            alt=self.alt,
            controls=[(label, list(map(text, values))) for label, values in self.controls.items()],
            start=start,
            first=texts[first],
            lines=max("".join(t).count("\n") for t in texts) + 1,
            data={"sizes": [len(v) for v in self.controls.values()], "texts": texts},
        )


@dataclass(frozen=True, repr=False)
class WorkedReading:
    """A text whose letters are shaded by how much of a head's attention is on them, from the place
    that the reader chooses, with the likeliest letters there.

    Without JavaScript, and in print, a still at `start` and the first head.

    Args:
        name: its id, unique on the page: letters, digits and hyphens, a letter first.
        letters: the text, of T letters.
        attention: head -> (T, T), row i of the place of letter i, on letters j < i; in [0, 1].
        guesses: of each place the likeliest letters and their probabilities.
        alt: what it shows, for those who do not see it. Plain text.
        start: the letter to come at first; at least 1, as nothing is heard before the first.

    Raises:
        ValueError: for attention of another shape, beyond [0, 1] or NaN, or too few guesses.
    """

    name: str
    letters: str
    attention: Mapping[str, np.ndarray]
    guesses: Sequence[Mapping[str, float]]
    alt: str
    start: int = 1

    def __post_init__(self):
        n = len(self.letters)
        for head, a in self.attention.items():
            if np.shape(a) != (n, n) or not (np.min(a) >= 0 and np.max(a) <= 1):
                raise ValueError(
                    f"attention {head!r} must be ({n}, {n}) in [0, 1], got {np.shape(a)} from "
                    f"{np.min(a):g} to {np.max(a):g}"
                )
        if len(self.guesses) != n:
            raise ValueError(f"guesses must be {n}, one a letter, got {len(self.guesses)}")

    def __repr__(self) -> str:
        sizes = f"{len(self.letters)} letters\n  {len(self.attention)} heads"
        return f"WorkedReading {self.name}\n  {sizes}"

    def guess(self, i: int) -> str:
        """What is said below the text when letter i is to come."""
        likely = ", ".join(f"{visible(v)} {p:.2f}" for v, p in self.guesses[i].items())
        return f"expected: {likely}; comes: {visible(self.letters[i])}"

    def _repr_html_(self) -> str:
        n = len(self.letters)
        shades = {  # the square root, so that little attention is seen; a digit of 36 each
            head: np.rint(35 * np.sqrt(a)).astype(int) for head, a in self.attention.items()
        }
        first = next(iter(shades.values()))[self.start]
        return rendered(
            "worked_reading.html",
            name=self.name,
            alt=self.alt,
            letters=[(v, f"{7 * s:02x}" if s else "") for v, s in zip(self.letters, first)],
            heads=list(shades),
            start=self.start,
            guess=self.guess(self.start),
            colour=to_hex(COLOURS["stages"]),
            data={
                "attention": [
                    ["".join(np.base_repr(s, 36).lower() for s in a[i, :i]) for i in range(1, n)]
                    for a in shades.values()
                ],
                "guesses": [self.guess(i) for i in range(1, n)],
            },
        )


def visible(letter: str) -> str:
    """A letter, with a sign for those that are not seen."""
    return {" ": "\N{OPEN BOX}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"}.get(
        letter, letter
    )


def rendered(template: str, **values) -> str:
    """A template of this package, with values put in."""
    templates = Environment(loader=PackageLoader("attractor_book", ""), autoescape=True)
    return templates.get_template(template).render(**values)


def spins(angles: np.ndarray) -> np.ndarray:
    """Unit vectors at angles [degrees], (..., 2)."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], -1)


def text(value) -> str:
    """A value as the reader sees it."""
    return value if isinstance(value, str) else f"{value:g}".replace("-", MINUS)


def scale(values: np.ndarray, low: float, high: float, widen: bool = False):
    """The map from values to places between low and high, and the ticks as (place, text); widen:
    out to whole ticks.
    """
    least, most = float(np.min(values)), float(np.max(values))
    ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(least, most)
    if widen:
        least, most = ticks[0], ticks[-1]

    def place(v: float) -> float:
        return float(low + (v - least) / (most - least) * (high - low))

    return place, [(round(place(v), 1), text(v)) for v in ticks if least <= v <= most]


def picture(label: str, array: np.ndarray, at: list[int]) -> dict:
    """The frames of an image (*controls, height, width) as one PNG, and where the frame at the
    start stands in it.
    """
    *shape, height, width = array.shape
    frames = (np.rint(array.reshape(-1, height, width) * SHADES) * (255 / SHADES)).astype(np.uint8)
    columns = math.ceil(math.sqrt(len(frames)))
    rows = math.ceil(len(frames) / columns)
    sheet = np.zeros((rows * columns, height, width), np.uint8)
    sheet[: len(frames)] = frames
    sheet = (
        sheet.reshape(rows, columns, height, width)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width)
    )
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "png", optimize=True)
    first = np.ravel_multi_index([min(a, size - 1) for a, size in zip(at, shape)], shape)
    return {
        "label": label,
        "shape": shape,
        "columns": columns,
        "rows": rows,
        "height": height,
        "width": width,
        "url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "box": f"{first % columns * width} {first // columns * height} {width} {height}",
    }
