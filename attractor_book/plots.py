"""Figures: each function draws on the axes it is given and returns them; nothing is computed, shown
or configured here but by `use_style`, which a notebook calls once.
"""

import sys

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

# One colour, one meaning, in every figure of the book. Theory is black and dashed.
_palette = sns.color_palette("colorblind").as_hex()
STARTS = {  # what a network is trained on, or run from
    "train": _palette[0],
    "test": _palette[1],
    "shuffled": _palette[5],
    "noise": "#a39b00",
    "null": _palette[7],
    "negatives": "#00838f",
    "own start": "#d7263d",  # the state a run started from, beside other examples
}
MODELS = {  # attractor networks in greens, blocks in purples
    "attractor, 1 full head": "#00563f",
    "attractor, 16 heads of rank 16": _palette[2],
    "attractor, 8 heads of rank 16": "#3fb38b",
    "attractor, 4 heads of rank 8": "#7ccdb0",
    "attractor, 2 heads of rank 8": "#a8e0cb",
    "attractor, 8 heads of rank 16, shared": "#566b00",
    "attractor, 4 heads of rank 16, shared": "#7d931c",
    "attractor, 8 heads of rank 32, shared": "#a8bd4a",
    "transformer block": _palette[4],
    "cascade of blocks 32": "#b58ab0",
    "cascade of blocks 64": "#9a4f93",
    "stack of blocks": "#6a3564",
    "looped block": "#e3b0da",
    "bare attention": _palette[3],
    "Energy Transformer": "#f4859f",
    "modern Hopfield layer": _palette[8],
    "linear": "#333333",
    "n-gram": "#8c5a2b",
    "sum of evidence": _palette[9],
    "mixture": "#c2185b",
    "energy rule": "#1f2a6b",
    "contrastive divergence": "#8b0000",
    "own trajectories": "#00a3ad",
}
LAWS = {  # simpler dynamics beside a network's own
    "query held": "#4b3f9e",
    "messages held": "#b8860b",
    "scores linear": "#7f2a0f",
    "theory": "#5b6b7b",  # where it cannot be black, in figures that the reader works
}
COLOURS = {
    **STARTS,
    **MODELS,
    **LAWS,
    # the same, by the names that other chapters have for them:
    "mean patch": STARTS["null"],
    "with the start": STARTS["own start"],
    "this image": STARTS["own start"],
    "letters as at the start": STARTS["own start"],
    "with the state before": STARTS["negatives"],
    "mean over train images": STARTS["train"],
    "counted as back": STARTS["null"],
    "by chance": STARTS["null"],
    "with the nearest train image": STARTS["train"],
    "mean of 100 test images": STARTS["test"],
    "a fifth wrong": STARTS["noise"],
    "noisy": STARTS["noise"],
    "another author": STARTS["null"],
    "cascade": MODELS["attractor, 1 full head"],
    "hidden spins": MODELS["attractor, 16 heads of rank 16"],
    "hidden spins, shared": MODELS["attractor, 8 heads of rank 16, shared"],
    "hidden spins, recurrent": MODELS["own trajectories"],
    "hidden spins, recurrent, shared": MODELS["own trajectories"],
    "stages": MODELS["attractor, 16 heads of rank 16"],
    "prediction rule": MODELS["attractor, 1 full head"],
    "plain rule": MODELS["attractor, 1 full head"],
    "this network": MODELS["attractor, 1 full head"],
    "clean": MODELS["attractor, 1 full head"],
    "own trajectory": MODELS["own trajectories"],
    "pseudo-inverse": MODELS["linear"],
    "block": MODELS["transformer block"],
    "blocks": MODELS["stack of blocks"],
    "log-bilinear": MODELS["linear"],
    "pseudo-likelihood": MODELS["mixture"],
}


def use_style() -> None:
    """The book's figure style, for the figures that follow; in a notebook they have two pixels for
    one, for fine screens and print.
    """
    if "ipykernel" in sys.modules:
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance().figure_formats = {"retina"}
    sns.set_theme(
        "notebook",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.figsize": (7, 4),
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "image.cmap": "gray",
        },
    )


