import pytest
import torch
from conftest import BATCH, D, N, every_network, random_network, random_states

from attractor_lib.jacobian import field_jacobian, update_jacobian
from attractor_lib.model import AttractorNetwork, LogSumExp
from attractor_lib.states import Flat, Sphere


def free(network):
    """The network without its check of norms: a derivative leaves the sphere."""
    network.space = Flat()
    return network


def by_autograd(function, x):
    one_by_one = (torch.autograd.functional.jacobian(function, s[None]) for s in x)
    return torch.stack([j[0, :, :, 0] for j in one_by_one])


@pytest.mark.parametrize("network", every_network())
def test_field_jacobian_is_that_of_autograd(network):
    x = random_states(3, network.n_sites, network.dim)
    by_hand = field_jacobian(network, x)
    torch.testing.assert_close(by_hand, by_autograd(free(network).field, x), rtol=1e-9, atol=1e-10)


def test_update_jacobian_is_that_of_central_differences(network, x):
    by_hand = update_jacobian(network, x[:2])
    free(network)

    def update(s):
        return torch.nn.functional.normalize(network.field(s) + network.gamma * s, dim=-1)

    step = 1e-5 * torch.eye(network.n_sites * network.dim, dtype=x.dtype)
    for s, found in zip(x[:2], by_hand.flatten(1, 2).flatten(2)):
        shifted = [update(s + sign * step.view(-1, *s.shape)) for sign in (1, -1)]
        differences = ((shifted[0] - shifted[1]) / 2e-5).flatten(1).mT
        torch.testing.assert_close(found, differences, rtol=1e-6, atol=1e-7)


class TurnedSign(LogSumExp):
    def response(self, t, a, u):
        return -super().response(t, a, u)


class DroppedTerm(LogSumExp):
    def response(self, t, a, u):
        return 0 * u


@pytest.mark.parametrize("wrong", [TurnedSign(), DroppedTerm()])
def test_a_turned_sign_or_a_dropped_term_is_seen(network, x, wrong):
    network.phi = wrong  # its field is right, how its attention answers is not
    exact = by_autograd(free(network).field, x[:2])
    network.space = Sphere()
    assert (field_jacobian(network, x[:2]) - exact).abs().max() > 0.1


def test_the_update_stays_on_the_sphere(network, x):
    D = update_jacobian(network, x)
    along = torch.einsum("mia,miajb->mijb", network.update(x), D)
    assert along.abs().max() < 1e-12


def test_what_is_refused(x):
    knowing = AttractorNetwork(N, D, n_known=2).double()
    with pytest.raises(ValueError, match="expected a network with n_known=0, got n_known=2"):
        update_jacobian(knowing, random_states(BATCH, N, D))
    with pytest.raises(ValueError, match="on the sphere, got Flat"):
        update_jacobian(free(random_network(None)), x)
    silent = random_network(None, gamma=0)
    silent.couplings.J.zero_(), silent.bias.zero_()
    with pytest.raises(ValueError, match="must give every site a field, got one without"):
        update_jacobian(silent, x)
    with pytest.raises(ValueError, match="must have shape"):
        field_jacobian(random_network(None), x[0])
