"""All partners together: the density normalised, its mean, and the rule as the gradient of its
loss, J_ii and bias included.
"""

import math

import pytest
import torch
from conftest import BATCH, RANK, D, N, random_network, random_states
from scipy import special
from test_rules import assert_same, autograd

from attractor_lib.distributions.von_mises_fisher import log_normaliser
from attractor_lib.learning.sum_rule import sum_field, sum_log_conditional, sum_mean, sum_rule
from attractor_lib.model import AttractorNetwork


@pytest.fixture(params=["all others", "those before"])
def one_head(request):
    network = random_network(None, heads=1)
    if request.param == "those before":
        network.hears = torch.ones(N, N, dtype=torch.bool).tril(-1)
    return network


def naive_field(network, s, m, i):
    heard = [j for j in range(N) if network.hears[i, j]]
    return sum((network.couplings.J[0, i, j] @ s[m, j] for j in heard), network.bias[i])


def test_density_and_mean_by_loops():
    network, s, x = (
        random_network(None, heads=1),
        random_states(BATCH, N, D),
        random_states(BATCH, N, D, seed=5),
    )
    nu, density, mean = D / 2 - 1, sum_log_conditional(network, s, x), sum_mean(network, s)
    for m in range(BATCH):
        for i in range(N):
            h = naive_field(network, s, m, i)
            torch.testing.assert_close(sum_field(network, s)[m, i], h, atol=1e-12, rtol=0)
            kappa = network.beta * h.norm().item()
            z = (2 * math.pi) ** (nu + 1) * special.iv(nu, kappa) / kappa**nu
            assert density[m, i].item() == pytest.approx(
                network.beta * float(x[m, i] @ h) - math.log(z), abs=1e-10
            )
            length = special.iv(nu + 1, kappa) / special.iv(nu, kappa)
            torch.testing.assert_close(mean[m, i], length * h / h.norm(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_rule_is_the_gradient_of_its_loss(beta):
    """Finite differences in every parameter, the couplings of a site with itself and the bias
    too.
    """
    network, s, x = (
        random_network(None, beta, heads=1),
        random_states(BATCH, N, D),
        random_states(BATCH, N, D, seed=5),
    )
    sites = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(2)) < 0.5

    def loss():
        return -(sum_log_conditional(network, s, x) * sites).sum() / BATCH

    value, gradients = sum_rule(network, s, x, sites)
    torch.testing.assert_close(value, loss(), atol=1e-12, rtol=0)
    places = [
        ("bias", (2, 3)),
        ("couplings.J", (0, 1, 1, 4, 5)),
        ("couplings.J", (0, 1, 3, 4, 5)),
        ("couplings.J", (0, 3, 0, 0, 10)),
    ]
    for name, place in places:
        parameter, sides = dict(network.named_parameters())[name], []
        for step in (1e-5, -2e-5):
            parameter[place] += step
            sides.append(loss())
        parameter[place] += 1e-5
        assert gradients[name][place].item() == pytest.approx(
            (sides[0] - sides[1]).item() / 2e-5, abs=1e-8
        ), (name, place)
    assert (
        not gradients["couplings.J"][0, range(N), range(N)].any()
        and gradients["bias"].abs().max() > 1e-3
    )


def test_rule_by_autograd(one_head):
    """The same from the loss written down once more; log Z_d by its derivative A_d."""
    s, x = random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)

    class LogZ(torch.autograd.Function):
        @staticmethod
        def forward(context, kappa):
            context.kappa = kappa
            return log_normaliser(kappa, D)

        @staticmethod
        def backward(context, g):
            nu, kappa = D / 2 - 1, context.kappa.detach().numpy()
            return g * torch.as_tensor(special.iv(nu + 1, kappa) / special.iv(nu, kappa))

    def loss():
        J = one_head.couplings.J[0].masked_fill(~one_head.hears[..., None, None], 0)
        h = one_head.beta * (torch.einsum("ijab,mjb->mia", J, s) + one_head.bias)
        return (LogZ.apply(h.norm(dim=-1)) - (x * h).sum(-1)).sum() / BATCH

    if one_head.all_hear:
        assert_same(sum_rule(one_head, s, x), autograd(one_head, loss))
    else:
        with pytest.raises(ValueError, match="each site must hear some other"):
            sum_rule(one_head, s, x)


@pytest.mark.parametrize("network", [random_network(RANK), AttractorNetwork(N, D, 2).double()])
def test_refuses_other_networks(network):
    with pytest.raises(ValueError, match="one head of full rank"):
        sum_rule(network, random_states(BATCH, N, D))
