"""Each variant against naive loops and autograd in float64; ties are orthogonal projections that training respects."""

import math

import pytest
import torch
from conftest import BATCH, D, N, RANK, random_network, random_states
from test_learning import assert_same, autograd

from attractor_lib.ablations import (LinearAttention, SelfAttending, UniformAttention, Unprojected, by_offset, n_free,
                                     positioned, shared, symmetric, tied, with_positions, without_positions)
from attractor_lib.corruption import no_corruption
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train

KINDS = [SelfAttending, LinearAttention, UniformAttention, Unprojected]
PHI = {  # phi of a list of scores, and its derivative, written down once more
    SelfAttending: (lambda s: math.log(sum(map(math.exp, s))), lambda s: [math.exp(v) / sum(map(math.exp, s)) for v in s]),
    LinearAttention: (lambda s: sum(v * v for v in s) / 2, lambda s: s),
    UniformAttention: (lambda s: sum(s) / len(s), lambda s: [1 / len(s)] * len(s)),
}
PHI[Unprojected] = PHI[SelfAttending]


def variant(kind, rank=None, **form):
    """A variant with the random parameters of `random_network`."""
    network = random_network(rank, **form)
    other = kind(network.n_sites, network.dim, network.n_heads, rank, network.beta, network.gamma).double()
    other.load_state_dict(network.state_dict())
    return other


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_naive_loops(kind, rank, beta):
    network, x = variant(kind, rank, beta=beta, heads=2, n=3, d=4), random_states(2, 3, 4)
    J, (phi, derivative) = network.couplings, PHI[kind]
    energies, field = network.local_energies(x), network.field(x)
    for m in range(2):
        for i in range(3):
            senders = [j for j in range(3) if j != i or kind is SelfAttending]
            e = -float(network.bias[i] @ x[m, i]) - network.gamma / 2
            h = network.bias[i].clone()
            for head in range(2):
                messages = [J[head, i, j] @ x[m, j] for j in senders]
                s = [beta * float(x[m, i] @ message) for message in messages]
                e -= phi(s) / beta
                h += sum(a * message for a, message in zip(derivative(s), messages))
                given = [float(network.attention(x)[m, head, i, j]) for j in senders]
                assert given == pytest.approx(derivative(s), abs=1e-12)
            assert float(energies[m, i]) == pytest.approx(e, abs=1e-12)
            torch.testing.assert_close(field[m, i], h, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("kind", KINDS)
def test_field_is_minus_the_derivative_of_the_own_energy_but_for_the_self_message(kind, rank):
    network = variant(kind, rank)
    x = random_states(BATCH, N, D).requires_grad_()
    energies = network.local_energies(x)
    expected = network.field(x) + network.gamma * x
    if kind is SelfAttending:  # x_i is in its own score twice: a_ii (J_ii + J_ii^T) x_i
        own = torch.einsum("mhii,hiiab,mia->mib", network.attention(x), network.couplings, x)
        assert own.abs().max() > 0.1
        expected = expected + own
    for i in range(N):
        derivative, = torch.autograd.grad(energies[:, i].sum(), x, retain_graph=True)
        torch.testing.assert_close(-derivative[:, i], expected[:, i], atol=1e-10, rtol=0)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("kind", KINDS)
def test_rules_are_the_gradients_of_their_losses(kind, rank, beta):
    network, state, target = variant(kind, rank, beta=beta), random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    sites = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(2)) < 0.5
    assert_same(prediction_rule(network, state, target, sites), autograd(
        network, lambda: ((network.field(state) - target) * sites[..., None]).square().sum() / (2 * BATCH)))
    assert_same(energy_rule(network, state), autograd(network, lambda: network.local_energies(state).sum() / BATCH))


