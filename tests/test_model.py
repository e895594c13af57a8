"""The equations of the model against naive loops, autograd in float64, and properties that only a right one has."""

import math

import pytest
import torch
from conftest import BATCH, D, HEADS, N, RANK, random_network, random_states

from attractor_lib.model import AttractorNetwork


def naive(network, x):
    """Local energies, attention and field by loops over m, h, i, j, a, b, from `couplings` and `bias` alone."""
    J, b, beta, gamma = network.couplings, network.bias, network.beta, network.gamma
    heads, n, _, d, _ = J.shape
    energies = torch.zeros(len(x), n, dtype=x.dtype)
    attention = torch.zeros(len(x), heads, n, n, dtype=x.dtype)
    field = torch.zeros(len(x), n, d, dtype=x.dtype)
    for m in range(len(x)):
        for i in range(n):
            energies[m, i] = -sum(b[i, a] * x[m, i, a] + gamma / 2 * x[m, i, a] ** 2 for a in range(d))
            field[m, i] = b[i]
            for h in range(heads):
                message = {j: [sum(J[h, i, j, a, c] * x[m, j, c] for c in range(d)) for a in range(d)]
                           for j in range(n) if j != i}
                weight = {j: math.exp(beta * sum(x[m, i, a] * v[a] for a in range(d))) for j, v in message.items()}
                total = sum(weight.values())
                energies[m, i] -= math.log(total) / beta
                for j, v in message.items():
                    attention[m, h, i, j] = weight[j] / total
                    field[m, i] += weight[j] / total * torch.stack(v)
    return energies, attention, field


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, 2])
def test_agrees_with_naive_loops(rank, beta):
    network, x = random_network(rank, beta, heads=2, n=3, d=4), random_states(2, 3, 4)
    for got, expected in zip((network.local_energies(x), network.attention(x), network.field(x)), naive(network, x)):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, RANK])
def test_update_is_minus_the_derivative_of_the_own_local_energy(rank, beta):
    network = random_network(rank, beta)
    x = random_states(BATCH, N, D).requires_grad_()
    energies = network.local_energies(x)
    for i in range(N):
        derivative, = torch.autograd.grad(energies[:, i].sum(), x, retain_graph=True)
        torch.testing.assert_close(-derivative[:, i], network.field(x)[:, i] + network.gamma * x[:, i], atol=1e-10, rtol=0)
    unprojected = network.field(x) + network.gamma * x
    torch.testing.assert_close(network.update(x), unprojected / unprojected.norm(dim=-1, keepdim=True), atol=1e-12, rtol=0)


def test_field_is_not_the_derivative_of_the_summed_energy(network, x):
    """The summed energy's derivative has the extra terms sum_k a_k<-i J_ki^T x_k, with symmetric couplings too."""
    if network.rank is None:
        J = network.couplings
        J.copy_((J + J.permute(0, 2, 1, 4, 3)) / 2)
    x.requires_grad_()
    derivative, = torch.autograd.grad(network.local_energies(x).sum(), x)
    own = network.field(x) + network.gamma * x
    extra = torch.einsum("mhki,hkiab,mka->mib", network.attention(x), network.couplings, x)
    torch.testing.assert_close(-derivative, own + extra, atol=1e-10, rtol=0)
    assert extra.abs().max() > 0.1


def test_attention_rows_sum_to_one_without_self(network, x):
    attention = network.attention(x)
    assert attention.shape == (BATCH, HEADS, N, N)
    torch.testing.assert_close(attention.sum(-1), torch.ones(BATCH, HEADS, N, dtype=x.dtype))
    assert not attention.diagonal(dim1=-2, dim2=-1).any()


def test_couplings_of_a_site_with_itself_never_act(x):
    network = random_network(None)
    before = [f(x) for f in (network.local_energies, network.attention, network.field, network.update)]
    for i in range(N):
        network.couplings[:, i, i] = 1e3
    after = [f(x) for f in (network.local_energies, network.attention, network.field, network.update)]
    for b, a in zip(before, after):
        assert torch.equal(b, a)


def test_relabelling_the_sites_commutes_with_the_update(network, x):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    relabelled = random_network(network.rank)
    with torch.no_grad():
        if network.rank is None:
            relabelled.couplings.copy_(network.couplings[:, order][:, :, order])
        else:
            relabelled.U.copy_(network.U[:, order])
            relabelled.V.copy_(network.V[:, order])
        relabelled.bias.copy_(network.bias[order])
    torch.testing.assert_close(relabelled.update(x[:, order]), network.update(x)[:, order], atol=1e-12, rtol=0)


