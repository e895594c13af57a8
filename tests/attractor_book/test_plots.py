"""Figures: what is drawn are the numbers that were given."""

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt

from attractor_book.plots import (
    COLOURS,
    LAWS,
    MODELS,
    STARTS,
    plot_band,
    plot_images,
    plot_overlaps,
    plot_ratio,
)


def test_overlaps_are_drawn_as_their_mean_in_a_band_of_their_middle_half():
    m = torch.rand(31, 11, generator=torch.Generator().manual_seed(0))
    low, high = np.quantile(m, [0.25, 0.75], axis=1)
    for draw in (
        lambda ax: plot_overlaps(ax, m, "test"),
        lambda ax: plot_band(ax, np.arange(31), m.mean(1), low, high, "test"),
    ):
        ax = draw(plt.figure().subplots())
        assert np.allclose(ax.lines[0].get_xydata(), np.stack([np.arange(31), m.mean(1)], 1))
        corners = ax.collections[0].get_paths()[0].vertices
        for edge in (low, high):
            for t in range(31):
                assert np.abs(corners - [t, edge[t]]).sum(1).min() < 1e-6
        assert [*ax.get_xticks()] == [0, 1, 2, 5, 10, 20] and ax.get_xlim() == (0, 30)
    plt.close("all")


def test_colour_images_are_shown_in_colour():
    images = torch.rand(2, 3, 3, 4, 5)
    fig, ax = plt.subplots()
    plot_images(ax, images)
    shown = [artist.get_array() for artist in ax.get_images()]
    assert len(shown) == 6 and shown[4].shape == (4, 5, 3)
    assert np.allclose(shown[4], images[1, 1].permute(1, 2, 0))
    plt.close(fig)


def test_a_ratio_is_dotted_where_rivals_have_ended():
    frame = pd.DataFrame({"limit": [1.0, 2, 4, 8], "ratio": [1.2, 1.1, 1.0, 0.9]})
    frame = frame.assign(
        low=frame["ratio"], high=frame["ratio"], beyond=[False, False, False, True]
    )
    fig, ax = plt.subplots()
    plot_ratio(ax, frame, "a block")
    within, beyond = (line for line in ax.get_lines() if line.get_color() == COLOURS["block"])
    assert (within.get_linestyle(), beyond.get_linestyle()) == ("-", ":")
    assert (list(within.get_xdata()), list(beyond.get_xdata())) == ([1, 2, 4], [8])
    plt.close(fig)


def test_a_colour_has_one_meaning():
    colours = [*STARTS.values(), *MODELS.values(), *LAWS.values()]
    assert len(set(colours)) == len(colours) and set(COLOURS.values()) == set(colours)
