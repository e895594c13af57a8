"""The equations of the model against naive loops, autograd in float64, and properties that only a
right one has.
"""

import copy
import math

import pytest
import torch
from conftest import (
    BATCH,
    HEADS,
    RANK,
    D,
    N,
    every_network,
    random_network,
    random_states,
    randomised,
)

from attractor_lib import kernels
from attractor_lib.model import AttractorNetwork, LogSumExp, Mean, Square
from attractor_lib.states import Flat, blocks

PHI = {  # phi of a list of scores, and its derivative, written down once more
    LogSumExp(): (
        lambda s: math.log(sum(map(math.exp, s))),
        lambda s: [math.exp(v) / sum(map(math.exp, s)) for v in s],
    ),
    Square(): (lambda s: sum(v * v for v in s) / 2, lambda s: s),
    Mean(): (lambda s: sum(s) / len(s), lambda s: [1 / len(s)] * len(s)),
}


def naive(network, x):
    """Local energies, attention and field by loops over m, h, i, j, a, b, from J, the bias, phi and
    who hears whom alone.
    """
    J, b, beta, gamma = network.couplings.dense(), network.bias, network.beta, network.gamma
    (phi, derivative), (heads, n, _, d, _) = PHI[network.phi], J.shape
    energies = torch.zeros(len(x), n, dtype=x.dtype)
    attention = torch.zeros(len(x), heads, n, n, dtype=x.dtype)
    field = torch.zeros(len(x), n, d, dtype=x.dtype)
    for m in range(len(x)):
        for i in range(n):
            energies[m, i] = -sum(
                b[i, a] * x[m, i, a] + gamma / 2 * x[m, i, a] ** 2 for a in range(d)
            )
            field[m, i] = b[i]
            heard = [j for j in range(n) if network.hears[i, j]]
            for h in range(heads if heard else 0):
                message = {
                    j: [sum(J[h, i, j, a, c] * x[m, j, c] for c in range(d)) for a in range(d)]
                    for j in heard
                }
                scores = [
                    float(beta * sum(x[m, i, a] * message[j][a] for a in range(d))) for j in heard
                ]
                energies[m, i] -= phi(scores) / beta
                for j, weight in zip(heard, derivative(scores), strict=True):
                    attention[m, h, i, j] = weight
                    field[m, i] += weight * torch.stack(message[j])
    return energies, attention, field


@pytest.mark.parametrize("kernel", [(), ("batched",), ("cpu",)])
@pytest.mark.parametrize("network", every_network(heads=2, n=3, d=4))
def test_agrees_with_naive_loops(network, kernel):
    x = random_states(2, 3, 4)
    with kernels.only(*kernel):
        got = network.local_energies(x), network.attention(x), network.field(x)
    for g, expected in zip(got, naive(network, x), strict=True):
        torch.testing.assert_close(g, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, 2])
def test_agrees_with_naive_loops_at_any_beta(rank, beta):
    network, x = random_network(rank, beta, heads=2, n=3, d=4), random_states(2, 3, 4)
    got = network.local_energies(x), network.attention(x), network.field(x)
    for g, expected in zip(got, naive(network, x), strict=True):
        torch.testing.assert_close(g, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("network", every_network())
def test_field_is_minus_the_derivative_of_the_own_energy_but_for_the_self_message(network):
    x = random_states(BATCH, N, D).requires_grad_()
    energies = network.local_energies(x)
    expected = network.field(x) + network.gamma * x
    # Where a site hears itself, x_i is in its own score twice: sum_h a_ii J_ii^T x_i more.
    own = torch.einsum("mhii,hiiab,mia->mib", network.attention(x), network.couplings.dense(), x)
    assert (own.abs().max() > 0.1) == bool(network.hears.diagonal().any())
    for i in range(N):
        (derivative,) = torch.autograd.grad(energies[:, i].sum(), x, retain_graph=True)
        torch.testing.assert_close(-derivative[:, i], (expected + own)[:, i], atol=1e-10, rtol=0)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, RANK])
