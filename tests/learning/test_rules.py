"""The closed-form rules against autograd in float64, and the proof that training never builds a
graph.
"""

import math

import pytest
import torch
from conftest import BATCH, RANK, D, N, every_network, random_network, random_states, randomised

from attractor_lib import kernels
from attractor_lib.couplings import Tied, symmetric
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import blocks


def autograd(network, loss):
    network.requires_grad_(True)
    value = loss()
    gradients = dict(
        zip(
            dict(network.named_parameters()), torch.autograd.grad(value, list(network.parameters()))
        )
    )
    network.requires_grad_(False)
    return value.detach(), gradients


def assert_same(got, expected):
    (loss, gradients), (expected_loss, expected_gradients) = got, expected
    torch.testing.assert_close(loss, expected_loss, atol=1e-10, rtol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected_gradients[name], atol=1e-10, rtol=0, msg=lambda m: f"{name}: {m}"
        )


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("sites", ["all", "one for all", "own for each"])
def test_prediction_rule_is_the_gradient_of_its_loss(rank, beta, sites):
    network, state, target = (
        random_network(rank, beta),
        random_states(BATCH, N, D),
        random_states(BATCH, N, D, seed=5),
    )
    generator = torch.Generator().manual_seed(2)
    chosen = {
        "all": None,
        "one for all": torch.rand(N, generator=generator) < 0.5,
        "own for each": torch.rand(BATCH, N, generator=generator) < 0.5,
    }[sites]

    def loss():
        residual = network.field(state) - target
        weight = 1.0 if chosen is None else chosen.expand(BATCH, N)[..., None]
        return (residual * weight).square().sum() / (2 * BATCH)

    assert_same(prediction_rule(network, state, target, chosen), autograd(network, loss))


@pytest.mark.parametrize("kernel", [(), ("batched",), ("cpu",)])
@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("rule", [prediction_rule, energy_rule])
def test_rules_of_a_network_that_knows_are_the_gradients_of_their_losses(
    rule, rank, kernel, monkeypatch
):
    monkeypatch.setattr(kernels.cpu, "FEWEST", 1)
    known = 4
    network = randomised(AttractorNetwork(N, D, 3, rank, 1.7, 0.3, n_known=known))
    state, target = random_states(BATCH, N, D), random_states(BATCH, N, D - known, seed=5)
    state[..., :-known] /= state[..., :-known].norm(dim=-1, keepdim=True)
    sites = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(2)) < 0.5

    def loss():
        if rule is energy_rule:
            return energy_loss(network, state, network.with_known(target, state), sites)
        residual = (network.field(state) - target) * sites[..., None]
        return residual.square().sum() / (2 * BATCH)

    expected = autograd(network, loss)
    with kernels.only(*kernel):
        assert_same(rule(network, state, target, sites), expected)


def energy_loss(network, state, target, sites):
    """Mean over examples of the sum over sites of e_i at the token target_i, the others at state:
    one site at a time.
    """
    total = 0.0
    for i in range(network.n_sites):
        x = state.clone()
        x[:, i] = target[:, i]
        total = total + (network.local_energies(x)[:, i] * sites[:, i]).sum()
    return total / len(state)


@pytest.mark.parametrize("kernel", [(), ("batched",), ("cpu",)])
@pytest.mark.parametrize("network", every_network())
def test_rules_are_the_gradients_of_their_losses(network, kernel):
    """For every kind of couplings, potential and `hears`, by the equations and by the kernels."""
    state, target = random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    sites = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(2)) < 0.5

    def tied(gradients):  # the gradient of a tied loss is the tied gradient
        return {
            name: symmetric(g)
            if isinstance(network.couplings, Tied) and name == "couplings.J"
            else g
            for name, g in gradients.items()
        }

    def prediction_loss():
        return ((network.field(state) - target) * sites[..., None]).square().sum() / (2 * BATCH)

    with kernels.only():
        loss, gradients = autograd(network, prediction_loss)
    with kernels.only(*kernel):
        assert_same(prediction_rule(network, state, target, sites), (loss, tied(gradients)))
        if not network.hears.diagonal().any():  # else x_i is in the others' tokens too
            loss, gradients = autograd(network, lambda: energy_loss(network, state, target, sites))
            assert_same(energy_rule(network, state, target, sites), (loss, tied(gradients)))


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, RANK])
def test_energy_rule_is_the_gradient_of_the_energy(rank, beta):
    network, state = random_network(rank, beta), random_states(BATCH, N, D)
    assert_same(
        energy_rule(network, state),
        autograd(network, lambda: network.local_energies(state).sum() / BATCH),
    )


def test_prediction_rule_is_the_formula_of_the_book():
    """dL/dJ_ij = [a_ij r_i + beta a_ij (r_i . m_ij - r_i . sum_k a_ik m_ik) s_i] s_j^T, by
    loops.
    """
    network, s, x = (
        random_network(None, 1.7, heads=1),
        random_states(BATCH, N, D),
        random_states(BATCH, N, D, seed=5),
    )
    a, J = network.attention(s)[:, 0], network.couplings.J[0]
    r = network.field(s) - x
    expected = torch.zeros_like(J)
    for m in range(BATCH):
        for i in range(N):
            message = [J[i, j] @ s[m, j] for j in range(N)]
            mean = sum(a[m, i, k] * message[k] for k in range(N))
            for j in range(N):
                push = (
                    a[m, i, j] * r[m, i]
                    + network.beta * a[m, i, j] * (r[m, i] @ (message[j] - mean)) * s[m, i]
                )
                expected[i, j] += torch.outer(push, s[m, j]) / BATCH
    torch.testing.assert_close(
        prediction_rule(network, s, x)[1]["couplings.J"][0], expected, atol=1e-12, rtol=0
    )


