import importlib
import json
import math
import shutil
from pathlib import Path

import costs
import epochs
import letters
import measure
import pytest
import run
import scaling
import shakespeare
import small
import steps
import tokens
import torch
import verdict

from attractor_lib.couplings import Full, LowRank, SharedFactors
from attractor_lib.model import AttractorNetwork

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


def rows_of_tokens(device, batch, **sizes):
    case = {"batch": batch, "dim": 5, **sizes}
    return measure.compared(case, *tokens.problem(device, **case), rounds=1, device=device, turn=0)


@pytest.mark.parametrize(
    "rows, sizes",
    [
        (steps.rows, {"sizes": [(4, 50)], "rounds": 1}),
        (rows_of_tokens, {"batch": 3, "n_sites": 4, "heads": 2, "rank": 3}),
        (small.rows, {"rounds": 1, "starts": 0}),
        (epochs.rows, {"n_steps": 2, "rounds": 1}),
        (costs.rows, {"rounds": 1, "sizes": [(4, 9)]}),
        (letters.rows, {"rounds": 1, "sizes": [(2, 5)]}),
        (shakespeare.rows, {"rounds": 1, "context": 6}),
        (verdict.rows, {"rounds": 1, "tasks": [("hidden", 4, 9), ("noise", 4, 9)]}),
    ],
)
def test_measures_something_for_every_row(rows, sizes):
    rows = list(rows(CPU, **sizes))
    assert len(rows) > 3
    for row in rows:
        assert all(
            isinstance(value, str) or value is None or (math.isfinite(value) and value > 0)
            for value in row.values()
        ), row


@pytest.mark.parametrize(
    "couplings",
    [Full.random(2, 5, 7), LowRank.random(2, 5, 7, 3), SharedFactors.random(2, 5, 7, 3)],
    ids=["full", "low rank", "shared factors"],
)
def test_all_ways_compute_the_same(couplings):
    network = AttractorNetwork(5, 7, beta=3.0, couplings=couplings)
    for p in network.parameters():
        p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    network.hears = torch.ones(5, 5, dtype=torch.bool).tril(1)
    data = measure.example(6, 5, 7, CPU)
    for field in measure.FIELDS.values():
        torch.testing.assert_close(field(network, data[0]), network.field(data[0]))
    loss, gradients = measure.RULES["closed form"](network, *data)
    for by, rule in measure.RULES.items():
        got, of = rule(network, *data)
        torch.testing.assert_close(got, loss)
        for name in gradients:
            torch.testing.assert_close(of[name], gradients[name], msg=f"{by}: {name}")


def test_the_core_is_attention_of_the_queries_and_keys():
    network = AttractorNetwork(4, 5, 2, 3, beta=2.0)
    data = measure.example(6, 4, 5, CPU)
    functions, _ = tokens.attention(network, data[0])
    q, k = network.couplings.queries(data[0]), network.couplings.keys(data[0])[:, :, 0]
    t = 2.0 * q @ k.mT
    others = t.masked_fill(torch.eye(4, dtype=torch.bool), -math.inf)
    for by, scores in (("fused attention", others), ("fused attention, unmasked", t)):
        torch.testing.assert_close(functions[by, "attention"](), scores.softmax(-1) @ k)
    q, k = (w.detach().requires_grad_() for w in (q, k))
    o = (2.0 * q @ k.mT).softmax(-1) @ k
    expected = torch.autograd.grad(o, (q, k), q.detach())
    got = functions["fused attention, unmasked", "attention's gradient"]()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_operations_are_those_of_the_products():
    batch, N, d, heads, rank = 3, 4, 5, 2, 7
    full, low = AttractorNetwork(N, d, heads), AttractorNetwork(N, d, heads, rank)
    with_J = 2 * batch * heads * N**2 * d**2
    assert measure.products(full, batch, "field") == with_J
    assert measure.products(full, batch, "rule") == 2 * with_J
    thin, attention = 2 * batch * heads * N * rank * d, 2 * batch * heads * N**2 * rank
    assert measure.products(low, batch, "field") == 3 * thin + 2 * attention
    assert measure.products(low, batch, "rule") == 7 * thin + 6 * attention
    _, counted = tokens.attention(low, measure.example(batch, N, d, CPU)[0])
    assert counted == {"attention": 2 * attention, "attention's gradient": 6 * attention}


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    timers = {"d": lambda turn: calls.append("d") or 1 + turn}
    seconds = measure.interleaved(functions, 5, CPU, turn=0, timers=timers)
    rounds = [calls[n : n + 4] for n in range(0, len(calls), 4)]
    assert len(rounds) == 6 and all(set(names) == set("abcd") for names in rounds)
    assert len(set(map(tuple, rounds))) > 1  # not always the same one after the same other
    assert {name: len(of) for name, of in seconds.items()} == dict.fromkeys("abcd", 5)
    assert seconds["d"] == [1] * 5