def test_update_is_minus_the_derivative_of_the_own_local_energy(rank, beta):
    network = random_network(rank, beta)
    x = random_states(BATCH, N, D).requires_grad_()
    energies = network.local_energies(x)
    for i in range(N):
        (derivative,) = torch.autograd.grad(energies[:, i].sum(), x, retain_graph=True)
        torch.testing.assert_close(
            -derivative[:, i], network.field(x)[:, i] + network.gamma * x[:, i], atol=1e-10, rtol=0
        )
    unprojected = network.field(x) + network.gamma * x
    torch.testing.assert_close(
        network.update(x), unprojected / unprojected.norm(dim=-1, keepdim=True), atol=1e-12, rtol=0
    )


def test_field_is_not_the_derivative_of_the_summed_energy(network, x):
    """The summed energy's derivative has the extra terms sum_k a_k<-i J_ki^T x_k, with symmetric
    couplings too.
    """
    if network.couplings.pairwise:
        J = network.couplings.J
        J.copy_((J + J.permute(0, 2, 1, 4, 3)) / 2)
    x.requires_grad_()
    (derivative,) = torch.autograd.grad(network.local_energies(x).sum(), x)
    own = network.field(x) + network.gamma * x
    extra = torch.einsum("mhki,hkiab,mka->mib", network.attention(x), network.couplings.dense(), x)
    torch.testing.assert_close(-derivative, own + extra, atol=1e-10, rtol=0)
    assert extra.abs().max() > 0.1


def test_attention_rows_sum_to_one_without_self(network, x):
    attention = network.attention(x)
    assert attention.shape == (BATCH, HEADS, N, N)
    torch.testing.assert_close(attention.sum(-1), torch.ones(BATCH, HEADS, N, dtype=x.dtype))
    assert not attention.diagonal(dim1=-2, dim2=-1).any()


def test_couplings_of_a_site_with_itself_never_act(x):
    network = random_network(None)
    before = [
        f(x) for f in (network.local_energies, network.attention, network.field, network.update)
    ]
    for i in range(N):
        network.couplings.J[:, i, i] = 1e3
    after = [
        f(x) for f in (network.local_energies, network.attention, network.field, network.update)
    ]
    for b, a in zip(before, after):
        assert torch.equal(b, a)


def test_relabelling_the_sites_commutes_with_the_update(network, x):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    relabelled = copy.deepcopy(network)
    for name, p in relabelled.named_parameters():
        p.copy_(p[order] if name == "bias" else p[:, order])
    if network.couplings.pairwise:
        relabelled.couplings.J.copy_(relabelled.couplings.J[:, :, order])
    torch.testing.assert_close(
        relabelled.update(x[:, order]), network.update(x)[:, order], atol=1e-12, rtol=0
    )


def test_low_rank_is_full_rank_with_the_product_as_couplings(x):
    low, full = random_network(RANK), random_network(None)
    full.couplings.J.copy_(low.couplings.dense())
    full.bias.copy_(low.bias)
    for name in ("local_energies", "attention", "field", "update"):
        torch.testing.assert_close(
            getattr(low, name)(x), getattr(full, name)(x), atol=1e-12, rtol=0
        )


def test_blocks_of_examples_change_nothing():
    network = random_network(None, n=13, d=17)
    x = random_states(251, 13, 17)
    assert len(list(blocks(network, x))) > 1
    one_by_one = torch.cat([network.update(x[m : m + 1]) for m in range(len(x))])
    torch.testing.assert_close(network.update(x), one_by_one, atol=1e-12, rtol=0)


