"""The diagnosis on maps whose end is known: rotations, contractions, chaos, and basins with a known
border.
"""

import math

import pytest
import torch
from conftest import random_states
from torch.nn import functional as F

from attractor_lib.corruption import no_corruption
from attractor_lib.diagnosis import LABELS, diagnose, lyapunov_exponent, overlapping_basins
from attractor_lib.dynamics import run


def on_circle(step):
    """A map of the angle, acting on every token of states (batch, N, 2)."""

    def update(x):
        angle = step(torch.atan2(x[..., 1], x[..., 0]))
        return torch.stack([angle.cos(), angle.sin()], -1)

    return update


def at_angle(*angles, n_sites=3):
    angle = torch.tensor(angles, dtype=torch.float64)[:, None].expand(-1, n_sites)
    return torch.stack([angle.cos(), angle.sin()], -1)


def logistic(angle):
    u = angle / (math.pi / 2)
    return 4 * u * (1 - u) * math.pi / 2


GOLDEN = 2 * math.pi * (math.sqrt(5) - 1) / 2


@pytest.mark.parametrize("p", range(2, 17))
def test_a_rotation_by_a_p_th_of_a_turn_is_a_cycle_of_period_p(p):
    found = diagnose(on_circle(lambda a: a + 2 * math.pi / p), random_states(4, 3, 2), n_steps=200)
    assert (
        found.labels == ["cycle"] * 4
        and found.period.tolist() == [p] * 4
        and not found.steps_left.any()
    )


@pytest.mark.parametrize(
    "name, update, label, period",
    [
        ("identity", lambda x: x, "fixed point", 1),
        ("to a point", lambda x: torch.ones_like(x) / math.sqrt(2), "fixed point", 1),
        ("contraction", on_circle(lambda a: 0.5 * a), "fixed point", 1),
        ("contraction that ends in the tail", on_circle(lambda a: 0.94 * a), "fixed point", 1),
        ("damped oscillation", on_circle(lambda a: -0.9 * a), "fixed point", 1),
        ("sign flip", lambda x: -x, "cycle", 2),
        ("period above the largest", on_circle(lambda a: a + 2 * math.pi / 17), "not converged", 0),
        ("golden rotation", on_circle(lambda a: a + GOLDEN), "not converged", 0),
        ("slow rotation", on_circle(lambda a: a + 1e-3), "drift", 0),
        (
            "slow rotation that speeds up",
            on_circle(lambda a: a + 1e-3 + 1e-4 * a.cos()),
            "drift",
            0,
        ),
        ("chaos", on_circle(logistic), "not converged", 0),
    ],
)
def test_known_maps(name, update, label, period):
    found = diagnose(update, at_angle(0.3, 0.5, 0.9, 1.2), n_steps=200)
    assert found.labels == [label] * 4, name
    assert found.period.tolist() == [period] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rate, tolerance", [(1 - 1e-4, 0.01), (-(1 - 1e-3), 0.01), (-(1 - 1e-4), 0.02)]
)
def test_slow_contraction_is_told_from_drift_and_from_rest_and_its_end_is_foretold(
    rate, tolerance, dtype
):
    """The last residual is below the tolerance already (rate 1 - 1e-4), but the fixed point is
    far.
    """
    trajectory = run(on_circle(lambda a: rate * a), at_angle(0.2, 0.6).to(dtype), 400)
    found = diagnose(trajectory)
    assert trajectory.converged.all() == (rate > 0) and found.labels == ["slow convergence"] * 2
    angle = trajectory.final[:, 0, 1].asin().abs().double()
    loose = 1 if dtype is torch.float64 else 20
    torch.testing.assert_close(found.path_left, angle, rtol=loose * tolerance, atol=0)
    steps = (angle / 1e-4).log() / -math.log(abs(rate))
    torch.testing.assert_close(found.steps_left, steps, rtol=loose * tolerance, atol=0)
    drift = diagnose(on_circle(lambda a: a + 1e-4), at_angle(0.2, 0.6).to(dtype))
    assert drift.labels == ["drift"] * 2 and drift.path_left.min() > 2


def test_algebraic_convergence_is_extrapolated_as_such():
    """a(t+1) = a - a^2 has a = 1/t and residuals t^-2: the path left is a itself, and 1/tau steps
    lead to tau.
    """
    found = diagnose(on_circle(lambda a: a - a.square()), at_angle(0.5, 0.4), n_steps=800)
    angle = run(on_circle(lambda a: a - a.square()), at_angle(0.5, 0.4), 800).final[:, 0, 1].asin()
    assert found.labels == ["slow convergence"] * 2
    torch.testing.assert_close(found.path_left, angle, rtol=0.02, atol=0)
    torch.testing.assert_close(
        found.steps_left, torch.full((2,), 1e4, dtype=torch.float64), rtol=0.15, atol=0
    )


def test_each_example_has_its_own_label():
    angles = torch.tensor([0.0, math.pi, 2 * math.pi / 3, GOLDEN, 1e-3, 0.0], dtype=torch.float64)[
        :, None
    ]
    rates = torch.tensor([1.0, 1, 1, 1, 1, 1 - 1e-3], dtype=torch.float64)[:, None]
    found = diagnose(on_circle(lambda a: rates * a + angles), at_angle(*[0.3] * 6), n_steps=200)
    assert found.labels == [
        "fixed point",
        "cycle",
        "cycle",
        "not converged",
        "drift",
        "slow convergence",
    ]
    assert found.period.tolist() == [1, 2, 3, 0, 0, 0]
    assert found.shares() == pytest.approx(dict(zip(LABELS, (1 / 6, 2 / 6, 1 / 6, 1 / 6, 1 / 6))))


