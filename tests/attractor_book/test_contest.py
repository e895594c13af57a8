"""The contest: who takes part can be trained, and the best within a cost is chosen on left-out
images.
"""

import math

import pandas as pd
import pytest
import torch

from attractor_book.contest import (
    ENTRANTS,
    EndToEnd,
    Layered,
    Trial,
    at_equal_cost,
    chosen,
    law,
    law_points,
    meet,
    models,
    prices,
    ratio,
    stack,
    summary,
    through_all_stages,
    verdicts,
    with_family,
)
from attractor_book.runs import RUNS
from attractor_lib.cascade import Cascade
from attractor_lib.corruption import HideTokens, mean_token
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.trainer import TrainingConfig

EMBEDDING = PatchEmbedding(4, 2)


def tokens(n=40):
    images = torch.rand(n, 4, 4, generator=torch.Generator().manual_seed(0))
    return EMBEDDING.encode(images), EMBEDDING.patches(images)


SMALL = [
    stack(16, 1e-2, n_layers=2),
    stack(16, 1e-2, n_layers=1, n_loops=3, last_norm=True),
    Layered(2, 3, False, 2, 1e-2),
    Layered(2, 3, True, 3, 1e-2),
    Layered(2, 3, True, 2, 1e-2, n_shared=2),
    Layered(2, 3, True, 2, 1e-2, afresh=True),
    Layered(2, 3, True, 2, 1e-2, recurrent=True),
    Layered(2, 3, False, 2, 1e-2, recurrent=True),
    Layered(2, 3, True, 2, 1e-2, end_to_end=True),
    Layered(2, 3, True, 2, 1e-2, recurrent=True, end_to_end=True),
]


@pytest.mark.parametrize("keeps_given", [False, True])
@pytest.mark.parametrize("entrant", SMALL)
def test_every_kind_of_entrant_learns(entrant, keeps_given):
    x, pixels = tokens()
    trial = Trial(x, pixels, HideTokens(2, mean_token(x)), EMBEDDING)
    config = TrainingConfig(epochs=2, batch_size=20, learning_rate=1.0)
    fitted = entrant.fit(
        x, trial.corrupt, config, lambda p: trial.errors(p).mean(), keeps_given=keeps_given
    )
    found = list(fitted)
    end_to_end, recurrent = (getattr(entrant, n, False) for n in ("end_to_end", "recurrent"))
    assert len(found) == (1 if end_to_end else getattr(entrant, "n_stages", 1))
    more = [a.parameters < b.parameters for a, b in zip(found, found[1:])]
    assert not any(more) if recurrent else all(more)
    for model in found:
        epochs = [record["epoch"] for record in model.curve]
        if recurrent and model is not found[-1]:
            assert not epochs  # its training is told once
            continue
        assert epochs == ([1, 2, 3, 4] if recurrent or end_to_end else [1, 2])
        errors = trial.errors(model.predict)
        assert errors.shape == (40,) and errors.isfinite().all()
        last = model.curve[-1]["error"]
        assert math.isclose(errors.mean().item(), last, rel_tol=1e-5)


def test_an_error_is_that_of_the_corrupted_sites():
    x, pixels = tokens()
    hide = HideTokens(2, mean_token(x))
    trial = Trial(x, pixels, hide, EMBEDDING)
    state, sites = hide(x, torch.Generator().manual_seed(0))
    guess = EMBEDDING.pixels(state)
    by_hand = [(guess[m] - pixels[m])[sites[m]].square().mean() for m in range(len(x))]
    torch.testing.assert_close(trial.errors(lambda s, _: s, block=7), torch.stack(by_hand))


def test_the_families_are_those_that_figures_have_colours_for():
    from attractor_book.plots import COLOURS

    frame = with_family(pd.DataFrame({"name": list(ENTRANTS)}))
    assert set(frame["family"]) <= set(COLOURS)
    assert {type(e) for e in ENTRANTS.values()} == {EndToEnd, Layered}


def test_runs_name_entrants():
    named = {n for c, _, p in RUNS if c == "19_verdict" for n in p["only"].split("; ")}
    assert named <= set(ENTRANTS)


def row(name, cost, left_out, test, seed=0, stages=1):
    about = {"data": "MNIST", "task": "hidden", "name": name, "stages": stages, "epochs": 1}
    about |= {"lr_factor": 1.0, "seed": seed}
    about |= {"parameters": cost, "operations": 2 * cost, "seconds": 1.0}
    return {**about, "left out": left_out, "test": test}