def test_uniform_attention_is_the_limit_of_small_beta_in_float32_too():
    uniform, state, target = variant(UniformAttention), random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    small = random_network(None, 1e-6)
    torch.testing.assert_close(small.field(state), uniform.field(state), atol=1e-5, rtol=0)
    got = prediction_rule(small.float(), state.float(), target.float())[1]["couplings"]
    torch.testing.assert_close(got.double(), prediction_rule(uniform, state, target)[1]["couplings"], atol=1e-5, rtol=0)
    assert got.isfinite().all()
    hopfield = torch.einsum("hijab,mjb->mia", uniform.couplings * (1 - torch.eye(N))[:, :, None, None], state) / (N - 1)
    torch.testing.assert_close(uniform.field(state), hopfield + uniform.bias, atol=1e-12, rtol=0)


def test_only_the_self_attending_network_hears_itself():
    x = random_states(BATCH, N, D)
    for kind in KINDS:
        network = variant(kind)
        before = network.field(x)
        for i in range(N):
            network.couplings[:, i, i] += 1.0
        assert torch.equal(before, network.field(x)) == (kind is not SelfAttending)


def test_beta_and_the_scale_of_J_are_one_parameter_of_linear_attention():
    network, x = variant(LinearAttention, beta=4.0), random_states(BATCH, N, D)
    scaled = variant(LinearAttention, beta=1.0)
    scaled.couplings.mul_(2.0)
    torch.testing.assert_close(scaled.field(x), network.field(x), atol=1e-12, rtol=0)


def test_without_projection_the_update_has_the_norm_of_the_field():
    network, x = variant(Unprojected), random_states(BATCH, N, D)
    torch.testing.assert_close(network.update(x), network.field(x) + network.gamma * x, atol=0, rtol=0)
    projected = random_network(None).update(x)
    torch.testing.assert_close(network.update(x) / network.update(x).norm(dim=-1, keepdim=True), projected)
    network.update(3 * x)  # accepted
    with pytest.raises(ValueError, match="x must be finite, got NaN or infinity"):
        network.update(x / 0)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 5, 11\)"):
        network.update(x[0])


