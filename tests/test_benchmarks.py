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
