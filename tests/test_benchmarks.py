import math

import costs
import epochs
import pytest
import scaling
import steps
import torch

CPU = torch.device("cpu")


@pytest.mark.parametrize("benchmark, small", [
    (steps, {"batches": [4], "rounds": 1}), (epochs, {"n_steps": 2, "rounds": 1}), (costs, {"rounds": 1, "sizes": [(4, 9)]})])
def test_measures_something_for_every_row(benchmark, small):
    rows = list(benchmark.rows(CPU, **small))
    assert len(rows) > 3
    for row in rows:
        assert all(isinstance(value, str) or value is None or (math.isfinite(value) and value > 0) for value in row.values()), row


def test_curve_varies_one_size():
    points = scaling.curve("rank 16", "N", 1, CPU, [2, 3])
    assert [point["N"] for point in points] == [2, 3] and all(point["ms"] > 0 and point["heads"] == 16 for point in points)


def test_speed_up_and_floor_are_those_of_the_times_in_the_row():
    rows = list(steps.rows(CPU, batches=[4], rounds=1))
    by_autograd = {(row["model"], row["what"]): row["ms"] for row in rows if row["by"] == "autograd"}
    for row in rows:  # of one round, the median of ratios is the ratio
        assert row["autograd / this"] == pytest.approx(by_autograd[row["model"], row["what"]] / row["ms"])
    rate = {row["operations (million)"] / row["ms"] * row["times the floor"] for row in rows}
    assert max(rate) == pytest.approx(min(rate))  # one machine, one rate of a large product


def test_cost_of_a_cascade_is_that_of_its_stages_and_of_the_updates_before_them():
    rows = {(row["name"], row["stages"]): row for row in costs.rows(CPU, rounds=1, sizes=[(4, 9)])}
    for (name, stages), row in rows.items():
        one = rows[name, 1]
        assert (row["parameters"], row["operations"]) == (stages * one["parameters"], stages * one["operations"])
    names = {name for name, stages in rows if stages == 4}
    assert names
    for name in names:  # t steps, and an update for each pair of stages: second differences are the time of that update
        first, second, third, fourth = (rows[name, stages]["training µs"] for stages in range(1, 5))
        assert third - 2 * second + first == pytest.approx(fourth - 2 * third + second)
