"""Couplings written down from patterns, against loops and least squares; the modern network's
energy and update.
"""

import math

import pytest
import torch
from conftest import random_states
from torch.nn import functional as F

from attractor_lib import patterns as memory
from attractor_lib.dynamics import run
from attractor_lib.hopfield import ModernHopfield, hebbian_couplings, pseudo_inverse_couplings
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork

N, D, n = 5, 7, 13


def linear(J):
    """The mean of all messages: the field of the attention network as beta -> 0."""
    return lambda x: torch.einsum("ijab,mjb->mia", J[0], x) / (J.shape[1] - 1)


def test_hebbian_couplings_by_loops():
    xi = random_states(n, N, D)
    J = hebbian_couplings(xi)
    assert J.shape == (1, N, N, D, D)
    for i in range(N):
        for j in range(N):
            expected = (
                sum(torch.outer(xi[m, i], xi[m, j]) for m in range(n))
                if i != j
                else torch.zeros(D, D)
            )
            torch.testing.assert_close(J[0, i, j], expected.to(xi))
    torch.testing.assert_close(J, J.transpose(1, 2).mT)
    torch.testing.assert_close(
        linear(hebbian_couplings(xi[:1]))(xi[:1]), xi[:1]
    )  # one pattern: messages of norm 1


@pytest.mark.parametrize("n", [1, 3, 13, 27])
def test_pseudo_inverse_couplings_are_the_projector_formula_up_to_the_linear_limit(n):
    xi = random_states(n, N, D)
    J = pseudo_inverse_couplings(xi)
    torch.testing.assert_close(linear(J)(xi), xi, atol=1e-9, rtol=0)
    flat = xi.flatten(1)
    rest = torch.eye(N * D, dtype=xi.dtype) - torch.linalg.pinv(flat) @ flat
    for i in range(N):
        rows = slice(i * D, i * D + D)
        row = torch.linalg.solve(rest[rows, rows], rest[rows])
        for j in range(N):
            expected = (i == j) * torch.eye(D) - row[:, j * D : j * D + D]
            torch.testing.assert_close(J[0, i, j], (N - 1) * expected, atol=1e-8, rtol=0)


def test_pseudo_inverse_couplings_store_exactly_up_to_n_minus_1_times_d_patterns_and_no_more():
    for n, exact in ((28, True), (29, False), (60, False)):
        xi = random_states(n, N, D)
        assert ((linear(pseudo_inverse_couplings(xi))(xi) - xi).abs().max() < 1e-6) == exact


def test_pseudo_inverse_couplings_are_least_squares_beyond_it():
    xi = random_states(60, N, D)
    J = pseudo_inverse_couplings(xi)
    others = [0, 1, 3, 4]
    expected = torch.linalg.lstsq(xi[:, others].flatten(1), xi[:, 2]).solution * (N - 1)
    torch.testing.assert_close(J[0, 2, others].mT.flatten(0, 1), expected, atol=1e-9, rtol=0)


def test_pseudo_inverse_couplings_have_no_gradient_under_the_prediction_rule_as_beta_vanishes():
    xi = random_states(n, N, D)
    network = AttractorNetwork(N, D, beta=1e-9).double()
    network.couplings.J.copy_(pseudo_inverse_couplings(xi))
    loss, gradients = prediction_rule(network, xi, xi)
    assert loss < 1e-14 and gradients["couplings.J"].abs().max() < 1e-7
    network.couplings.J.mul_(1.1)
    assert prediction_rule(network, xi, xi)[0] > 1e-3


@pytest.mark.parametrize("beta", [0.2, 1.0, 9.0])
def test_modern_update_is_minus_the_gradient_of_the_energy_projected(beta):
    xi, x = random_states(n, N, D), random_states(11, N, D, seed=3).requires_grad_()
    network = ModernHopfield(xi, beta)
    (gradient,) = torch.autograd.grad(network.energy(x).sum(), x)
    torch.testing.assert_close(
        network.update(x), F.normalize(-gradient, dim=-1), atol=1e-10, rtol=0
    )
    weights = [
        math.exp(beta * sum(float(xi[m, i] @ x[4, i].detach()) for i in range(N))) for m in range(n)
    ]
    assert network.energy(x)[4].item() == pytest.approx(-math.log(sum(weights)) / beta)
    torch.testing.assert_close(
        network.attention(x)[4], torch.tensor(weights, dtype=x.dtype) / sum(weights)
    )


