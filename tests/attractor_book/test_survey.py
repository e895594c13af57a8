"""The claims on any images: every line of the table can be measured, and can fail."""

import pandas as pd
import pytest
import torch

from attractor_book.chapter import ImageTokens
from attractor_book.survey import (
    CLAIMS,
    MAIN,
    MEASURED,
    Survey,
    claims,
    last_over_best,
    over,
    packed,
    unpacked,
)
from attractor_lib.embedding import PatchEmbedding


def images(channels, n=250, side=8):
    """Smooth pictures: what is hidden can be told from the rest."""
    draw = torch.Generator().manual_seed(0)
    shape = (n, channels, 1, 1) if channels == 3 else (n, 1, 1)
    ramp = torch.linspace(0, 1, side)
    pictures = torch.rand(shape, generator=draw) * ramp[:, None] * ramp.flip(0)
    embedding = PatchEmbedding(side, 2, channels=channels)
    tokens = embedding.encode(pictures)
    return ImageTokens(embedding, tokens, tokens[:10], pictures[:10])


@pytest.fixture(scope="module")
def measured():
    said = []
    survey = Survey(images(1), 1, seed=0, n_steps=30, report=said.append)
    rows = [{"claim": c, **row} for c, measure in MEASURED.items() for row in measure(survey)]
    assert set(MAIN) <= set(said)
    return pd.DataFrame(rows).assign(data="smooth", seed=0)


def test_every_claim_is_measured(measured):
    table = claims(measured)
    assert len(table) == len(CLAIMS) == len({(c.chapter, c.text) for c in CLAIMS})
    assert table["mean"].notna().all() and (table["seeds"] == 1).all()


def test_what_was_not_measured_is_left_out(measured):
    table = claims(measured[measured["claim"] == "own"])
    assert set(table["chapter"]) == {13}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.text[:30])
def test_every_claim_can_hold_and_fail(claim):
    held = {bool(claim.holds(v)) for v in (-1.0, 0.0, 0.05, 0.5, 0.95, 1.0, 1.5, 10.0)}
    assert held == {True, False}


def test_a_ratio_is_that_of_the_first_model_to_the_second():
    levels, models = (1, 4, 8), {"16 heads": (1.0, 2.0, 9.0), "block 64": (2.0, 8.0, 10.0)}
    rows = [
        {"claim": "hidden", "model": model, "level": level, "error": error}
        for model, errors in models.items()
        for level, error in zip(levels, errors)
    ]
    frame = pd.DataFrame(rows)
    assert over("hidden", "16 heads", "block 64")(frame) == 0.9
    assert over("hidden", "16 heads", "block 64", lambda r: r[0])(frame) == 0.5
    times = [
        {"claim": "own", "model": "plain rule", "t": t, "error": e}
        for t, e in ((1, 2.0), (2, 1.0), (3, 4.0))
    ]
    assert last_over_best("plain rule")(pd.DataFrame(times)) == 4


def test_seeds_are_counted_apart(measured):
    two = claims(pd.concat([measured, measured.assign(seed=1)]))
    assert (two["seeds"] == 2).all() and two["holds"].isin([0, 2]).all()


def test_colour_has_pictures():
    survey = Survey(images(3), 1, seed=0, n_steps=20, report=lambda _: None)
    rows = [row for row in survey.hidden() if "pixels" in row]
    assert {row["model"] for row in rows} == {*MAIN, "intact", "corrupted"}
    for row in rows:
        assert unpacked(row["pixels"]).shape == (8, 3, 8, 8)
    intact = next(row for row in rows if row["model"] == "intact")
    assert (unpacked(intact["pixels"]) - images(3).images[:8]).abs().max() < 1 / 500


def test_pictures_are_kept_to_eight_bits():
    pixels = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert (unpacked(packed(pixels)) - pixels).abs().max() <= 0.5 / 255 + 1e-6