def test_a_turn_is_filled_with_calls_of_which_the_first_does_not_count(monkeypatch):
    now, lasts = [0.0], iter([3.0, *[1.0] * 99])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def function():
        now[0] += next(lasts)

    assert measure.timed(function, CPU, turn=12) == 1 and now[0] == 3 + 4
    assert measure.timed(function, CPU, turn=1) == 1 and now[0] == 3 + 4 + 1


def test_ratios_are_taken_within_a_round_and_the_spread_is_the_middle_half(monkeypatch):
    seconds = {
        ("closed form", "rule"): [1.0, 2.0, 4.0, 8.0, 16.0],
        ("autograd", "rule"): [2.0, 8.0, 4.0, 40.0, 64.0],  # 2, 4, 1, 5 and 4 times as long
        "large product": [0.5, 0.5, 1.0, 1.0, 1.0],
    }
    monkeypatch.setattr(measure, "interleaved", lambda *_: dict(seconds))
    monkeypatch.setattr(measure, "large_product", lambda device: (None, 100))
    one, other = measure.compared({"N": 7}, {}, {"rule": 50}, 5, CPU)
    assert one["N"] == 7 and (one["by"], one["what"]) == ("closed form", "rule")
    assert [one["ms"], one["ms from"], one["ms to"]] == [4000, 2000, 8000]
    ratio = "autograd / this"
    assert [one[ratio], one[f"{ratio} from"], one[f"{ratio} to"]] == [4, 2, 4]
    assert other[ratio] == other[f"{ratio} to"] == 1
    assert one["fused attention / this"] is one["fused attention / this from"] is None
    assert one["times the floor"] == 8  # of 4, 8, 8, 16, 32: half of a large product's operations
    assert "4e+03 (2e+03 to 8e+03)" in run.table([one, other])
    assert "4 (2 to 4)" in run.table([one, other]) and "fused" not in run.table([one, other])


def test_curve_varies_one_size_and_has_the_exponents_of_its_points():
    points = scaling.curve("rank 16", "N", [2, 3, 48], 1, CPU, {"batch": 64, "d": 8})
    assert [point["N"] for point in points] == [2, 3, 48]
    assert all(point["ms"] > 0 and point["heads"] == 16 for point in points)
    assert points[0]["exponent"] is points[0]["exponent of MB"] is None
    for smaller, point in zip(points, points[1:]):
        ratio = point["size"] / smaller["size"]
        assert ratio ** point["exponent"] == pytest.approx(point["ms"] / smaller["ms"])
        if smaller["MB"] >= 1:
            grown = point["MB"] / smaller["MB"]
            assert ratio ** point["exponent of MB"] == pytest.approx(grown)
    assert points[-1]["MB"] > 1


def test_memory_is_what_a_rule_needs_above_what_was_there():
    """Autograd keeps the scores and attention (batch, heads, N, N), 4 bytes each, at least."""
    *_, point = scaling.curve("rank 16, autograd", "N", [8, 256], 1, CPU, {"batch": 8, "d": 8})
    scores = 8 * 16 * 256**2 * 4e-6
    assert 2 * scores < point["MB"] < 20 * scores


def other_checkout(folder, more=""):
    shutil.copytree(ROOT / "attractor_lib", folder / "attractor_lib")
    with open(folder / "attractor_lib/learning/rules.py", "a") as file:
        file.write(more)
    return folder


def test_the_other_checkout_is_what_is_timed_as_before(tmp_path):
    slow = """
import time
_quick = prediction_rule
def prediction_rule(*arguments):
    time.sleep(0.05)
    return _quick(*arguments)
"""
    with measure.OtherCheckout(other_checkout(tmp_path, slow), "small", CPU) as before:
        case = {"batch": 2, "n_sites": 3, "dim": 5, "model": "4 heads of rank 8"}
        made = measure.compared(case, *small.problem(CPU, **case), 3, CPU, 0, before)
        rows = {(row["by"], row["what"]): row for row in made}
    assert before.process.returncode == 0
    assert rows["before", "rule"]["ms"] > 50 > 10 * rows["before", "field"]["ms"]
    assert rows["closed form", "rule"]["before / this"] > 5
    assert {by for by, _ in rows} == {"closed form", "batched kernel", "before"}


def test_a_folder_without_the_library_is_no_other_checkout(tmp_path):
    with pytest.raises(ValueError, match="expected a checkout with attractor_lib"):
        measure.OtherCheckout(tmp_path, "small", CPU)


@pytest.mark.slow
def test_the_first_call_compiles_once():
    empty, filled = small.first_calls(CPU, starts=1)
    assert (empty["cache"], filled["cache"]) == ("empty", "filled")
    assert empty["s"] > 5 * filled["s"] > 0


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


@pytest.mark.parametrize("name", run.BENCHMARKS)
def test_every_benchmark_says_what_it_measures_and_has_both_profiles(name):
    benchmark = importlib.import_module(name)
    assert set(benchmark.PROFILES) == {"quick", "full"}
    assert benchmark.__doc__.splitlines()[0].endswith(".") and name in run.__doc__
    json.dumps(benchmark.PROFILES)