@pytest.mark.parametrize("beta", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("together", [1, 2, N])
def test_modern_energy_never_rises_whichever_sites_are_updated_together(beta, together):
    network, x = ModernHopfield(random_states(n, N, D), beta), random_states(11, N, D, seed=3)
    generator, before = torch.Generator().manual_seed(0), network.energy(x)
    first = before
    for _ in range(30):
        chosen = torch.randperm(N, generator=generator)[:together]
        x[:, chosen] = network.update(x)[:, chosen]
        now = network.energy(x)
        assert (now <= before + 1e-12).all()
        before = now
    assert (before < first - 1e-3).all()


def test_modern_network_keeps_its_patterns_at_large_beta_and_forgets_them_at_small():
    xi = random_states(200, N, D)  # far more than (N - 1) d = 28
    torch.testing.assert_close(
        run(ModernHopfield(xi, 50.0).update, xi, 20).final, xi, atol=1e-6, rtol=0
    )
    turned = F.normalize(xi + 0.3 * random_states(200, N, D, seed=8), dim=-1)
    assert (run(ModernHopfield(xi, 50.0).update, turned, 20).final * xi).sum(-1).min() > 0.999
    assert (run(ModernHopfield(xi, 0.3).update, xi, 20).final * xi).sum(-1).mean() < 0.9


def test_blocks_of_states_change_nothing():
    xi, x = random_states(2**15, 2, 3), random_states(1100, 2, 3, seed=1)
    network = ModernHopfield(xi, 2.0)
    assert len(list(network._blocks(x))) > 1
    torch.testing.assert_close(network.update(x)[1090:], network.update(x[1090:]))


def test_refuses_couplings_that_memory_cannot_hold(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match="couplings of 5 sites and 7 components"):
        hebbian_couplings(random_states(n, N, D))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: hebbian_couplings(x[:0]),
            r"patterns must be a floating tensor of shape \(n >= 1, N >= 1, d\), got torch.float64 "
            r"\(0, 5, 7\)",
        ),
        (lambda x: hebbian_couplings(x[0]), r"got torch.float64 \(5, 7\)"),
        (lambda x: hebbian_couplings([1]), "got list"),
        (
            lambda x: pseudo_inverse_couplings(2 * x),
            "patterns must have tokens of norm 1, got norms that differ from 1 by up to 1",
        ),
        (
            lambda x: pseudo_inverse_couplings(x[:, :1]),
            r"of shape \(n >= 1, N >= 2, d\), got torch.float64 \(13, 1, 7\)",
        ),
        (lambda x: ModernHopfield(x, "1"), "beta must be a finite number > 0, got '1'"),
        (
            lambda x: ModernHopfield(x, 1.0).update(3 * x),
            "x must have tokens of norm 1, got norms that differ from 1 by up to 2",
        ),
        (lambda x: ModernHopfield(x, 1.0).update(x * math.nan), "x must have tokens of norm 1"),
        (lambda x: ModernHopfield(x * math.nan, 1.0), "patterns must have tokens of norm 1"),
        (lambda x: ModernHopfield(x, 0.0), "beta must be a finite number > 0, got 0.0"),
        (
            lambda x: ModernHopfield(x, 1.0).update(x[:, :3]),
            r"x must be torch.float64 of shape \(batch, 5, 7\), got torch.float64 \(13, 3, 7\)",
        ),
        (lambda x: ModernHopfield(x, 1.0).energy(x.float()), "got torch.float32"),
    ],
)
def test_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_states(n, N, D))


def test_unit_tokens_in_the_span_are_fixed_points_and_the_linear_matrix_has_trace_zero():
    xi = random_states(n, N, D)
    J, c = pseudo_inverse_couplings(xi), random_states(4, n, seed=2)
    for _ in range(40):  # Newton's method for |x_i| = 1
        x = torch.einsum("km,mia->kia", c, xi)
        gradients = 2 * torch.einsum("kia,mia->kim", x, xi)
        off = x.square().sum(-1, keepdim=True) - 1
        c = c - (torch.linalg.pinv(gradients) @ off)[..., 0]
    assert off.abs().max() < 1e-12 and (x[:, None] * xi).sum(-1).mean(-1).max() < 0.95
    torch.testing.assert_close(linear(J)(x), x, atol=1e-9, rtol=0)
    K = J[0].transpose(1, 2).reshape(N * D, N * D) / (N - 1)
    values = torch.linalg.eigvals(K).real.sort().values
    torch.testing.assert_close(values[-n:], torch.ones(n).to(x), atol=1e-6, rtol=0)
    assert values[:-n].mean().item() == pytest.approx(-n / (N * D - n), abs=1e-6)
