"""The exact conditionals: naive loops, integrals over the sphere, autograd in float64, and draws
against their mean.
"""

import math

import pytest
import torch
from conftest import BATCH, RANK, D, N, random_network, random_states
from scipy import special

from attractor_lib.corruption import no_corruption
from attractor_lib.distributions.von_mises_fisher import log_normaliser
from attractor_lib.learning.pseudo_likelihood import (
    draw_site,
    gibbs_sweep,
    log_conditional,
    predicted_mean,
    pseudo_likelihood_rule,
)
from attractor_lib.model import AttractorNetwork, Square
from attractor_lib.states import Flat, blocks
from attractor_lib.trainer import TrainingConfig, train


def one_head(beta=1.7, gamma=0.3, n=N, d=D, strength=3.0):
    network = random_network(None, beta, gamma, heads=1, n=n, d=d)
    network.couplings.J.mul_(strength)
    return network


def naive(network, s, x):
    """log p, E[x_i | rest], w and a by loops, with scipy's Bessel functions."""
    (J,), b, beta = network.couplings.J, network.bias, network.beta
    nu = network.dim / 2 - 1
    log_p, mean = torch.zeros(s.shape[:2]).double(), torch.zeros_like(s)
    w, a = torch.zeros(len(s), N, N).double(), torch.zeros(len(s), N, N).double()
    for m in range(len(s)):
        for i in range(N):
            push = {j: J[i, j] @ s[m, j] + b[i] for j in range(N) if j != i}
            z, length = {}, {}
            for j, message in push.items():
                k = beta * message.norm().item()
                z[j] = (2 * math.pi) ** (nu + 1) * special.iv(nu, k) / k**nu
                length[j] = special.iv(nu + 1, k) / special.iv(nu, k)
            p = {j: math.exp(beta * (x[m, i] @ message)) for j, message in push.items()}
            log_p[m, i] = math.log(sum(p.values()) / sum(z.values()))
            for j, message in push.items():
                w[m, i, j], a[m, i, j] = z[j] / sum(z.values()), p[j] / sum(p.values())
                mean[m, i] += w[m, i, j] * length[j] * message / message.norm()
    return log_p, mean, w, a


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_agrees_with_naive_loops(beta):
    network, s, x = one_head(beta), random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    log_p, mean, _, _ = naive(network, s, x)
    torch.testing.assert_close(log_conditional(network, s, x), log_p, atol=1e-11, rtol=0)
    torch.testing.assert_close(predicted_mean(network, s), mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        log_conditional(network, s), log_conditional(network, s, s), atol=0, rtol=0
    )


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_is_the_local_energy_normalised(beta):
    """-log p = beta (e_i + gamma / 2) + log sum_j Z: log-ratios at a site are beta times
    differences of the energy.
    """
    network, x = one_head(beta), random_states(BATCH, N, D)
    other = x.clone()
    other[:, 2] = random_states(BATCH, D, seed=8)
    by_density = (log_conditional(network, other) - log_conditional(network, x))[:, 2]
    by_energy = -beta * (network.local_energies(other) - network.local_energies(x))[:, 2]
    torch.testing.assert_close(by_density, by_energy, atol=1e-11, rtol=0)