def test_energy_rule_is_the_attention_weighted_hebbian_rule():
    network, x = random_network(None, heads=1), random_states(BATCH, N, D)
    hebbian = torch.einsum("mij,mia,mjb->ijab", network.attention(x)[:, 0], x, x) / BATCH
    torch.testing.assert_close(
        energy_rule(network, x)[1]["couplings.J"][0], -hebbian, atol=1e-12, rtol=0
    )


def test_blocks_of_examples_change_nothing():
    network = random_network(None, n=13, d=17)
    state, target = random_states(251, 13, 17), random_states(251, 13, 17, seed=5)
    assert len(list(blocks(network, state))) > 1
    parts = [
        prediction_rule(network, state[m : m + 1], target[m : m + 1])[1]["couplings.J"]
        for m in range(251)
    ]
    torch.testing.assert_close(
        prediction_rule(network, state, target)[1]["couplings.J"],
        sum(parts) / 251,
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.parametrize(
    "rule", [prediction_rule, lambda network, state, target: energy_rule(network, state)]
)
def test_blocks_change_nothing_at_low_rank(rule):
    network, n = random_network(RANK, n=13, d=17), 2000
    state, target = random_states(n, 13, 17), random_states(n, 13, 17, seed=5)
    assert (
        len(list(blocks(network, state))) > 1 and len(list(blocks(network, state[: n // 2]))) == 1
    )
    whole, first, second = (
        rule(network, state[part], target[part])
        for part in (slice(n), slice(n // 2), slice(n // 2, n))
    )
    torch.testing.assert_close(whole[0], (first[0] + second[0]) / 2, atol=1e-12, rtol=0)
    for name, g in whole[1].items():
        torch.testing.assert_close(g, (first[1][name] + second[1][name]) / 2, atol=1e-12, rtol=0)


def test_a_network_too_large_for_a_block_takes_one_example_at_a_time():
    network, x = random_network(1, heads=1, n=1100, d=2), random_states(3, 1100, 2)
    assert [len(b) for (b,) in blocks(network, x)] == [1, 1, 1]
    loss, gradients = prediction_rule(network, x, x)
    parts = [prediction_rule(network, x[m : m + 1], x[m : m + 1]) for m in range(3)]
    torch.testing.assert_close(loss, sum(part[0] for part in parts) / 3)
    torch.testing.assert_close(
        gradients["couplings.V"], sum(part[1]["couplings.V"] for part in parts) / 3
    )


def test_rules_are_local_in_site():
    """The couplings onto site i change only through the residual of site i."""
    network, state, target = (
        random_network(None),
        random_states(BATCH, N, D),
        random_states(BATCH, N, D, seed=5),
    )
    only = torch.zeros(N, dtype=torch.bool)
    only[2] = True
    gradient = prediction_rule(network, state, target, only)[1]["couplings.J"]
    assert gradient[:, 2].abs().max() > 1e-3
    assert not gradient[:, ~only].any()


def test_no_autograd_in_the_rules(network, x, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("autograd was used")

    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    network.requires_grad_(True)  # even then no graph is built
    for loss, gradients in (energy_rule(network, x), prediction_rule(network, x, x)):
        assert loss.grad_fn is None and all(g.grad_fn is None for g in gradients.values())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda x: (x * 2, x), "state must have tokens of norm 1"),
        (lambda x: (x[:0], x[:0]), "state must hold at least one example"),
        (
            lambda x: (x, x[:3]),
            r"target must be torch.float64 of shape \(7, 5, 11\) on cpu, got torch.float64 of "
            r"shape \(3, 5, 11\)",
        ),
        (lambda x: (x, x * math.nan), "target must be finite, got NaN or infinity"),
        (
            lambda x: (x, x, torch.ones(4, dtype=torch.bool)),
            r"sites must be boolean of shape \(5,\) or \(7, 5\) on cpu, got torch.bool of "
            r"shape \(4,\)",
        ),
        (lambda x: (x, x, torch.ones(N)), "sites must be boolean"),
    ],
)
def test_refuses_bad_input(network, x, arguments, message):
    with pytest.raises(ValueError, match=message):
        prediction_rule(network, *arguments(x))


@pytest.mark.parametrize("rank", [None, 2])
def test_parameters_and_gradients_lie_in_memory_as_torch_s_tools_expect(rank):
    """LBFGS and `parameters_to_vector` flatten them with `view`."""
    network = random_network(rank)
    x = random_states(BATCH, N, D)
    for rule in (lambda: prediction_rule(network, x, x), lambda: energy_rule(network, x)):
        gradients = rule()[1]
        assert all(
            gradients[name].is_contiguous() and p.is_contiguous()
            for name, p in network.named_parameters()
        )
