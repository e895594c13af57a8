"""`run` on maps whose answer is known, and on the network."""

import math

import pytest
import torch
from conftest import random_network, random_states

from attractor_lib.dynamics import run


def rotation(angle):
    matrix = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    return lambda x: x @ matrix.T


def halve_angle(x):
    """A map of the circle with the fixed point (1, 0) and residuals that halve at every step."""
    angle = torch.atan2(x[..., 1], x[..., 0]) / 2
    return torch.stack([angle.cos(), angle.sin()], -1)


def test_a_rotation_never_converges_and_has_the_residual_of_its_chord():
    x0 = random_states(4, 3, 2)
    trajectory = run(rotation(0.3), x0, 7)
    assert trajectory.states.shape == (8, 4, 3, 2) and trajectory.residuals.shape == (7, 4)
    torch.testing.assert_close(
        trajectory.residuals, torch.full((7, 4), 2 * math.sin(0.15), dtype=torch.float64)
    )
    torch.testing.assert_close(trajectory.final, rotation(2.1)(x0))
    assert torch.equal(trajectory.states[0], x0) and torch.equal(
        trajectory.states[-1], trajectory.final
    )
    assert not trajectory.converged.any()


def test_convergence_is_judged_for_each_example():
    x0 = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-0.6, 0.8]]], dtype=torch.float64)
    for n_steps, expected in ((3, [True, False]), (30, [True, True])):
        assert run(halve_angle, x0, n_steps).converged.tolist() == expected


def test_states_are_the_iterates_of_the_update():
    network, x = random_network(None), random_states(7, 5, 11)
    trajectory = run(network.update, x, 3)
    assert torch.equal(trajectory.states[3], network.update(network.update(network.update(x))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_of_nan_never_converges(dtype):
    network, x = random_network(None).to(dtype), random_states(7, 5, 11).to(dtype)
    network.couplings.J.fill_(math.nan)
    trajectory = run(network.update, x, 1)
    assert trajectory.residuals.isnan().all() and not trajectory.converged.any()
    with pytest.raises(ValueError, match="x must have tokens of norm 1"):
        run(network.update, x, 2)


@pytest.mark.parametrize("each", [False, True])
def test_clamped_sites_stand_and_act(each):
    network, x = random_network(None), random_states(7, 5, 11)
    clamped = torch.tensor([True, False, False, True, False])
    clamped = torch.stack([clamped.roll(m) for m in range(7)]) if each else clamped
    final = run(network.update, x, 4, clamped).final
    mask = clamped.expand(7, 5)
    assert (
        torch.equal(final[mask], x[mask])
        and not torch.isclose(final[~mask], x[~mask]).any(-1).all()
    )
    assert not torch.allclose(final[~mask], run(network.update, x, 4).final[~mask])


def test_observe_keeps_only_what_is_asked_for():
    x0 = random_states(4, 3, 2)
    trajectory = run(rotation(0.3), x0, 5, observe=lambda x: x[:, 0, 0])
    assert torch.equal(trajectory.states, run(rotation(0.3), x0, 5).states[:, :, 0, 0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda x: (lambda s: s, x[0], 3), r"x0 must have shape \(batch, N, d\), got \(3, 2\)"),
        (lambda x: (lambda s: s, x, 0), "n_steps must be at least 1, got 0"),
        (
            lambda x: (lambda s: s, x, 3, torch.ones(4, dtype=torch.bool)),
            r"clamped must be boolean of shape \(3,\) or \(4, 3\)",
        ),
        (
            lambda x: (lambda s: s[:1], x, 3),
            r"update must return states of shape \(4, 3, 2\), got \(1, 3, 2\)",
        ),
    ],
)
def test_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments(random_states(4, 3, 2)))


def test_a_function_for_each_step():
    x0 = torch.arange(12.0).view(2, 3, 2)
    trajectory = run([lambda x: x + 1, lambda x: 2 * x], x0, 2)
    assert torch.equal(trajectory.states, torch.stack([x0, x0 + 1, 2 * x0 + 2]))
    with pytest.raises(ValueError, match="one for each of the 3 steps, got 2"):
        run([lambda x: x, lambda x: x], x0, 3)
