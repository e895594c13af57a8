import pytest
import torch
from conftest import BATCH, D, N, every_network, random_network, random_states, randomised

from attractor_lib.dynamics import run
from attractor_lib.jacobian import update_jacobian
from attractor_lib.model import AttractorNetwork
from attractor_lib.transient import (
    LAWS,
    crossing_time,
    growing_modes,
    law,
    linear_law,
    own_blocks,
    share_within,
    spectrum,
)


@pytest.mark.parametrize("network", every_network())
def test_every_law_is_the_update_at_the_image(network):
    x = random_states(4, network.n_sites, network.dim)
    for name in LAWS:
        torch.testing.assert_close(law(network, x, name)(x), network.update(x))


def near(x, size, seed=4):
    generator = torch.Generator().manual_seed(seed)
    y = x + size * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return y / y.norm(dim=-1, keepdim=True)


def test_linear_scores_are_right_to_second_order_and_no_other_law_is(network, x):
    def off(name, size):
        y = near(x, size)
        return (law(network, x, name)(y) - network.update(y)).abs().max().item()

    assert off("scores linear", 1e-3) / off("scores linear", 1e-4) > 50
    for name in ("query held", "messages held"):
        assert off(name, 1e-3) / off(name, 1e-4) < 20


def test_messages_held_is_each_site_by_itself(network, x):
    other = near(x, 0.3)
    one = x.clone()
    one[:, 2] = other[:, 2]
    moved = law(network, x, "messages held")(one) - network.update(x)
    assert moved[:, 2].abs().max() > 1e-3
    moved[:, 2] = 0
    assert moved.abs().max() < 1e-12
    exact = network.update(one)[:, 2]  # the others have not moved
    torch.testing.assert_close(law(network, x, "messages held")(one)[:, 2], exact)


def test_the_linear_law_is_the_dynamics_of_small_displacements():
    network = random_network(None)
    network.gamma = 40.0  # so that the residual is small
    x = random_states(3, network.n_sites, network.dim)
    D, r = update_jacobian(network, x), network.update(x) - x
    m = linear_law(D, r, 3)
    found = run(network.update, x, 3, observe=lambda y: 1 - (y - x).square().sum((1, 2)) / 10)
    lost, expected = 1 - m[1:], 1 - found.states[1:]
    torch.testing.assert_close(lost[0], expected[0])
    torch.testing.assert_close(lost, expected, rtol=0.1, atol=0)
    wrong = 1 - linear_law(-D, r, 3)[1:]
    assert ((wrong - expected).abs() > 0.2 * expected)[1:].all()


def test_spectrum_and_modes():
    D = torch.diag(torch.tensor([0.5, -2.0, 1.5, 0.9, 0.0, 1.01])).view(2, 3, 2, 3)
    assert spectrum(D[None])[0, :3].real.tolist() == pytest.approx([-2, 1.5, 1.01])
    values, modes = growing_modes(D)
    assert values.real.tolist() == pytest.approx([-2, 1.5, 1.01])
    assert modes.abs().flatten(1).argmax(1).tolist() == [1, 2, 5]
    residual = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert share_within(residual, modes).item() == pytest.approx(16 / 25)
    assert share_within(residual, modes[:0]) == 0
    own = own_blocks(torch.ones(1, 2, 3, 2, 3))
    assert own.sum() == 18 and own[0, 0, :, 1].sum() == 0


def test_crossing_time():
    m = [[1.0, 1.0, 1.0, 0.2], [0.9, 0.7, 0.9, 0.9], [0.7, 0.9, 0.85, 0.1], [0.9, 0.1, 0.9, 0.1]]
    found = crossing_time(torch.tensor(m), 0.8).tolist()
    assert found == pytest.approx([1.5, 2 / 3, float("inf"), 0])


def test_what_is_known_does_not_move():
    network, x = randomised(AttractorNetwork(N, D, n_known=2)), random_states(BATCH, N, D - 2)
    s = torch.cat([x, random_states(BATCH, N, 2)], -1)
    assert torch.allclose(law(network, s, "query held")(s), network.update(s))
    y = torch.cat([x, random_states(BATCH, N, 2, seed=5)], -1)
    assert torch.equal(law(network, s, "messages held")(y)[..., -2:], y[..., -2:])


def test_what_is_refused(network, x):
    with pytest.raises(ValueError, match="one of query held, messages held, scores linear, got"):
        law(network, x, "no law")
    with pytest.raises(ValueError, match="image must have shape"):
        law(network, x[0], "query held")
    with pytest.raises(ValueError, match="n_steps >= 1"):
        linear_law(update_jacobian(network, x), x, 0)
    with pytest.raises(ValueError, match="n_steps \\+ 1 >= 2"):
        crossing_time(torch.ones(4), 0.5)
