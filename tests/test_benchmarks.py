import math

import costs
import epochs
import pytest
import scaling
import steps
import torch

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "benchmark, small",
    [
        (steps, {"batches": [4], "rounds": 1}),
        (epochs, {"n_steps": 2, "rounds": 1}),
        (costs, {"rounds": 1, "sizes": [(4, 9)]}),
    ],
)
def test_measures_something_for_every_row(benchmark, small):
    rows = list(benchmark.rows(CPU, **small))
    assert len(rows) > 3
    for row in rows:
        assert all(
            isinstance(value, str) or value is None or (math.isfinite(value) and value > 0)
            for value in row.values()
        ), row


def test_curve_varies_one_size():
    points = scaling.curve("rank 16", "N", 1, CPU, [2, 3])
    assert [point["N"] for point in points] == [2, 3] and all(
        point["ms"] > 0 and point["heads"] == 16 for point in points
    )


def test_speed_up_and_floor_are_those_of_the_times_in_the_row():
    rows = list(steps.rows(CPU, batches=[4], rounds=1))
    by_autograd = {
        (row["model"], row["what"]): row["ms"] for row in rows if row["by"] == "autograd"
    }
    for row in rows:  # of one round, the median of ratios is the ratio
        assert row["autograd / this"] == pytest.approx(
            by_autograd[row["model"], row["what"]] / row["ms"]
        )
    rate = {row["operations (million)"] / row["ms"] * row["times the floor"] for row in rows}
    assert max(rate) == pytest.approx(min(rate))  # one machine, one rate of a large product


def test_cost_of_a_cascade_is_that_of_its_stages_and_of_the_updates_before_them(monkeypatch):
    def given_times(functions, rounds, device):
        of = {
            "step": 5e-3,
            "update": 3e-3,
            "hide": 1e-3,
        }  # an update is timed with its hiding: 2 ms by itself
        return {key: [of[key if isinstance(key, str) else key[1]]] for key in functions}

    monkeypatch.setattr(costs, "interleaved", given_times)
    rows = {(row["name"], row["stages"]): row for row in costs.rows(CPU, rounds=1, sizes=[(4, 9)])}
    assert max(stages for _, stages in rows) == 4
    for (name, stages), row in rows.items():
        one = rows[name, 1]
        assert (row["parameters"], row["operations"]) == (
            stages * one["parameters"],
            stages * one["operations"],
        )
        ms = {1: 6, 2: 12 + 2, 3: 18 + 6, 4: 24 + 12}[stages]
        assert row["training µs"] == pytest.approx(1e3 * ms / costs.BATCH)