# ---- ties: 2 heads on a grid of 3 x 3 sites, tokens of 4 components
def couplings(seed):
    return torch.randn(2, 9, 9, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tie", [symmetric, by_offset, shared])
def test_ties_are_orthogonal_projections(tie):
    A, B = couplings(0), couplings(1)
    torch.testing.assert_close(tie(tie(A)), tie(A), atol=1e-14, rtol=0)
    torch.testing.assert_close((tie(A) * B).sum(), (A * tie(B)).sum(), atol=1e-10, rtol=0)
    torch.testing.assert_close(tie(2 * A - B), 2 * tie(A) - tie(B), atol=1e-13, rtol=0)
    assert (tie(A) - A).abs().max() > 0.1


def test_ties_by_loops():
    A = couplings(0)
    offset = {(i, j): (i // 3 - j // 3, i % 3 - j % 3) for i in range(9) for j in range(9)}
    for i in range(9):
        for j in range(9):
            torch.testing.assert_close(symmetric(A)[:, i, j], (A[:, i, j] + A[:, j, i].mT) / 2)
            same = [A[:, k, l] for k in range(9) for l in range(9) if offset[k, l] == offset[i, j]]
            torch.testing.assert_close(by_offset(A)[:, i, j], sum(same) / len(same))
            same = [A[:, k, l] for k in range(9) for l in range(9) if (k == l) == (i == j)]
            torch.testing.assert_close(shared(A)[:, i, j], sum(same) / len(same))


def test_free_parameters_of_the_ties():
    assert n_free(lambda J: J, 9, 4) == 9 * 8 * 16
    assert n_free(symmetric, 9, 4) == 9 * 8 // 2 * 16
    assert n_free(by_offset, 9, 4) == (5 * 5 - 1) * 16
    assert n_free(shared, 9, 4) == 16


@pytest.mark.parametrize("tie", [symmetric, by_offset, shared])
def test_tied_couplings_stay_tied_under_adam_and_learn(tie):
    tokens = random_states(40, 9, 4)
    network = AttractorNetwork(9, 4).double()
    network.couplings.copy_(tie(network.couplings))
    history = train(network, tied(prediction_rule, tie), tokens, no_corruption,
                    TrainingConfig(epochs=5, batch_size=10, learning_rate=0.1), report=None)
    torch.testing.assert_close(network.couplings, tie(network.couplings), atol=1e-12, rtol=0)
    assert history[-1]["loss"] < 0.98 * history[0]["loss"]
    train(network, prediction_rule, tokens, no_corruption, TrainingConfig(epochs=1, batch_size=10), report=None)
    assert (network.couplings - tie(network.couplings)).abs().max() > 1e-3


@pytest.mark.parametrize("tie", [symmetric, by_offset, shared])
def test_the_tied_gradient_is_the_gradient_of_the_tied_loss(tie):
    """d/dJ of L(tie(J)) at a tied J is tie(dL/dJ), the projection being self-adjoint."""
    network, s, x = AttractorNetwork(9, 4).double(), random_states(6, 9, 4), random_states(6, 9, 4, seed=5)
    network.couplings.copy_(tie(couplings(3)[:1]))
    J = network.couplings.clone().requires_grad_()

    def loss():
        k = torch.einsum("ijab,mjb->mija", tie(J)[0], s)
        scores = torch.einsum("mia,mija->mij", s, k).masked_fill(torch.eye(9, dtype=torch.bool), -math.inf)
        return (torch.einsum("mij,mija->mia", scores.softmax(-1), k) - x).square().sum() / 12

    expected, = torch.autograd.grad(loss(), J)
    torch.testing.assert_close(tied(prediction_rule, tie)(network, s, x)[1]["couplings"], expected, atol=1e-12, rtol=0)


def test_positions_and_back():
    x = random_states(BATCH, N, D)
    y = with_positions(x, 0.7)
    assert y.shape == (BATCH, N, D + N)
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(BATCH, N, dtype=x.dtype))
    torch.testing.assert_close(without_positions(y), x, atol=1e-14, rtol=0)
    overlaps = torch.einsum("mia,nja->mnij", y, y) * (1 + 0.7**2) - torch.einsum("mia,nja->mnij", x, x)
    expected = (0.7**2 * torch.eye(N, dtype=x.dtype)).expand(BATCH, BATCH, N, N)
    torch.testing.assert_close(overlaps, expected, atol=1e-12, rtol=0)


def test_positions_are_given_and_not_predicted():
    network, s, x = random_network(None, d=D + N), random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    c = 0.7

    def loss():
        residual = network.field(with_positions(s, c))[..., :D] - x / math.sqrt(1 + c**2)
        return residual.square().sum() / (2 * BATCH)

    assert_same(positioned(prediction_rule, c)(network, s, x), autograd(network, loss))


def test_shared_couplings_without_positions_treat_all_sites_alike():
    """Relabelling the sites commutes with a shared network; positions break that."""
    plain, lifted = (AttractorNetwork(9, d).double() for d in (4, 13))
    generator, x = torch.Generator().manual_seed(1), random_states(6, 9, 4)
    for network in (plain, lifted):
        J = torch.randn(network.couplings.shape, generator=generator, dtype=torch.float64)
        network.couplings.copy_(shared(J * 9))
    order = torch.randperm(9, generator=generator)
    torch.testing.assert_close(plain.update(x[:, order]), plain.update(x)[:, order], atol=1e-12, rtol=0)
    moved = lifted.update(with_positions(x[:, order], 1.0)) - lifted.update(with_positions(x, 1.0))[:, order]
    assert moved.abs().max() > 1e-2


def test_refuses_bad_input(x):
    with pytest.raises(ValueError, match="ties are for full rank, got a network of rank 2"):
        tied(prediction_rule, symmetric)(random_network(RANK), x, x)
    with pytest.raises(ValueError, match="by_offset needs sites that form a square, got 5 sites"):
        by_offset(random_network(None).couplings)