def test_beta_to_zero_is_uniform_attention_and_beta_to_infinity_the_best_site(x):
    cold, hot = random_network(None, beta=1e4, heads=1), random_network(None, beta=1e-6, heads=1)
    torch.testing.assert_close(
        hot.attention(x),
        ((1 - torch.eye(N, dtype=x.dtype)) / (N - 1)).expand(BATCH, 1, N, N),
        atol=1e-5,
        rtol=0,
    )
    scores = torch.einsum("mia,hijab,mjb->mhij", x, cold.couplings.J, x)
    scores.diagonal(dim1=-2, dim2=-1).fill_(-math.inf)
    assert torch.equal(cold.attention(x).argmax(-1), scores.argmax(-1))


def test_a_site_without_field_stays(x):
    network = AttractorNetwork(N, D).double()
    network.couplings.J.zero_()
    assert torch.equal(network.update(x), x)


def test_couplings_never_require_grad(network):
    assert not any(p.requires_grad for p in network.parameters())
    assert network.couplings.dense().shape == (HEADS, N, N, D, D)


@pytest.mark.parametrize("rank", [None, RANK])
def test_the_generator_decides_the_initial_couplings(rank):
    def couplings(seed):
        return AttractorNetwork(
            N, D, HEADS, rank, generator=torch.Generator().manual_seed(seed)
        ).couplings.dense()

    assert torch.equal(couplings(1), couplings(1)) and not torch.equal(couplings(1), couplings(2))


def test_acting_parameters_are_those_that_change_the_field():
    full, low = AttractorNetwork(N, D, HEADS), AttractorNetwork(N, D, HEADS, RANK)
    assert full.n_acting == HEADS * N * (N - 1) * D**2 and low.n_acting == 2 * HEADS * N * RANK * D
    full.bias.fill_(0.1)
    assert full.n_acting == HEADS * N * (N - 1) * D**2 + N * D
    full.hears = torch.ones(N, N, dtype=torch.bool).tril(-1)
    assert full.n_acting == HEADS * N * (N - 1) // 2 * D**2 + N * D
    low.hears = full.hears  # the first site asks nobody, the last is heard by nobody
    assert low.n_acting == 2 * HEADS * (N - 1) * RANK * D


def test_autograd_passes_a_site_that_hears_none():
    """It has no field, and 0 / 0 that is not taken would be NaN for everyone."""
    network = AttractorNetwork(N, D, hears=torch.ones(N, N, dtype=torch.bool).tril(-1)).double()
    x = random_states(BATCH, N, D)
    J = network.couplings.J.requires_grad_()
    (gradient,) = torch.autograd.grad((network.update(x) - 1).square().sum(), J)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_at_is_the_same_network_at_another_beta_or_gamma(network, x):
    other = randomised(copy.deepcopy(network))
    other.beta, other.gamma = 0.4, 0.0
    view = network.at(beta=0.4, gamma=0.0)
    assert (network.beta, network.gamma) == (1.7, 0.3) and not torch.equal(
        view.update(x), network.update(x)
    )
    for name in ("local_energies", "attention", "field", "update"):
        assert torch.equal(getattr(view, name)(x), getattr(other, name)(x))
    network.bias += 1.0  # shared
    assert torch.equal(view.bias, network.bias) and not torch.equal(view.update(x), other.update(x))
    assert network.at(gamma=2.0).beta == 1.7
    with pytest.raises(ValueError, match="beta must be a finite number > 0, got -1"):
        network.at(beta=-1)


def test_what_is_assigned_to_a_view_stays_its_own(network, x):
    view, causal = network.at(gamma=0.0), torch.ones(N, N, dtype=torch.bool).tril(-1)
    before = network.update(x)
    view.hears = causal
    assert view.attention(x).isfinite().all() and torch.equal(network.update(x), before)
    view.couplings = random_network(RANK).couplings
    assert torch.equal(network.update(x), before)


