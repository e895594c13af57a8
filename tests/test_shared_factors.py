import math

import pytest
import torch
from conftest import BATCH, HEADS, RANK, D, N, random_network, random_states
from test_learning import assert_same, autograd

from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.shared_factors import SharedFactors

M = 4  # differs from every other size


@pytest.fixture
def shared():
    generator = torch.Generator().manual_seed(1)
    network = SharedFactors(N, D, HEADS, RANK, M, beta=1.7, gamma=0.3, generator=generator).double()
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / math.sqrt(parameter.shape[-1]))
    return network


def test_couplings_by_hand(shared):
    for h in range(HEADS):
        for i in range(N):
            for j in range(N):
                U = sum(torch.diag(shared.u[h, i, m]) @ shared.F[h, m] for m in range(M))
                V = sum(torch.diag(shared.v[h, j, m]) @ shared.G[h, m] for m in range(M))
                torch.testing.assert_close(shared.couplings[h, i, j], U.T @ V)


def test_rules_are_the_gradients_of_their_losses(shared):
    state, target = random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    sites = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(2)) < 0.5

    def loss():
        return ((shared.field(state) - target) * sites[..., None]).square().sum() / (2 * BATCH)

    assert_same(prediction_rule(shared, state, target, sites), autograd(shared, loss))
    assert_same(energy_rule(shared, state), autograd(shared, lambda: shared.local_energies(state).sum() / BATCH))


def test_a_matrix_for_each_site_is_the_network_that_shares_nothing():
    one, x = random_network(RANK), random_states(BATCH, N, D)
    same = SharedFactors(N, D, HEADS, RANK, N, one.beta, one.gamma).double()
    own = torch.eye(N)[:, :, None].expand(HEADS, N, N, RANK)
    for parameter, value in ((same.F, one.U), (same.G, one.V), (same.u, own), (same.v, own), (same.bias, one.bias)):
        parameter.copy_(value)
    torch.testing.assert_close(same.update(x), one.update(x))
    torch.testing.assert_close(same.local_energies(x), one.local_energies(x))


@pytest.mark.parametrize("wrong", [{"n_shared": 0}, {"rank": None}, {"rank": 0}, {"n_sites": 1}])
def test_refuses_what_is_not_a_size(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
        SharedFactors(**{"n_sites": N, "dim": D, **wrong})