def test_one_moving_site_is_enough_and_straightness_is_chord_over_arc():
    turn = torch.tensor([0.0, 0.0, 5e-3], dtype=torch.float64)
    found = diagnose(on_circle(lambda a: a + turn), at_angle(0.3), n_steps=100, window=40)
    assert found.labels == ["drift"]
    torch.testing.assert_close(
        found.straightness, torch.tensor([2 * math.sin(0.1) / (40 * 2 * math.sin(0.0025))]).double()
    )
    quarter = math.pi / 2 / 40
    label = [
        diagnose(on_circle(lambda a: a + f * quarter), at_angle(0.3), 100, window=40).labels[0]
        for f in (0.99, 1.03)
    ]
    assert label == ["drift", "not converged"]


def test_a_random_walk_is_no_drift():
    generator = torch.Generator().manual_seed(0)
    walk = lambda x: F.normalize(
        x + 1e-3 * torch.randn(x.shape, generator=generator, dtype=x.dtype), dim=-1
    )
    found = diagnose(walk, random_states(20, 3, 5), n_steps=200)
    assert found.labels == ["not converged"] * 20 and found.straightness.mean() < 0.4


def test_a_step_function_and_its_trajectory_have_the_same_diagnosis():
    update, x0 = on_circle(lambda a: 0.999 * a), random_states(5, 3, 2)
    one, other = diagnose(update, x0, n_steps=150), diagnose(run(update, x0, 150))
    assert one.labels == other.labels and torch.equal(one.period, other.period)
    torch.testing.assert_close(one.path_left, other.path_left, rtol=1e-12, atol=0)


def test_lyapunov_exponents_of_known_maps():
    x0 = at_angle(*torch.linspace(0.1, 1.4, 20).tolist())
    assert lyapunov_exponent(on_circle(logistic), x0, 2000, 1e-8).mean().item() == pytest.approx(
        math.log(2), abs=0.02
    )
    still = lyapunov_exponent(on_circle(lambda a: a + GOLDEN), x0)
    torch.testing.assert_close(still, torch.zeros_like(still), atol=1e-4, rtol=0)
    shrinks = lyapunov_exponent(on_circle(lambda a: 0.7 * a), x0)
    torch.testing.assert_close(shrinks, torch.full_like(shrinks, math.log(0.7)), atol=1e-3, rtol=0)
    same = lyapunov_exponent(lambda x: at_angle(0.3).expand_as(x), x0)  # runs meet at once
    torch.testing.assert_close(same, torch.full_like(same, math.log(torch.finfo(same.dtype).eps)))


def to_poles(x):
    """Every token goes to the pole of its hemisphere: two basins, the equator between them."""
    return F.normalize(x * torch.tensor([0.5, 0.5, 1.0], dtype=x.dtype), dim=-1)


def test_merged_examples_share_an_end_and_split_ones_lie_on_the_border():
    examples = F.normalize(
        torch.tensor([[0.3, 0, 1], [0, -0.5, 1], [0.2, 0.1, -1], [1, 0, 1e-3]]).double(), dim=-1
    )[:, None]

    def jitter(x, generator):
        return F.normalize(
            x + 0.05 * torch.randn(x.shape, generator=generator, dtype=x.dtype), dim=-1
        ), None

    merged, split = overlapping_basins(to_poles, examples, jitter, n_steps=60, n_starts=50)
    assert merged.tolist() == [2, 2, 0, 2]
    assert split[:3].tolist() == [0, 0, 0] and 10 < split[3] < 40
    merged, split = overlapping_basins(lambda x: x, examples, no_corruption, n_steps=1)
    assert merged.tolist() == [0] * 4 and split.tolist() == [0] * 4


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: diagnose(run(lambda s: s, x, 20)),
            r"the run must have at least 32 steps \(the window\), got 20",
        ),
        (
            lambda x: diagnose(lambda s: s, x, 100, window=31),
            "window must be at least 8 and 2 max_period = 32, got 31",
        ),
        (
            lambda x: diagnose(lambda s: s, x, 100, max_period=0),
            "max_period must be at least 1 and tolerance > 0, got 0",
        ),
        (
            lambda x: diagnose(lambda s: s, x, 100, tolerance=math.nan),
            "tolerance > 0, got 16 and nan",
        ),
        (lambda x: diagnose(lambda s: s), "a step function needs a start x0"),
        (
            lambda x: diagnose(lambda s: s * math.nan, x),
            "the states must be finite, got NaN or infinity",
        ),
        (
            lambda x: diagnose(run(lambda s: s, x, 50, observe=lambda s: s[..., 0])),
            r"states \(n_steps \+ 1, batch, N, d\), got",
        ),
        (
            lambda x: lyapunov_exponent(lambda s: s, x, 1),
            "n_steps must be at least 2 and epsilon > 0, got 1",
        ),
        (
            lambda x: overlapping_basins(lambda s: s, x[:1], no_corruption),
            "at least 2 examples and 1 start near each, got 1",
        ),
    ],
)
def test_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_states(7, 5, 11))
