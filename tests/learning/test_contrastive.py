"""Contrastive divergence against loops, autograd, and a pair whose joint is known."""

import math

import numpy as np
import pytest
import torch
from conftest import BATCH, RANK, D, N, random_network, random_states
from test_rules import assert_same, autograd

from attractor_lib.corruption import no_corruption
from attractor_lib.learning.contrastive import (
    ContrastiveDivergence,
    GibbsSampler,
    contrast,
    mean_energy,
    own_update,
)
from attractor_lib.learning.pseudo_likelihood import pseudo_likelihood_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train


def iterate(network, x, n_steps):
    for _ in range(n_steps):
        x = network.update(x)
    return x


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_is_the_gradient_of_the_energy_difference_with_the_negatives_held_fixed(
    rank, beta, n_steps
):
    network, data = random_network(rank, beta), random_states(BATCH, N, D)
    negatives = iterate(network, data, n_steps)
    energy = network.local_energies
    expected = autograd(network, lambda: (energy(data).sum() - energy(negatives).sum()) / BATCH)
    got = ContrastiveDivergence(own_update, n_steps)(network, data, data)
    assert_same(got, expected)
    assert got[1]["couplings.J" if rank is None else "couplings.U"].abs().max() > 1e-2


def test_is_the_hebbian_term_on_data_minus_the_same_on_negatives_by_loops():
    network, data, start = (
        random_network(None, heads=1),
        random_states(BATCH, N, D),
        random_states(BATCH, N, D, seed=5),
    )
    negatives = iterate(network, start, 3)
    expected, loss = torch.zeros_like(network.couplings.J[0]), 0.0
    for sign, states in ((1, data), (-1, negatives)):
        for x in states:
            for i in range(N):
                others = [j for j in range(N) if j != i]
                boltzmann = [
                    math.exp(network.beta * (x[i] @ network.couplings.J[0, i, j] @ x[j]).item())
                    for j in others
                ]
                alone = network.bias[i] @ x[i] + network.gamma / 2 * x[i] @ x[i]
                loss += sign * (-math.log(sum(boltzmann)) / network.beta - alone.item()) / BATCH
                for j, w in zip(others, boltzmann):
                    for a in range(D):
                        expected[i, j, a] -= sign * w / sum(boltzmann) * x[i, a] * x[j] / BATCH
    got_loss, gradients = ContrastiveDivergence(own_update, 3)(network, start, data)
    torch.testing.assert_close(gradients["couplings.J"][0], expected, atol=1e-12, rtol=0)
    assert got_loss.item() == pytest.approx(loss, abs=1e-10)


def test_data_and_negatives_each_enter_by_their_own_mean(network, x):
    negatives = random_states(2 * BATCH, N, D, seed=5)
    low, high, gradients = contrast(network, x, negatives)
    torch.testing.assert_close(low - mean_energy(network, x), torch.zeros_like(low))
    torch.testing.assert_close(
        high,
        (mean_energy(network, negatives[:BATCH]) + mean_energy(network, negatives[BATCH:])) / 2,
    )
    parts = [contrast(network, x, part)[2] for part in negatives.split(BATCH)]
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, (parts[0][name] + parts[1][name]) / 2, atol=1e-12, rtol=0
        )


def test_mean_energy_counts_every_pair_twice():
    """With J_21 = J_12^T, N = 2 and one head, sum_i e_i is twice the energy -x_1 . J_12 x_2 of the
    pair.
    """
    network = pair(1.7, 3)
    x = random_states(BATCH, 2, 3)
    expected = (
        -2 * torch.einsum("ma,ab,mb->m", x[:, 0], network.couplings.J[0, 0, 1], x[:, 1]).mean()
    )
    torch.testing.assert_close(mean_energy(network, x), expected)


def test_nothing_is_learned_at_fixed_points_of_the_update():
    """With couplings that point every site to one direction, that direction is a fixed point, other
    states are not.
    """
    network = random_network(None, heads=1, gamma=0.0)
    u = random_states(1, N, D)
    network.bias.zero_()
    network.couplings.J.copy_(torch.einsum("ia,jb->ijab", u[0], u[0])[None])
    loss, gradients = ContrastiveDivergence(own_update, 5)(network, u, u)
    assert loss.abs() < 1e-12 and max(g.abs().max() for g in gradients.values()) < 1e-12
    other = random_states(BATCH, N, D, seed=5)
    loss, gradients = ContrastiveDivergence(own_update, 5)(network, other, other)
    assert loss > 0.1 and gradients["couplings.J"].abs().max() > 1e-3


def test_sites_that_are_not_restored_stand():
    network, x = random_network(None), random_states(BATCH, N, D)
    for sites in (
        torch.arange(N) < 2,
        torch.rand(BATCH, N, generator=torch.Generator().manual_seed(2)) < 0.5,
    ):
        negatives = ContrastiveDivergence(own_update, 3).negatives(network, x, sites)
        free = sites.expand(BATCH, N)
        assert (
            torch.equal(negatives[~free], x[~free])
            and not torch.isclose(negatives[free], x[free]).all(-1).any()
        )