def test_a_model_is_chosen_on_the_images_left_out():
    frame = pd.DataFrame(
        [
            row("a", 10, 3.0, 3.1),
            row("b", 20, 2.0, 2.5, 0),
            row("b", 20, 2.2, 2.7, 1),
            row("c", 30, 2.2, 1.0),  # better on the test images only
        ]
    )
    best = chosen(frame, "parameters", [5, 10, 25, 40])
    assert best["name"].isna().to_list() == [True, False, False, False]
    assert best["name"].to_list()[1:] == ["a", "b", "b"]
    assert best["test"].to_list()[1:] == [3.1, 2.6, 2.6]
    assert (best["low"][3], best["high"][3]) == (2.5, 2.7)
    both = ratio(frame[frame["name"] == "a"], frame[frame["name"] == "b"], "parameters", 5)
    assert both["limit"].iloc[0] == 20
    assert (both["ratio"] == 3.1 / 2.6).all() and (both["low"] == 3.1 / 2.7).all()
    both = ratio(frame[frame["name"] == "c"], frame[frame["name"] == "a"], "parameters", 5)
    assert both["beyond"].all() and both["limit"].iloc[0] == 30
    both = ratio(frame[frame["name"] == "a"], frame[frame["name"] == "c"], "parameters", 5)
    assert not both["beyond"].any()


def test_prices_are_those_of_the_best_on_the_images_left_out():
    costs = {"hidden 8x8": 9, "hidden 16x8": 50, "block 64": 10, "stack 2 x 64": 20}
    errors = {"hidden 8x8": 3.0, "hidden 16x8": 2.0, "block 64": 4.0, "stack 2 x 64": 1.0}
    rows = [row(n, c, errors[n], errors[n] + 0.1) for n, c in costs.items()]
    frame = with_family(pd.DataFrame(rows))
    found = prices(frame)
    names = found["name"].to_list()
    assert names == ["hidden 16x8", "hidden 8x8", "block 64", "stack 2 x 64"]
    assert found["error"].to_list() == [2.1, 3.1, 4.1, 1.1]
    assert found["operations"].to_list() == [100, 18, 20, 40]


def test_models_have_their_costs():
    given = {"data": "MNIST", "task": "hidden", "name": "block 128, decay", "stages": 1}
    given |= {"epochs": 4}
    given |= {"lr_factor": 1.0, "parameters": 7, "seed": 0, "n_train": 100, "what": "error"}
    given |= {"level": 4}
    stored = pd.DataFrame(
        [{**given, "split": s, "error": e} for s, e in (("test", 0.2), ("left out", 0.1))]
        + [{**given, "what": "curve", "error": 9.0}, {**given, "n_train": 50, "error": 9.0}]
        + [
            {**given, "lr_factor": 2.0, "split": s, "error": e}
            for s, e in (("test", 0.1), ("left out", 0.2))
        ]
    )
    costs = pd.DataFrame(
        {"task": "hidden", "name": "block 128", "stages": 1, "operations": 5, "training µs": us}
        for us in (10, 8, 100)  # three runs of the benchmark
    )
    (model,) = models(stored, costs, n_images=100).to_dict("records")
    assert (model["test"], model["left out"], model["family"]) == (0.2, 0.1, "block")
    assert math.isclose(model["seconds"], 10e-6 * 4 * 100) and model["operations"] == 5


def test_a_summary_counts_on_a_logarithmic_scale():
    frame = pd.DataFrame(
        {
            "limit": [1.0, 10, 100, 1000, 10000],
            "ratio": [1.1, 0.97, 0.94, 0.93, 0.92],
            "beyond": [False, False, False, False, True],
        }
    )
    found = summary(frame, 0.95)
    assert (found["lowest"], found["highest"], found["at any cost"]) == (0.93, 1.1, 0.92)
    assert math.isclose(found["factor at the aim"], 10)
    assert math.isclose(found["factor ahead"], 100) and math.isclose(found["of"], 1000)
    none = summary(frame[frame["beyond"]], 0.95)
    assert math.isnan(none["lowest"]) and math.isnan(none["of"]) and none["at any cost"] == 0.92


def test_the_control_passes_errors_through_all_stages():
    """Against differences of the loss, in double precision."""
    x, _ = tokens(20)
    hide = HideTokens(2, mean_token(x))
    cascade, generator = Cascade(hidden=True), torch.Generator().manual_seed(0)
    for _ in range(2):
        stage = Layered(2, 3, True, 2, 1e-2).network(4, 5, cascade.n_known(5), generator)
        cascade.add(stage)
    cascade, x = cascade.double(), x.double()
    state, sites = hide(x.float(), torch.Generator().manual_seed(1))
    state = torch.nn.functional.normalize(state.double(), dim=-1)
    loss, gradients = through_all_stages(cascade, state, x, sites)
    first = dict(cascade.named_parameters())["stages.0.couplings.V"]
    assert not first.requires_grad
    step = torch.zeros_like(first)
    step[1, 2, 0, 3] = 1e-6
    first += step
    more, _ = through_all_stages(cascade, state, x, sites)
    first -= 2 * step
    less, _ = through_all_stages(cascade, state, x, sites)
    expected = gradients["stages.0.couplings.V"][1, 2, 0, 3]
    assert abs((more - less) / 2e-6 - expected) < 1e-7 and expected != 0