@pytest.mark.parametrize("kernel", [(), ("batched",), ("cpu",)])
def test_a_mask_changed_in_place_counts_and_is_no_other_s(network, x, kernel):
    mask = ~torch.eye(N, dtype=torch.bool)
    network.hears = mask
    mask[:] = False
    with kernels.only(*kernel):
        assert network.field(x)[:, 0].ne(network.bias[0]).all()
        network.hears[0] = False
        assert network.field(x)[:, 0].eq(network.bias[0]).all()
        assert network.update(x).isfinite().all()


@pytest.mark.parametrize("kernel", [(), ("batched",), ("cpu",)])
@pytest.mark.parametrize("network", every_network())
def test_an_empty_batch_has_an_empty_field(network, kernel):
    with kernels.only(*kernel):
        for name, shape in (
            ("field", (N, D)),
            ("attention", (HEADS, N, N)),
            ("local_energies", (N,)),
        ):
            assert getattr(network, name)(random_states(BATCH, N, D)[:0]).shape == (0, *shape)


def test_couplings_bring_their_dtype(x):
    double = AttractorNetwork(N, D, couplings=AttractorNetwork(N, D).double().couplings)
    assert double.bias.dtype == torch.float64 and double.update(x).dtype == torch.float64


@pytest.mark.parametrize("kernel", [(), ("batched",), ("cpu",)])
def test_a_causal_chain_does_not_hear_what_comes_later(network, x, kernel):
    network.hears = torch.ones(N, N, dtype=torch.bool).tril(-1)
    later = x.clone()
    later[:, 3:] = random_states(BATCH, N - 3, D, seed=9)
    with kernels.only(*kernel):
        torch.testing.assert_close(
            network.field(x)[:, :3], network.field(later)[:, :3], atol=0, rtol=0
        )
        torch.testing.assert_close(
            network.field(x)[:, 0], network.bias[0].expand(BATCH, D), atol=0, rtol=0
        )
        assert (network.field(x)[:, 4] - network.field(later)[:, 4]).abs().max() > 0.01
    assert not network.attention(x)[:, :, 0].any()


def test_uniform_attention_is_the_limit_of_small_beta_and_a_hopfield_network_s_field(x):
    uniform = randomised(AttractorNetwork(N, D, HEADS, gamma=0.3, potential=Mean()))
    torch.testing.assert_close(
        random_network(None, 1e-6).field(x), uniform.field(x), atol=1e-5, rtol=0
    )
    J = uniform.couplings.J * uniform.hears[:, :, None, None]
    hopfield = torch.einsum("hijab,mjb->mia", J, x) / (N - 1)
    torch.testing.assert_close(uniform.field(x), hopfield + uniform.bias, atol=1e-12, rtol=0)


def test_beta_and_the_scale_of_J_are_one_parameter_of_linear_attention(x):
    network, scaled = (
        randomised(AttractorNetwork(N, D, HEADS, beta=beta, potential=Square()))
        for beta in (4.0, 1.0)
    )
    scaled.couplings.J.mul_(2.0)
    torch.testing.assert_close(scaled.field(x), network.field(x), atol=1e-12, rtol=0)


def test_in_flat_space_the_update_has_the_norm_of_the_field(x):
    network = randomised(AttractorNetwork(N, D, HEADS, None, 1.7, 0.3, space=Flat()))
    torch.testing.assert_close(
        network.update(x), network.field(x) + network.gamma * x, atol=0, rtol=0
    )
    projected = random_network(None).update(x)
    torch.testing.assert_close(
        network.update(x) / network.update(x).norm(dim=-1, keepdim=True), projected
    )
    network.update(3 * x)  # accepted
    with pytest.raises(ValueError, match="x must be finite, got NaN or infinity"):
        network.update(x / 0)


def test_the_description_tells_networks_apart():
    """A checkpoint belongs to the network that is described so."""
    causal = torch.ones(N, N, dtype=torch.bool).tril(-1)
    forms = [
        {},
        {"potential": Square()},
        {"hears": causal},
        {"hears": causal.T},
        {"space": Flat()},
        {"rank": 2},
        {"beta": 2.0},
    ]
    assert len({repr(AttractorNetwork(N, D, **form)) for form in forms}) == len(forms)