def test_persistent_chains_go_on_where_they_were():
    network, x, chains = (
        random_network(None),
        random_states(BATCH, N, D),
        random_states(3, N, D, seed=5),
    )
    start = chains.clone()
    rule = ContrastiveDivergence(own_update, 2, chains)
    first, second = rule(network, x, x), rule(network, x, x)
    assert_same(first, contrast_of(network, x, iterate(network, start, 2)))
    assert_same(second, contrast_of(network, x, iterate(network, start, 4)))
    torch.testing.assert_close(chains, iterate(network, start, 4))


def contrast_of(network, data, negatives):
    low, high, gradients = contrast(network, data, negatives)
    return low - high, gradients


@pytest.mark.parametrize("persistent", [False, True])
def test_trains_by_the_trainer_which_may_observe_both_energies(persistent):
    network, x = random_network(None, heads=1), random_states(20, N, D)
    chains = random_states(6, N, D, seed=5)
    rule = ContrastiveDivergence(own_update, 2, chains if persistent else None)
    first = iterate(network, chains if persistent else x, 2)
    before = mean_energy(network, x).item(), mean_energy(network, first).item()
    config = TrainingConfig(epochs=3, batch_size=20, learning_rate=1e-3)

    def energies(network, step):
        return dict(zip(("data", "negatives"), rule.energies, strict=True)) if step else None

    history = train(network, rule, x, no_corruption, config, report=None, observe=energies)
    seen = [row for epoch in history for row in epoch["observed"]]
    assert [row["step"] for row in seen] == [1, 2, 3]
    assert (seen[0]["data"], seen[0]["negatives"]) == pytest.approx(before, abs=1e-12)
    losses = [row["data"] - row["negatives"] for row in seen]
    assert losses == pytest.approx([h["loss"] for h in history], abs=1e-5)  # summed in float32
    assert mean_energy(network, x) - mean_energy(network, first) < before[0] - before[1] - 1e-3


def pair(beta, dim, seed=3):
    """N = 2, one head, J_21 = J_12^T: e_1 = e_2 = -x_1 . J_12 x_2, and the joint exp(beta x_1 .
    J_12 x_2) / Z exists.
    """
    network = AttractorNetwork(2, dim, beta=beta).double()
    J = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    network.couplings.J.zero_()
    network.couplings.J[0, 0, 1], network.couplings.J[0, 1, 0] = J, J.T
    return network


def exact_correlation(network):
    """<x_1 x_2^T> under the joint on the product of two spheres in three dimensions, x_1 integrated
    in closed form and x_2 by quadrature: Z_3(kappa) = 4 pi sinh(kappa) / kappa, A_3(kappa) =
    coth(kappa) - 1/kappa.
    """
    cosine, weight = np.polynomial.legendre.leggauss(60)
    angle = 2 * math.pi * np.arange(120) / 120
    cosine, angle, weight = (
        a.ravel() for a in np.broadcast_arrays(cosine[:, None], angle, weight[:, None])
    )
    sine = np.sqrt(1 - cosine**2)
    x2 = np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], -1)
    m = x2 @ network.couplings.J[0, 0, 1].numpy().T
    size = np.linalg.norm(m, axis=-1)
    kappa = network.beta * size
    p = weight * np.sinh(kappa) / kappa
    mean = (1 / np.tanh(kappa) - 1 / kappa)[:, None] * m / size[:, None]
    return torch.tensor(np.einsum("n,na,nb->ab", p, mean, x2) / p.sum())


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_many_gibbs_sweeps_of_a_pair_give_the_exact_negative_phase(beta):
    """Where a joint exists, CD-k for large k is the gradient of its likelihood; every entry within
    4.5 standard errors.
    """
    network, n = pair(beta, 3), 20_000
    data = random_states(n, 2, 3)
    rule = ContrastiveDivergence(GibbsSampler(torch.Generator().manual_seed(0)), 15)
    negatives = rule.negatives(network, data)
    products = torch.einsum("ma,mb->mab", negatives[:, 0], negatives[:, 1])
    standard_error = products.std(0) / math.sqrt(n)
    exact = -torch.einsum("ma,mb->ab", data[:, 0], data[:, 1]) / n + exact_correlation(network)
    gradient = contrast(network, data, negatives)[2]["couplings.J"][0]
    for got, expected, error in (
        (gradient[0, 1], exact, standard_error),
        (gradient[1, 0], exact.T, standard_error.T),
    ):
        assert ((got - expected) / error).abs().max() < 4.5
    assert (
        (gradient[0, 1] + exact) / standard_error
    ).abs().max() > 20  # a flipped sign would be seen