def test_low_rank_is_full_rank_with_the_product_as_couplings(x):
    low, full = random_network(RANK), random_network(None)
    full.couplings.copy_(low.couplings)
    full.bias.copy_(low.bias)
    for name in ("local_energies", "attention", "field", "update"):
        torch.testing.assert_close(getattr(low, name)(x), getattr(full, name)(x), atol=1e-12, rtol=0)


def test_blocks_of_examples_change_nothing():
    network = random_network(None, n=13, d=17)
    x = random_states(251, 13, 17)
    assert len(list(network.blocks(x))) > 1
    one_by_one = torch.cat([network.update(x[m:m + 1]) for m in range(len(x))])
    torch.testing.assert_close(network.update(x), one_by_one, atol=1e-12, rtol=0)


def test_beta_to_zero_is_uniform_attention_and_beta_to_infinity_the_best_site(x):
    cold, hot = random_network(None, beta=1e4, heads=1), random_network(None, beta=1e-6, heads=1)
    torch.testing.assert_close(hot.attention(x), ((1 - torch.eye(N, dtype=x.dtype)) / (N - 1)).expand(BATCH, 1, N, N),
                               atol=1e-5, rtol=0)
    scores = torch.einsum("mia,hijab,mjb->mhij", x, cold.couplings, x)
    scores.diagonal(dim1=-2, dim2=-1).fill_(-math.inf)
    assert torch.equal(cold.attention(x).argmax(-1), scores.argmax(-1))


def test_a_site_without_field_stays(x):
    network = AttractorNetwork(N, D).double()
    network.couplings.zero_()
    assert torch.equal(network.update(x), x)


def test_couplings_never_require_grad_and_the_product_is_read_only(network):
    assert not any(p.requires_grad for p in network.parameters())
    assert network.couplings.shape == (HEADS, N, N, D, D)
    if network.rank is not None:
        with pytest.raises(AttributeError):
            network.couplings = torch.zeros(HEADS, N, N, D, D)


@pytest.mark.parametrize("rank", [None, RANK])
def test_the_generator_decides_the_initial_couplings(rank):
    def couplings(seed):
        return AttractorNetwork(N, D, HEADS, rank, generator=torch.Generator().manual_seed(seed)).couplings
    assert torch.equal(couplings(1), couplings(1)) and not torch.equal(couplings(1), couplings(2))


def test_acting_parameters_are_those_that_change_the_field():
    full, low = AttractorNetwork(N, D, HEADS), AttractorNetwork(N, D, HEADS, RANK)
    assert full.n_acting == HEADS * N * (N - 1) * D**2 and low.n_acting == 2 * HEADS * N * RANK * D
    full.bias.fill_(0.1)
    assert full.n_acting == HEADS * N * (N - 1) * D**2 + N * D


def test_float32_follows_float64(network, x):
    expected = network.update(x)
    torch.testing.assert_close(network.float().update(x.float()), expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arguments, message", [
    (dict(n_sites=1, dim=3), "n_sites must be a whole number >= 2, got 1"),
    (dict(n_sites=4, dim=0), "dim must be a whole number >= 1, got 0"),
    (dict(n_sites=4, dim=3, rank=0), "rank must be a whole number >= 1, got 0"),
    (dict(n_sites=4, dim=3, beta=0.0), "beta must be a finite number > 0, got 0.0"),
    (dict(n_sites=4, dim=3, beta=math.nan), "beta must be a finite number > 0, got nan"),
    (dict(n_sites=4, dim=3, gamma=-1.0), "gamma must be a finite number >= 0, got -1.0"),
])
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttractorNetwork(**arguments)


@pytest.mark.parametrize("method", ["local_energies", "attention", "field", "update"])
@pytest.mark.parametrize("spoil, message", [
    (lambda x: x[0], r"must have shape \(batch, 5, 11\), got \(5, 11\)"),
    (lambda x: x[:, :4], r"must have shape \(batch, 5, 11\), got \(7, 4, 11\)"),
    (lambda x: x.tolist(), r"must have shape \(batch, 5, 11\), got list"),
    (lambda x: 2 * x, "tokens of norm 1, got norms that differ from 1 by up to 1"),
    (lambda x: x * math.nan, "tokens of norm 1"),
    (lambda x: x.float(), "must be torch.float64 on cpu like the network, got torch.float32"),
])
def test_refuses_bad_states(network, x, method, spoil, message):
    with pytest.raises(ValueError, match=message):
        getattr(network, method)(spoil(x))