def plot_images(
    ax: Axes, images: Tensor, row_labels: list[str] = (), column_labels: list[str] = ()
) -> Axes:
    """A table of images (rows, columns, height, width), values in [0, 1], all on one grey scale; or
    (rows, columns, 3, height, width), in colour.
    """
    rows, columns, *_, height, width = images.shape
    images = images.movedim(2, -1) if images.ndim == 5 else images
    step_y, step_x = height + 2, width + 2
    for r in range(rows):
        for c in range(columns):
            ax.imshow(
                images[r, c].cpu(),
                vmin=0,
                vmax=1,
                cmap="gray",
                extent=(c * step_x, c * step_x + width, r * step_y + height, r * step_y),
            )
    ax.set(xlim=(-1, columns * step_x - 1), ylim=(rows * step_y - 1, -1), aspect="equal")
    ax.set_xticks(
        [c * step_x + width / 2 for c in range(len(column_labels))], column_labels, fontsize="small"
    )
    ax.set_yticks(
        [r * step_y + height / 2 for r in range(len(row_labels))], row_labels, fontsize="small"
    )
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def plot_overlaps(ax: Axes, m: Tensor, label: str, colour=None, linestyle: str = "-") -> Axes:
    """Mean overlap against time for m (n_steps + 1, batch); the band holds the middle half of the
    examples.
    """
    m = m.cpu()
    low, high = m.quantile(0.25, 1), m.quantile(0.75, 1)
    return plot_band(ax, range(len(m)), m.mean(1), low, high, label, colour, linestyle)


def plot_band(ax: Axes, t, mean, low, high, label: str, colour=None, linestyle: str = "-") -> Axes:
    """Overlaps `mean` against rising times t, from 0, in a band from `low` to `high`."""
    colour = COLOURS.get(label) if colour is None else colour
    (line,) = ax.plot(t, mean, color=colour, linestyle=linestyle, label=label)
    ax.fill_between(t, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlim=(0, max(t)), xlabel="update step $t$", ylabel="overlap $m(t)$")
    ticks = [at for at in (0, 1, 2, 5, 10, 20, 50, 200, 1000) if at <= max(t)]
    ax.set_xticks(ticks, ticks, minor=False)
    ax.minorticks_off()
    return ax


def plot_errors(ax: Axes, frame: pd.DataFrame, x: str, xlabel: str) -> Axes:
    """Column `error` against column `x`, a line a model; where there are several seeds the bars
    span their range.
    """
    colours = {
        name: COLOURS.get(name, COLOURS["attractor, 16 heads of rank 16"])
        for name in frame["model"].unique()
    }
    sns.lineplot(
        frame,
        x=x,
        y="error",
        hue="model",
        style="model",
        palette=colours,
        markers=True,
        dashes=False,
        errorbar=("pi", 100),
        err_style="bars",
        ax=ax,
    )
    ax.set(xlabel=xlabel, ylabel="mean squared error per pixel", ylim=(0, None))
    ax.legend(title=None)
    return ax


def plot_variants(ax: Axes, frame: pd.DataFrame, xlabel: str) -> Axes:
    """Column `value` of each `variant` (a row each), a marker for each `measure`; the bars span the
    range over seeds.
    """
    sns.pointplot(
        frame,
        y="variant",
        x="value",
        hue="measure",
        markers=["o", "s", "D", "^"][: frame["measure"].nunique()],
        markersize=4,
        err_kws={"linewidth": 1.2},
        linestyle="none",
        dodge=0.5,
        errorbar=("pi", 100),
        ax=ax,
    )
    ax.set(xlabel=xlabel, ylabel="")
    ax.grid(axis="y", linewidth=0.4)
    ax.legend(
        title=None, loc="lower center", bbox_to_anchor=(0.5, 1), handletextpad=0.1, fontsize="small"
    )
    return ax


def plot_shares(ax: Axes, frame: pd.DataFrame) -> Axes:
    """A stacked bar for each row of shares, which sum to 1; a colour for each column, light where a
    run is at rest.
    """
    frame.plot.barh(ax=ax, stacked=True, width=0.8, colormap="viridis_r", linewidth=0)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="share of runs", ylabel="")
    ax.legend(
        title=None,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=3,
        fontsize="small",
        columnspacing=1,
    )
    return ax


def plot_seeds(
    ax: Axes, frame: pd.DataFrame, x: str, y: str, label: str, linestyle: str = "-", colour=None
) -> Axes:
    """Column y against column x: the mean over the rows of equal x (the seeds), in a band from the
    smallest to the largest.
    """
    sns.lineplot(
        frame,
        x=x,
        y=y,
        label=label,
        color=colour,
        linestyle=linestyle,
        marker="o",
        markersize=4,
        errorbar=("pi", 100),
        ax=ax,
        legend=False,
    )
    return ax


def plot_matrix(ax: Axes, values: Tensor, xlabel: str, ylabel: str, label: str) -> Axes:
    """A matrix as colours, with its scale: couplings' norms, attention masks."""
    image = ax.imshow(values.cpu(), cmap="viridis", vmin=0)
    ax.set(
        xlabel=xlabel,
        ylabel=ylabel,
        xticks=range(0, values.shape[1], 5),
        yticks=range(0, values.shape[0], 5),
    )
    plt.colorbar(image, ax=ax, label=label)
    return ax