def test_gibbs_sampler_is_reproducible_and_named_without_an_address():
    network, x = random_network(None, heads=1, gamma=0.0), random_states(BATCH, N, D)
    network.bias.zero_()
    rules = [
        ContrastiveDivergence(GibbsSampler(torch.Generator().manual_seed(seed)), 2)
        for seed in (0, 0, 1)
    ]
    first, same, other = (rule(network, x, x)[1]["couplings.J"] for rule in rules)
    assert torch.equal(first, same) and not torch.allclose(first, other)
    assert (
        repr(rules[2]) != repr(rules[0]) == "ContrastiveDivergence(GibbsSampler(seed=0), n_steps=2)"
    )
    assert (
        repr(ContrastiveDivergence(own_update, 3, x))
        == "ContrastiveDivergence(own_update, n_steps=3, chains=7)"
    )


def test_no_autograd_in_the_rule(network, x):
    network.requires_grad_(True)  # even then no graph is built
    loss, gradients = ContrastiveDivergence(own_update, 2)(network, x, x)
    assert loss.grad_fn is None and all(g.grad_fn is None for g in gradients.values())
    assert mean_energy(network, x).grad_fn is None


@pytest.mark.parametrize("n_steps", [0, -1, 1.5])
def test_refuses_a_number_of_steps_that_is_none(n_steps):
    with pytest.raises(ValueError, match=f"n_steps must be a whole number >= 1, got {n_steps}"):
        ContrastiveDivergence(own_update, n_steps)


def test_refuses_a_sampler_that_is_no_function():
    with pytest.raises(
        ValueError,
        match=r"sample must be a function \(network, state, clamped\) -> state.* got 'gibbs'",
    ):
        ContrastiveDivergence("gibbs", 1)
    with pytest.raises(ValueError, match="got <class .*GibbsSampler"):
        ContrastiveDivergence(GibbsSampler, 1)
    with pytest.raises(ValueError, match="generator must be a torch.Generator, got 3"):
        GibbsSampler(3)


def test_refuses_a_target_or_sites_of_another_shape(network, x):
    rule = ContrastiveDivergence(own_update, 1)
    with pytest.raises(
        ValueError,
        match=r"target must be .* of shape \(7, 5, 11\) .*, got .* of shape \(3, 5, 11\)",
    ):
        rule(network, x, x[:3])
    with pytest.raises(ValueError, match=r"sites must be boolean of shape \(5,\) or \(7, 5\)"):
        rule(network, x, x, torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize(
    "sample, got",
    [
        (lambda network, x, clamped: x[:2], r"\(2, 5, 11\)"),
        (lambda network, x, clamped: None, "NoneType"),
    ],
)
def test_refuses_a_sampler_that_changes_the_shape(network, x, sample, got):
    with pytest.raises(
        ValueError, match=r"sample must return states of shape \(7, 5, 11\), got " + got
    ):
        ContrastiveDivergence(sample, 1)(network, x, x)


def test_refuses_chains_with_sites_that_are_not_all_restored(network, x):
    with pytest.raises(ValueError, match="chains must run with every site free"):
        ContrastiveDivergence(own_update, 1, x)(network, x, x, torch.arange(N) < 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda x: (x * 2, x), "state must have tokens of norm 1"),
        (lambda x: (x[:0], x), "state must hold at least one example"),
        (lambda x: (x, x[:, :4]), r"state must have shape \(batch, 5, 11\), got \(7, 4, 11\)"),
    ],
)
def test_refuses_bad_states(network, x, arguments, message):
    with pytest.raises(ValueError, match=message):
        contrast(network, *arguments(x))


def test_one_site_drawn_from_its_conditional_gives_the_pseudo_likelihood_rule_on_average():
    """With site i alone redrawn, the rows J_i. of beta times the contrast average to the exact
    pseudo-likelihood's gradient for that site: CD that moves every site departs from it. Every
    entry within 5 standard errors.
    """
    network, x, n, site = (
        random_network(None, heads=1, gamma=0.0),
        random_states(1, N, D),
        20_000,
        2,
    )
    network.bias.zero_()
    free = torch.arange(N) == site
    data = x.expand(n, N, D).contiguous()
    rule = ContrastiveDivergence(GibbsSampler(torch.Generator().manual_seed(0)), 1)
    negatives = rule.negatives(network, data, free)
    assert torch.equal(negatives[:, ~free], data[:, ~free])
    products = (
        network.attention(negatives)[:, 0, site, :, None] * negatives[:, site, None]
    )  # (n, j, a)
    error = torch.einsum("ja,jb->jab", products.std(0), x[0].abs()) / math.sqrt(n) * network.beta
    exact = pseudo_likelihood_rule(network, x, x, free)[1]["couplings.J"][0, site]
    got = network.beta * contrast(network, data, negatives)[2]["couplings.J"][0, site]
    z = (got - exact)[~free] / error[~free]
    assert z.abs().max() < 5 and z.square().mean() < 2
    assert ((got + exact)[~free] / error[~free]).abs().max() > 20
