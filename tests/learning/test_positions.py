"""Tokens that carry their site: the way there and back, and a rule that does not predict
positions.
"""

import math

import pytest
import torch
from conftest import BATCH, D, N, random_network, random_states
from test_rules import assert_same, autograd

from attractor_lib.checkpoint import lasting_name, load_state, state_of
from attractor_lib.couplings import shared
from attractor_lib.learning import prediction_rule
from attractor_lib.learning.own_trajectory import PersistentTrajectories
from attractor_lib.learning.positions import Positioned, with_positions, without_positions
from attractor_lib.model import AttractorNetwork


def test_positions_and_back():
    x = random_states(BATCH, N, D)
    y = with_positions(x, 0.7)
    assert y.shape == (BATCH, N, D + N)
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(BATCH, N, dtype=x.dtype))
    torch.testing.assert_close(without_positions(y), x, atol=1e-14, rtol=0)
    overlaps = torch.einsum("mia,nja->mnij", y, y) * (1 + 0.7**2) - torch.einsum(
        "mia,nja->mnij", x, x
    )
    expected = (0.7**2 * torch.eye(N, dtype=x.dtype)).expand(BATCH, BATCH, N, N)
    torch.testing.assert_close(overlaps, expected, atol=1e-12, rtol=0)


def test_positions_are_given_and_not_predicted():
    network, s, x = (
        random_network(None, d=D + N),
        random_states(BATCH, N, D),
        random_states(BATCH, N, D, seed=5),
    )
    c = 0.7

    def loss():
        residual = network.field(with_positions(s, c))[..., :D] - x / math.sqrt(1 + c**2)
        return residual.square().sum() / (2 * BATCH)

    assert_same(Positioned(prediction_rule, c)(network, s, x), autograd(network, loss))


def test_the_rule_is_known_to_a_checkpoint_by_its_own_rule_and_c():
    rules = [prediction_rule, *(PersistentTrajectories(prediction_rule, n) for n in (1, 2))]
    names = [lasting_name(Positioned(rule, c), "rule") for rule in rules for c in (0.7, 0.8)]
    assert len(set(names)) == 6 and names[0] == "Positioned(prediction_rule, c=0.7)"
    with pytest.raises(ValueError, match="rule must have a name"):
        lasting_name(Positioned(lambda *given: None, 0.7), "rule")


def test_what_the_rule_carries_is_passed_on():
    network, x = random_network(None, d=D + N), random_states(BATCH, N, D)
    sites = torch.ones(BATCH, N, dtype=torch.bool)
    used, resumed = (Positioned(PersistentTrajectories(prediction_rule), 0.7) for _ in range(2))
    used(network, x, x, sites)
    load_state(resumed, state_of(used))
    assert torch.equal(resumed.rule.kept[0][0], with_positions(x, 0.7))
    assert state_of(Positioned(prediction_rule, 0.7)) == {"rule": {}}


def test_shared_couplings_without_positions_treat_all_sites_alike():
    """Relabelling the sites commutes with a shared network; positions break that."""
    plain, lifted = (AttractorNetwork(9, d).double() for d in (4, 13))
    generator, x = torch.Generator().manual_seed(1), random_states(6, 9, 4)
    for network in (plain, lifted):
        J = torch.randn(network.couplings.J.shape, generator=generator, dtype=torch.float64)
        network.couplings.J.copy_(shared(J * 9))
    order = torch.randperm(9, generator=generator)
    torch.testing.assert_close(
        plain.update(x[:, order]), plain.update(x)[:, order], atol=1e-12, rtol=0
    )
    moved = (
        lifted.update(with_positions(x[:, order], 1.0))
        - lifted.update(with_positions(x, 1.0))[:, order]
    )
    assert moved.abs().max() > 1e-2