def test_both_sides_meet_in_every_task():
    frame = pd.DataFrame(
        [row("hidden 16x8", 10, 3.0, 3.0) | {"level": level, "seconds": 1.0} for level in (1, 4)]
        + [
            row(name, 10, 2.0, 2.0 + level) | {"level": level, "seconds": 1.0}
            for level in (1, 4)
            for name in ("block 64", "stack 2 x 64")
        ]
    )
    frame = with_family(frame)
    found = verdicts(frame)
    assert found["ratio"].to_list() == [1.0, 1.0, 0.5, 0.5]
    assert found["our model"].unique().tolist() == ["hidden 16x8"]
    equal = at_equal_cost(frame, ["parameters"], {"a block": 0.9, "a stack": 0.95})
    assert equal["lowest"].to_list() == [1.0, 1.0, 0.5, 0.5]
    assert {"factor at the aim", "factor ahead", "of"} <= set(equal)


def test_a_ratio_changes_where_a_model_comes_in():
    ours = pd.DataFrame([row("a", 10, 3.0, 3.0), row("b", 77, 1.0, 1.0)])
    theirs = pd.DataFrame([row("c", 10, 2.0, 2.0), row("d", 100, 0.5, 0.5)])
    found = ratio(ours, theirs, "parameters", 3).set_index("limit")["ratio"]
    assert found[77.0] == 0.5 and found[100.0] == 2.0 and found[10.0] == 1.5
    assert found[found.index < 77].unique().tolist() == [1.5]


def test_at_equal_parameters_the_aim_is_to_be_level():
    models = [
        row(name, n, error, error, stages=stages)
        for name, error in (("hidden 16x8", 0.97), ("block 64", 1.0), ("stack 2 x 64", 1.0))
        for stages, n in ((1, 10), (2, 1000))
    ]
    frame = with_family(pd.DataFrame(models)).assign(level=1, seconds=lambda f: f["parameters"])
    aims = {"a block": 0.9, "a stack": 0.95}
    found = at_equal_cost(frame, ["parameters", "seconds"], aims).groupby("cost")
    assert found["factor at the aim"].min().round(6).to_dict() == {"parameters": 100, "seconds": 1}


def test_a_law_is_found_and_where_two_meet():
    x = [1, 2, 4, 8]
    falling = law(x, [3 * n**-0.5 for n in x])
    assert math.isclose(falling["a"], 0.5) and math.isclose(falling["c"], 3)
    assert falling["error of a"] < 1e-9
    noisy = law(x, [3, 2.2, 1.4, 1.1])
    assert 0.01 < noisy["error of a"] < 0.1
    slow = {"a": 0.1, "c": 1.5}
    at = meet(falling, slow)
    assert math.isclose(falling["c"] * at**-0.5, slow["c"] * at**-0.1)
    with pytest.raises(ValueError, match="at least 3 numbers, got 2"):
        law([1, 2], [2, 1])


def test_the_points_of_the_laws():
    """Seconds of training, images at one number of steps, parameters of the longest training, as
    depth or width grows.
    """
    runs = [  # name, stages, epochs, images, parameters
        *[("hidden 16x8, decay", s, e, 55_000, 100 * s) for e in (3, 12) for s in (1, 2)],
        *[("hidden 16x8, decay", s, 12, 13_750, 100 * s) for s in (1, 2)],
        *[("stack 2 x 64", 1, e, 55_000, 50) for e in (15, 60)],
        *[("stack 4 x 64", 1, e, 55_000, 90) for e in (15, 60)],
        *[("block 64", 1, e, n, 25) for e, n in ((15, 55_000), (60, 13_750), (60, 55_000))],
    ]
    keys = "name", "stages", "epochs", "n_train", "parameters"
    about = {"data": "MNIST", "task": "hidden", "lr_factor": 1.0, "seed": 0, "what": "error"}
    rows = [about | dict(zip(keys, run)) | {"level": 4} for run in runs]
    stored = pd.DataFrame(
        [
            {**row, "split": split, "error": n}
            for n, row in enumerate(rows)
            for split in ("left out", "test")
        ]
    )
    costs = pd.DataFrame(
        [
            {"task": "hidden", "name": name, "stages": s, "operations": 1}
            | {"training µs": s / 0.055}
            for name in ("hidden 16x8, decay", "stack 2 x 64", "stack 4 x 64", "block 64")
            for s in (1, 2)
        ]
    )
    points = law_points(stored, costs, level=4)
    found = {
        key: dict(zip(f["at"].round(6), f["error"])) for key, f in points.groupby(["family", "x"])
    }
    assert found == {
        ("block", "seconds"): {15: 10, 60: 12},
        ("block", "images"): {13_750: 11, 55_000: 10},
        ("block", "parameters"): {25: 12},
        ("hidden spins", "seconds"): {6: 1, 24: 3},
        ("hidden spins", "images"): {13_750: 5, 55_000: 1},
        ("hidden spins", "parameters"): {100: 2, 200: 3},
        ("stack of blocks", "seconds"): {15: 8, 60: 9},
        ("stack of blocks", "images"): {55_000: 6},
        ("stack of blocks", "parameters"): {25: 12, 50: 7, 90: 9},
    }
