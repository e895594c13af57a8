"""Couplings by hand: low rank and shared factors against their product; ties are orthogonal
projections that training respects.
"""

import math

import pytest
import torch
from conftest import BATCH, COUPLINGS, HEADS, RANK, D, N, random_network, random_states, randomised

from attractor_lib.corruption import no_corruption
from attractor_lib.couplings import Full, LowRank, SharedFactors, Tied, by_offset, shared, symmetric
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train


@pytest.mark.parametrize("kind", COUPLINGS)
def test_queries_keys_and_read_out_are_those_of_J(kind):
    """x_i . J_ij x_j = q_i . k_ij, and the read-out of the keys pooled is the message J_ij x_j."""
    c = randomised(AttractorNetwork(N, D, couplings=COUPLINGS[kind](HEADS, N, D))).couplings
    x, a = random_states(BATCH, N, D), torch.rand(BATCH, HEADS, N, N, dtype=torch.float64)
    J, q, k = c.dense(), c.queries(x), c.keys(x)
    torch.testing.assert_close(
        (q[:, :, :, None] * k).sum(-1),
        torch.einsum("mia,hijab,mjb->mhij", x, J, x),
        atol=1e-12,
        rtol=0,
    )
    messages = torch.einsum("mhij,hijab,mjb->mia", a, J, x)
    torch.testing.assert_close(c.read_out((a[..., None] * k).sum(3)), messages, atol=1e-12, rtol=0)


def test_shared_factors_by_hand():
    c = randomised(
        AttractorNetwork(N, D, couplings=SharedFactors.random(HEADS, N, D, RANK, 4))
    ).couplings
    for h in range(HEADS):
        for i in range(N):
            for j in range(N):
                U = sum(torch.diag(c.u[h, i, m]) @ c.F[h, m] for m in range(4))
                V = sum(torch.diag(c.v[h, j, m]) @ c.G[h, m] for m in range(4))
                torch.testing.assert_close(c.dense()[h, i, j], U.T @ V)


def test_a_matrix_for_each_site_is_the_network_that_shares_nothing():
    one, x = random_network(RANK), random_states(BATCH, N, D)
    own = torch.eye(N)[:, :, None].expand(HEADS, N, N, RANK).double()
    factors = SharedFactors(one.couplings.U, one.couplings.V, own, own)
    same = AttractorNetwork(N, D, beta=one.beta, gamma=one.gamma, couplings=factors).double()
    same.bias.copy_(one.bias)
    torch.testing.assert_close(same.update(x), one.update(x))
    torch.testing.assert_close(same.local_energies(x), one.local_energies(x))


@pytest.mark.parametrize("wrong", [{"n_shared": 0}, {"rank": None}, {"rank": 0}])
def test_refuses_what_is_not_a_size(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
        SharedFactors.random(**{"n_heads": 1, "n_sites": N, "dim": D, "rank": 2, **wrong})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda w: Full(w), r"J must have shape \(heads, N, N, d, d\), got \(3, 5, 2, 11\)"),
        (lambda w: Tied(w, symmetric), "J must have shape|permute"),
        (lambda w: LowRank(w, w[:1]), "U and V must have one shape"),
        (lambda w: SharedFactors(w, w, w, w), "F and G must have one shape"),
    ],
)
def test_refuses_other_shapes(make, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        make(torch.zeros(HEADS, N, RANK, D))


# ---- ties: 2 heads on a grid of 3 x 3 sites, tokens of 4 components
def couplings(seed):
    return torch.randn(
        2, 9, 9, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


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
    for tie, n_free in (
        (lambda J: J, 9 * 8 * 16),
        (symmetric, 9 * 8 // 2 * 16),
        (by_offset, (5 * 5 - 1) * 16),
        (shared, 16),
    ):
        network = AttractorNetwork(9, 4, couplings=Tied(couplings(0), tie)).double()
        assert network.n_acting == 2 * n_free


@pytest.mark.parametrize("tie", [symmetric, by_offset, shared])
def test_tied_couplings_stay_tied_under_adam_and_learn(tie):
    tokens = random_states(40, 9, 4)
    network = AttractorNetwork(9, 4, couplings=Tied.random(1, 9, 4, tie)).double()
    config = TrainingConfig(epochs=5, batch_size=10, learning_rate=0.1)
    history = train(network, prediction_rule, tokens, no_corruption, config, report=None)
    torch.testing.assert_close(network.couplings.J, tie(network.couplings.J), atol=1e-12, rtol=0)
    assert history[-1]["loss"] < 0.98 * history[0]["loss"]
    free = AttractorNetwork(9, 4, couplings=Full(network.couplings.J.clone())).double()
    train(
        free,
        prediction_rule,
        tokens,
        no_corruption,
        TrainingConfig(epochs=1, batch_size=10),
        report=None,
    )
    assert (free.couplings.J - tie(free.couplings.J)).abs().max() > 1e-3


@pytest.mark.parametrize("tie", [symmetric, by_offset, shared])
def test_the_tied_gradient_is_the_gradient_of_the_tied_loss(tie):
    """d/dJ of L(tie(J)) at a tied J is tie(dL/dJ), the projection being self-adjoint."""
    network, s, x = (
        AttractorNetwork(9, 4, couplings=Tied(couplings(3)[:1], tie)).double(),
        random_states(6, 9, 4),
        random_states(6, 9, 4, seed=5),
    )
    J = network.couplings.J.clone().requires_grad_()

    def loss():
        k = torch.einsum("ijab,mjb->mija", tie(J)[0], s)
        scores = torch.einsum("mia,mija->mij", s, k).masked_fill(
            torch.eye(9, dtype=torch.bool), -math.inf
        )
        return (torch.einsum("mij,mija->mia", scores.softmax(-1), k) - x).square().sum() / 12

    (expected,) = torch.autograd.grad(loss(), J)
    torch.testing.assert_close(
        prediction_rule(network, s, x)[1]["couplings.J"], expected, atol=1e-12, rtol=0
    )


def test_by_offset_needs_a_square():
    with pytest.raises(ValueError, match="by_offset needs sites that form a square, got 5 sites"):
        by_offset(random_network(None).couplings.J)