def test_attention_is_the_posterior_responsibility():
    """a_ij = w_ij vMF(x_i; m_ij) / p(x_i): Bayes' rule, with the network's own attention on the
    left.
    """
    network, x = one_head(), random_states(BATCH, N, D)
    m = torch.einsum("ijab,mjb->mija", network.couplings.J[0], x) + network.bias[:, None]
    log_z = log_normaliser(network.beta * m.norm(dim=-1), D).masked_fill(
        torch.eye(N, dtype=torch.bool), -math.inf
    )
    component = (
        network.beta * torch.einsum("mia,mija->mij", x, m) - log_z.nan_to_num(neginf=0)
    ).exp()
    posterior = log_z.softmax(-1) * component / log_conditional(network, x).exp()[..., None]
    torch.testing.assert_close(posterior, network.attention(x)[:, 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("d", [2, 3])
def test_density_integrates_to_one_and_to_its_mean_on_a_grid(d):
    network, s = one_head(n=4, d=d, strength=4.0), random_states(1, 4, d)
    angle = (torch.arange(240, dtype=torch.float64) + 0.5) * math.pi / 120
    if d == 2:
        points, area = (
            torch.stack([angle.cos(), angle.sin()], -1),
            torch.full((240,), math.pi / 120, dtype=torch.float64),
        )
    else:
        height, weight = (torch.from_numpy(v) for v in special.roots_legendre(80))
        ring = (1 - height.square()).sqrt()
        around = [
            ring[:, None] * angle.cos(),
            ring[:, None] * angle.sin(),
            height[:, None].expand(-1, 240),
        ]
        points = torch.stack(around, -1).view(-1, 3)
        area = weight.repeat_interleave(240) * math.pi / 120
    x = points[:, None].expand(-1, 4, d)
    p = log_conditional(network, s.expand(len(x), 4, d), x).exp() * area[:, None]
    torch.testing.assert_close(p.sum(0), torch.ones(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(p.mT @ points, predicted_mean(network, s)[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("d", [5, 20])
def test_density_integrates_to_one_by_uniform_sampling(d):
    n, network, s = 20_000, one_head(n=3, d=d, beta=1.0), random_states(1, 3, d)
    x = random_states(n, 3, d, seed=4)
    surface = log_normaliser(torch.zeros(1, dtype=torch.float64), d)
    weight = (log_conditional(network, s.expand(n, 3, d), x) + surface).exp()
    standard_error = weight.std(0) / n**0.5
    assert (standard_error < 0.05).all() and ((weight.mean(0) - 1).abs() < 4 * standard_error).all()


def differentiable_loss(network, state, target, weight):
    """The loss again, in a form that autograd can take: I_nu by its power series."""
    d, beta = network.dim, network.beta
    off = torch.eye(network.n_sites, dtype=torch.bool)
    m = torch.einsum("ijab,mjb->mija", network.couplings.J[0], state) + network.bias[:, None]
    quarter = (beta * m).square().sum(-1) / 4  # kappa^2 / 4
    series = sum(
        quarter**k * math.exp(-math.lgamma(k + 1) - math.lgamma(d / 2 + k)) for k in range(80)
    )
    log_z = d / 2 * math.log(2 * math.pi) - (d / 2 - 1) * math.log(2) + series.log()
    scores = beta * torch.einsum("mia,mija->mij", target, m)
    log_p = [v.masked_fill(off, -math.inf).logsumexp(-1) for v in (scores, log_z)]
    return -((log_p[0] - log_p[1]) * weight).sum() / len(state)


@pytest.mark.parametrize("beta", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("sites", ["all", "one for all", "own for each"])
def test_rule_is_the_gradient_of_its_loss(beta, sites):
    network, state, target = (
        one_head(beta),
        random_states(BATCH, N, D),
        random_states(BATCH, N, D, seed=5),
    )
    generator = torch.Generator().manual_seed(2)
    chosen = {
        "all": None,
        "one for all": torch.rand(N, generator=generator) < 0.5,
        "own for each": torch.rand(BATCH, N, generator=generator) < 0.5,
    }[sites]
    weight = torch.ones(BATCH, N) if chosen is None else chosen.expand(BATCH, N)
    loss, gradients = pseudo_likelihood_rule(network, state, target, chosen)
    network.requires_grad_(True)
    expected = differentiable_loss(network, state, target, weight)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(
        loss, -(log_conditional(network, state, target) * weight).sum() / BATCH, atol=1e-11, rtol=0
    )
    assert gradients.keys() == {"bias", "couplings.J"}
    for name, p in network.named_parameters():
        torch.testing.assert_close(
            gradients[name], p.grad, atol=1e-10, rtol=0, msg=lambda m: f"{name}: {m}"
        )
        assert gradients[name].abs().max() > 1e-3


def test_rule_is_the_formula_of_the_book():
    network, s, x = one_head(), random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    _, _, w, a = naive(network, s, x)
    expected = torch.zeros_like(network.couplings.J[0])
    for m in range(BATCH):
        for i in range(N):
            for j in set(range(N)) - {i}:
                message = network.couplings.J[0, i, j] @ s[m, j] + network.bias[i]
                k = network.beta * message.norm().item()
                length = special.iv(D / 2, k) / special.iv(D / 2 - 1, k)
                push = a[m, i, j] * x[m, i] - w[m, i, j] * length * message / message.norm()
                expected[i, j] -= network.beta * torch.outer(push, s[m, j]) / BATCH
    torch.testing.assert_close(
        pseudo_likelihood_rule(network, s, x)[1]["couplings.J"][0], expected, atol=1e-12, rtol=0
    )


def test_gradient_vanishes_for_data_that_the_network_draws_itself():
    """Exactly normalised: at the couplings that drew the targets, the expected gradient is zero; at
    others it is not.
    """
    network, n = one_head(n=3, d=4, strength=1.5), 20_000
    s, generator = random_states(n, 3, 4), torch.Generator().manual_seed(0)
    target = torch.stack([draw_site(network, s, i, generator) for i in range(3)], 1)
    parts = [
        pseudo_likelihood_rule(network, s[b], target[b])[1]["couplings.J"]
        for b in torch.arange(n).split(500)
    ]
    mean, error = torch.stack(parts).mean(0), torch.stack(parts).std(0) / len(parts) ** 0.5
    off = ~torch.eye(3, dtype=torch.bool)
    z = (mean / error)[0][off]
    assert z.square().mean() < 1.3 and z.abs().max() < 5
    network.couplings.J.mul_(1.1)
    moved = torch.stack(
        [
            pseudo_likelihood_rule(network, s[b], target[b])[1]["couplings.J"]
            for b in torch.arange(n).split(500)
        ]
    )
    assert (moved.mean(0) / error)[0][off].square().mean() > 2


def test_small_beta_tends_to_uniform_and_its_mean_to_the_average_message():
    s = random_states(BATCH, N, D)
    surface = log_normaliser(torch.zeros(1, dtype=torch.float64), D)
    for beta in (1e-2, 1e-3):
        network = one_head(beta)
        m = torch.einsum("ijab,mjb->mija", network.couplings.J[0], s) + network.bias[:, None]
        average = (m * ~torch.eye(N, dtype=torch.bool)[..., None]).sum(2) / (N - 1)
        first = beta * (s * average).sum(-1) - surface
        assert (log_conditional(network, s) - first).abs().max() < 60 * beta**2
        assert (predicted_mean(network, s) - beta / D * average).abs().max() < 60 * beta**2 / D


def test_a_site_does_not_see_its_own_token_and_gamma_drops_out():
    network, s, x = one_head(), random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    changed = s.clone()
    changed[:, 1] = random_states(BATCH, D, seed=9)
    for function in (
        lambda v: log_conditional(network, v, x),
        lambda v: predicted_mean(network, v),
    ):
        assert torch.equal(function(changed)[:, 1], function(s)[:, 1])
        assert not torch.allclose(function(changed)[:, 0], function(s)[:, 0])
    other = one_head(gamma=2.0)
    assert torch.equal(log_conditional(other, s, x), log_conditional(network, s, x))


def test_blocks_of_examples_change_nothing():
    network = one_head(n=13, d=17)
    s, x = random_states(401, 13, 17), random_states(401, 13, 17, seed=5)
    assert len(list(blocks(network, s))) > 1
    pieces = list(zip(s.split(57), x.split(57)))  # each within one block
    parts = [(len(u), pseudo_likelihood_rule(network, u, y)[1]) for u, y in pieces]
    for name, gradient in pseudo_likelihood_rule(network, s, x)[1].items():
        torch.testing.assert_close(
            gradient, sum(n * p[name] for n, p in parts) / 401, atol=1e-12, rtol=0
        )
    whole = (log_conditional(network, s, x), predicted_mean(network, s))
    by_piece = [(log_conditional(network, u, y), predicted_mean(network, u)) for u, y in pieces]
    for got, expected in zip(whole, zip(*by_piece)):
        torch.testing.assert_close(got, torch.cat(expected), atol=1e-12, rtol=0)


def test_gibbs_sweep_draws_from_the_conditionals_in_order():
    """Site 0 given the old others; site 1 given the new site 0: their means over draws, by a
    z-test.
    """
    n, network = 12_000, one_head(n=3, d=4)
    start = random_states(1, 3, 4).expand(n, 3, 4)
    new = gibbs_sweep(network, start, torch.Generator().manual_seed(0))
    assert (
        torch.equal(start[0], random_states(1, 3, 4)[0])
        and (new.norm(dim=-1) - 1).abs().max() < 1e-12
    )
    seen = start.clone()
    for i in range(3):
        difference = new[:, i] - predicted_mean(network, seen)[:, i]
        z = difference.mean(0) / (difference.std(0) / n**0.5)
        assert z.abs().max() < 4.5, (i, z)
        old = predicted_mean(network, start)[:, i] - new[:, i]
        if i == 1:  # the old value of site 0 would give another mean
            assert (old.mean(0) / (old.std(0) / n**0.5)).abs().max() > 6
        seen[:, i] = new[:, i]


def test_two_sites_with_transposed_couplings_keep_their_joint():
    """N = 2, J_21 = J_12^T: the sweep leaves p(x) ~ exp(beta x_1 . J_12 x_2) as it is; E[x_1 . J_12
    x_2] is known for O(d) J.
    """
    d, n, beta, strength = 3, 20_000, 1.0, 2.5
    network = AttractorNetwork(2, d, beta=beta).double()
    network.couplings.J[0, 0, 1] = strength * torch.linalg.qr(random_states(d, d))[0]
    network.couplings.J[0, 1, 0] = network.couplings.J[0, 0, 1].mT
    x, generator = random_states(n, 2, d), torch.Generator().manual_seed(0)
    for _ in range(12):
        x = gibbs_sweep(network, x, generator)
    cosine = torch.einsum("ma,ab,mb->m", x[:, 0], network.couplings.J[0, 0, 1], x[:, 1]) / strength
    expected = 1 / math.tanh(strength) - 1 / strength
    assert abs(cosine.mean() - expected) < 4 * cosine.std() / n**0.5


def test_clamped_sites_stay():
    network, x = one_head(), random_states(BATCH, N, D)
    for shape in ((N,), (BATCH, N)):
        clamped = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
        new = gibbs_sweep(network, x, torch.Generator().manual_seed(0), clamped)
        assert torch.equal((new == x).all(-1), clamped.expand(BATCH, N))


def test_a_network_without_couplings_is_uniform_and_can_be_trained_without_autograd(monkeypatch):
    network = AttractorNetwork(N, D).double()
    network.couplings.J.zero_()
    x = random_states(BATCH, N, D)
    surface = log_normaliser(torch.zeros(1, dtype=torch.float64), D).item()
    torch.testing.assert_close(
        log_conditional(network, x), torch.full((BATCH, N), -surface, dtype=torch.float64)
    )
    assert not predicted_mean(network, x).any()
    assert (gibbs_sweep(network, x, torch.Generator().manual_seed(0)) * x).sum(
        -1
    ).abs().max() < 0.95

    torch.optim.Adam(
        [torch.zeros(1)]
    )  # torch loads more of itself with the first optimiser, before autograd is forbidden

    def forbidden(*args, **kwargs):
        raise AssertionError("autograd was used")

    for owner, name in (
        (torch.Tensor, "backward"),
        (torch.autograd, "backward"),
        (torch.autograd, "grad"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    data = (
        x[:, :1].expand(BATCH, N, D).contiguous().repeat(5, 1, 1)
    )  # every site shows the same token
    config = TrainingConfig(epochs=40, batch_size=5, learning_rate=0.1)
    history = train(network, pseudo_likelihood_rule, data, no_corruption, config, report=None)
    assert history[-1]["loss"] < history[0]["loss"] - 0.5 * N
    assert (predicted_mean(network, data) * data).sum(-1).min() > 0.3


@pytest.mark.parametrize(
    "call",
    [
        lambda network, x: log_conditional(network, x),
        lambda network, x: predicted_mean(network, x),
        lambda network, x: pseudo_likelihood_rule(network, x, x),
        lambda network, x: gibbs_sweep(network, x),
        lambda network, x: draw_site(network, x, 0),
    ],
)
def test_refuses_other_networks_and_states(call, x):
    for network, got in (
        (random_network(None), r"Full\(n_heads=3, .*"),
        (random_network(RANK, heads=1), r"LowRank\(n_heads=1, .*, rank=2\)"),
    ):
        with pytest.raises(
            ValueError, match=f"network must have one head of full rank .*, got {got}"
        ):
            call(network, x)
    with pytest.raises(ValueError, match="network must have n_known=0, got 2"):
        call(AttractorNetwork(N, D, n_known=2).double(), x)
    for form in ({"potential": Square()}, {"space": Flat()}):
        with pytest.raises(
            ValueError, match="network must have the log-sum-exp energy on the sphere, got"
        ):
            call(AttractorNetwork(N, D, **form).double(), x)
    for hears in (torch.ones(N, N, dtype=torch.bool), torch.ones(N, N, dtype=torch.bool).tril(-1)):
        with pytest.raises(ValueError, match="each site must hear some other and not itself"):
            call(AttractorNetwork(N, D, hears=hears).double(), x)
    with pytest.raises(ValueError, match="state must have tokens of norm 1"):
        call(one_head(), 2 * x)
    with pytest.raises(ValueError, match="dim must be a whole number >= 2, got 1"):
        call(one_head(d=1), x[..., :1] / x[..., :1].abs())


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda n, x: pseudo_likelihood_rule(n, x, x[:3]),
            r"target must be torch.float64 of shape \(7, 5, 11\) on cpu, got",
        ),
        (
            lambda n, x: log_conditional(n, x, x[:3]),
            r"target must be torch.float64 of shape \(7, 5, 11\)",
        ),
        (lambda n, x: pseudo_likelihood_rule(n, x, x / 2), "target must have tokens of norm 1"),
        (
            lambda n, x: pseudo_likelihood_rule(n, x, x, torch.ones(4) > 0),
            r"sites must be boolean of shape \(5,\) or \(7, 5\)",
        ),
        (
            lambda n, x: pseudo_likelihood_rule(n, x[:0], x[:0]),
            "state must hold at least one example",
        ),
        (
            lambda n, x: gibbs_sweep(n, x, clamped=torch.ones(N)),
            r"clamped must be boolean of shape \(5,\) or \(7, 5\) on cpu",
        ),
        (lambda n, x: draw_site(n, x, 5), "site must be from 0 to 4, got 5"),
    ],
)
def test_refuses_bad_arguments(call, message, x):
    with pytest.raises(ValueError, match=message):
        call(one_head(), x)