def test_float32_follows_float64(network, x):
    expected = network.update(x)
    torch.testing.assert_close(
        network.float().update(x.float()), expected.float(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(n_sites=1, dim=3), "n_sites must be a whole number >= 2, got 1"),
        (dict(n_sites=4, dim=0), "dim must be a whole number >= 1, got 0"),
        (dict(n_sites=4, dim=3, rank=0), "rank must be a whole number >= 1, got 0"),
        (dict(n_sites=4, dim=3, beta=0.0), "beta must be a finite number > 0, got 0.0"),
        (dict(n_sites=4, dim=3, beta=math.nan), "beta must be a finite number > 0, got nan"),
        (dict(n_sites=4, dim=3, gamma=-1.0), "gamma must be a finite number >= 0, got -1.0"),
        (
            dict(n_sites=4, dim=3, couplings=AttractorNetwork(5, 3).couplings),
            "couplings must be for 4 sites of 3 components",
        ),
        (
            dict(n_sites=5, dim=3, rank=2, couplings=AttractorNetwork(5, 3).couplings),
            "come without n_heads and rank",
        ),
        (
            dict(
                n_sites=5,
                dim=3,
                couplings=AttractorNetwork(5, 3).couplings,
                generator=torch.Generator(),
            ),
            "generator must be None where couplings are given",
        ),
        (
            dict(n_sites=4, dim=3, hears=torch.ones(4, 3, dtype=torch.bool)),
            r"boolean tensor of shape \(4, 4\), got torch.bool \(4, 3\)",
        ),
        (
            dict(n_sites=4, dim=3, couplings=torch.ones(1)),
            "couplings must be an object such as Full",
        ),
        (dict(n_sites=4, dim=3, potential=Square), "potential must be an object such as LogSumExp"),
        (
            dict(n_sites=4, dim=3, hears=torch.ones(4, 4)),
            r"hears must be a boolean tensor of shape \(4, 4\), got torch.float32",
        ),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttractorNetwork(**arguments)


@pytest.mark.parametrize("method", ["local_energies", "attention", "field", "update"])
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda x: x[0], r"must have shape \(batch, 5, 11\), got \(5, 11\)"),
        (lambda x: x[:, :4], r"must have shape \(batch, 5, 11\), got \(7, 4, 11\)"),
        (lambda x: x.tolist(), r"must have shape \(batch, 5, 11\), got list"),
        (lambda x: 2 * x, "tokens of norm 1, got norms that differ from 1 by up to 1"),
        (lambda x: x * math.nan, "tokens of norm 1"),
        (lambda x: x.float(), "must be torch.float64 on cpu like the network, got torch.float32"),
    ],
)
def test_refuses_bad_states(network, x, method, spoil, message):
    with pytest.raises(ValueError, match=message):
        getattr(network, method)(spoil(x))


@pytest.mark.parametrize("beta", [0.1, 1.7, 20.0])
@pytest.mark.parametrize("rank", [None, RANK])
def test_the_own_energy_lies_below_its_tangent_and_a_lone_update_lowers_it(rank, beta):
    network, x, y = random_network(rank, beta), random_states(50, N, D), random_states(50, N, D)
    y = y.flip(0)
    for i in range(N):  # site i alone moves
        there, updated = x.clone(), x.clone()
        there[:, i], updated[:, i] = y[:, i], network.update(x)[:, i]
        g = (network.field(x) + network.gamma * x)[:, i]
        before, after = (network.local_energies(s)[:, i] for s in (x, updated))
        step = y[:, i] - x[:, i]
        bound = before - (g * step).sum(-1) - network.gamma / 2 * step.square().sum(-1)
        assert (network.local_energies(there)[:, i] <= bound + 1e-12).all()
        least = (g.norm(dim=-1) + network.gamma) / 2 * (updated - x)[:, i].square().sum(-1)
        assert (before - after >= least - 1e-12).all() and (least > 1e-3).any()