def plot_completion(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Column `error` against column `t` (from 1), a line a `model`, in the colour of what its name
    begins with; with several seeds the bars span their range.
    """
    models = frame["model"].unique()
    sns.lineplot(
        frame,
        x="t",
        y="error",
        hue="model",
        style="model",
        palette={model: COLOURS[model.split(",")[0]] for model in models},
        markers=True,
        dashes=["", "", (3, 2)][: len(models)],
        errorbar=("pi", 100),
        err_style="bars",
        ax=ax,
    )
    ax.set(
        xscale="log", yscale="log", xlabel="update step $t$", ylabel="mean squared error per pixel"
    )
    ax.set_xticks([1, 2, 5, 20, 200], [1, 2, 5, 20, 200])
    ax.set_yticks([0.02, 0.05, 0.1, 0.2], [0.02, 0.05, 0.1, 0.2])
    ax.minorticks_off()
    return ax


def plot_costs(ax: Axes, frame: pd.DataFrame, cost: str, xlabel: str) -> Axes:
    """Column `error` against column `cost`, both on logarithmic axes: a line a model, bars over its
    seeds.
    """
    for model, rows in frame.groupby("model", sort=False):
        points = rows.groupby(cost)["error"].agg(["mean", "min", "max"])
        dashed = not model.startswith("attractor")
        style = ":" if model.startswith("cascade") else "--" if dashed else "-"
        ax.errorbar(
            points.index,
            points["mean"],
            [points["mean"] - points["min"], points["max"] - points["mean"]],
            color=COLOURS[model],
            linestyle=style,
            marker="s" if dashed else "o",
            markersize=4,
            label=model,
        )
    ax.set(xscale="log", yscale="log", xlabel=xlabel)
    ax.xaxis.set_minor_formatter("")
    ticks = LogLocator(subs=[1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8], numticks=99)
    ax.yaxis.set(major_locator=ticks, major_formatter="{x:.3g}", minor_locator=NullLocator())
    return ax


def plot_stages(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Column `error` against column `stages`, a line a `family`; baselines, which have one stage,
    lie across, dashed.
    """
    for family, rows in frame.groupby("family", sort=False):
        points = rows.groupby("stages")["error"].agg(["mean", "min", "max"])
        if len(points) == 1:
            level = points["mean"].item()
            ax.axhline(level, color=COLOURS[family], linestyle="--", linewidth=1.2, label=family)
            continue
        spread = [points["mean"] - points["min"], points["max"] - points["mean"]]
        style = {"color": COLOURS[family], "marker": "o", "markersize": 4, "label": family}
        ax.errorbar(points.index, points["mean"], spread, **style)
    ax.set(xlabel="stages")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def plot_ratio(ax: Axes, frame: pd.DataFrame, label: str) -> Axes:
    """Columns `ratio`, `low` and `high` against column `limit`, a cost: our error over that of a
    rival, which is 1 where both are level; dotted where column `beyond` holds.
    """
    colour = COLOURS["stack of blocks" if "stack" in label else "block"]
    ax.axhline(1, color="black", linewidth=0.8)
    within, beyond = frame[~frame["beyond"]], frame[frame["beyond"]]
    style = {"color": colour, "drawstyle": "steps-post"}
    ax.plot(within["limit"], within["ratio"], label=f"against {label}", **style)
    ax.plot(beyond["limit"], beyond["ratio"], ":", **style)
    band = {"color": colour, "alpha": 0.2, "step": "post"}
    ax.fill_between(frame["limit"], frame["low"], frame["high"], **band)
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter("")
    return ax


def plot_verdicts(ax: Axes, frame: pd.DataFrame, label: str) -> Axes:
    """Columns `ratio`, and `from` and `to`, its range, against column `level` of corruption."""
    colour = COLOURS["stack of blocks" if "stack" in label else "block"]
    at = range(len(frame))
    spread = [frame["ratio"] - frame["from"], frame["to"] - frame["ratio"]]
    ax.axhline(1, color="black", linewidth=0.8)
    style = {"color": colour, "marker": "o", "markersize": 4, "capsize": 2}
    ax.errorbar(at, frame["ratio"], spread, label=f"against {label}", **style)
    ax.set_xticks(at, [f"{level:g}" for level in frame["level"]])
    ax.set_xlim(-0.4, len(frame) - 0.6)
    return ax


def plot_laws(ax: Axes, frame: pd.DataFrame, fits: pd.DataFrame) -> Axes:
    """Column `error` against column `at`, a colour a `family`; lines are c x^-a, columns of the
    fits by family.
    """
    for family, points in frame.groupby("family"):
        ax.plot(points["at"], points["error"], "o", color=COLOURS[family], label=family)
        if family in fits.index:
            line = fits.loc[family, "c"] * points["at"] ** -fits.loc[family, "a"]
            ax.plot(points["at"], line, color=COLOURS[family], linewidth=1)
    ax.set(xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter("")
    return ax