KNOWN = 4


def with_known_components(rank):
    """A network whose last components are known, the same one without that, and a state."""
    knowing, plain = (
        AttractorNetwork(N, D, HEADS, rank, 1.7, 0.3, n_known=n, space=Flat()) for n in (KNOWN, 0)
    )
    knowing, plain = randomised(knowing), randomised(plain)
    plain.couplings.load_state_dict(knowing.couplings.state_dict())
    plain.bias[:, : D - KNOWN] = knowing.bias
    return knowing, plain, 1.3 * random_states(BATCH, N, D)


@pytest.mark.parametrize("kernel", [(), ("batched",), ("cpu",)])
@pytest.mark.parametrize("rank", [None, RANK])
def test_what_is_known_asks_and_is_heard_but_does_not_move(rank, kernel, monkeypatch):
    monkeypatch.setattr(kernels.cpu, "FEWEST", 1)
    knowing, plain, x = with_known_components(rank)
    with kernels.only(*kernel):
        field, update = knowing.field(x), knowing.update(x)
    torch.testing.assert_close(field, plain.field(x)[..., :-KNOWN], atol=1e-12, rtol=0)
    assert torch.equal(update[..., -KNOWN:], x[..., -KNOWN:])
    torch.testing.assert_close(
        update[..., :-KNOWN], field + 0.3 * x[..., :-KNOWN], atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("rank", [None, RANK])
def test_the_energy_of_a_spin_that_knows_has_the_field_as_its_derivative(rank):
    knowing, _, x = with_known_components(rank)
    for i in range(N):
        spin = x[:, i, :-KNOWN].clone().requires_grad_()
        tokens = x.clone()
        tokens[:, i, :-KNOWN] = spin
        (g,) = torch.autograd.grad(knowing.local_energies(tokens)[:, i].sum(), spin)
        field = knowing.field(x)[:, i] + 0.3 * x[:, i, :-KNOWN]
        torch.testing.assert_close(-g, field, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", [(), ("batched",), ("cpu",)])
@pytest.mark.parametrize("rank", [None, RANK])
def test_pooled_keys_are_what_a_head_gathers(rank, kernel, monkeypatch):
    monkeypatch.setattr(kernels.cpu, "FEWEST", 1)
    network, x = random_network(rank), random_states(BATCH, N, D)
    a, k = network.attention(x), network.couplings.keys(x).expand(-1, -1, N, -1, -1)
    expected = torch.zeros(BATCH, N, HEADS, k.shape[-1], dtype=torch.float64)
    for i in range(N):
        for j in range(N):
            expected[:, i] += a[:, :, i, j, None] * k[:, :, i, j]
    with kernels.only(*kernel):
        o = network.pooled(x)
    torch.testing.assert_close(o, expected, atol=1e-12, rtol=0)
    h = network.couplings.read_out(o.transpose(1, 2)) + network.bias
    torch.testing.assert_close(h, network.field(x), atol=1e-12, rtol=0)


def test_what_is_known_may_have_any_norm_but_must_be_finite():
    network = AttractorNetwork(N, D, n_known=KNOWN).double()
    x = 1.3 * random_states(BATCH, N, D)
    with pytest.raises(ValueError, match="norm 1"):
        network.field(x)
    x[..., :-KNOWN] /= x[..., :-KNOWN].norm(dim=-1, keepdim=True)
    assert network.field(x).shape == (BATCH, N, D - KNOWN)
    x[0, 0, -1] = math.nan
    with pytest.raises(ValueError, match="finite"):
        network.field(x)
    for n_known in (-1, D, 1.0):
        with pytest.raises(ValueError, match="n_known must be a whole number from 0 to"):
            AttractorNetwork(N, D, n_known=n_known)
