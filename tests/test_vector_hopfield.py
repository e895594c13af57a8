"""The vector Hopfield network without couplings, against the one that builds them."""

import pytest
import torch
from conftest import random_states
from torch.nn import functional as F

from attractor_lib.couplings import Full
from attractor_lib.hopfield import hebbian_couplings
from attractor_lib.model import AttractorNetwork, Mean
from attractor_lib.vector_hopfield import VectorHopfield

P, N, D, BATCH = 13, 7, 3, 5


def with_couplings(patterns, **given):
    return AttractorNetwork(N, D, couplings=Full(hebbian_couplings(patterns)), **given).double()


@pytest.fixture
def patterns():
    return random_states(P, N, D)


@pytest.fixture
def x():
    return random_states(BATCH, N, D, seed=1)


def test_uniform_attention_is_the_mean_of_all_messages(patterns, x):
    network = with_couplings(patterns, potential=Mean(), gamma=0.4)
    mine = VectorHopfield(patterns, gamma=0.4 * (N - 1) / N)
    torch.testing.assert_close(mine.field(x), network.field(x) * (N - 1) / N)
    torch.testing.assert_close(mine.update(x), network.update(x))
    uniform = (1 - torch.eye(N, dtype=x.dtype)) / (N - 1)
    torch.testing.assert_close(mine.attention(x), uniform.expand(BATCH, N, N))


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_softmax_attention_is_that_of_the_attractor_network(patterns, x, beta):
    network = with_couplings(patterns, beta=beta, gamma=0.4)
    mine = VectorHopfield(patterns, beta, 0.4)
    assert mine.attention(x[:0]).shape == (0, N, N) and mine.field(x[:0]).shape == (0, N, D)
    torch.testing.assert_close(mine.attention(x), network.attention(x)[:, 0])
    torch.testing.assert_close(mine.field(x), network.field(x))
    torch.testing.assert_close(mine.update(x), network.update(x))


def test_the_first_order_in_beta_is_the_covariance_of_the_messages(patterns, x):
    messages = torch.einsum("ijab,mjb->mija", hebbian_couplings(patterns)[0], x)
    expected, difference = [], 1e-5
    for i in range(N):
        v = messages[:, i, [j for j in range(N) if j != i]]
        v = v - v.mean(1, keepdim=True)
        expected.append(torch.einsum("mja,mjb,mb->ma", v, v, x[:, i]) / (N - 1))
    low = VectorHopfield(patterns).field(x) * N / (N - 1)
    slope = (VectorHopfield(patterns, difference).field(x) - low) / difference
    torch.testing.assert_close(slope, torch.stack(expected, 1), atol=1e-3, rtol=0)


def test_a_site_without_a_field_stays():
    patterns = F.normalize(torch.ones(1, 2, 3, dtype=torch.float64), dim=-1)
    across = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / 2**0.5
    x = across.expand(1, 2, 3).contiguous()
    assert torch.equal(VectorHopfield(patterns).update(x), x)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda p: VectorHopfield(p[0]), "patterns must be a floating tensor of shape"),
        (lambda p: VectorHopfield(p[:, :1]), "patterns must be a floating tensor of shape"),
        (
            lambda p: VectorHopfield([[1.0]]),
            "patterns must be a floating tensor of shape .*, got list",
        ),
        (lambda p: VectorHopfield(2 * p), "patterns must have tokens of norm 1"),
        (lambda p: VectorHopfield(p, 0.0), "beta must be a finite number > 0, got 0.0"),
        (lambda p: VectorHopfield(p, 1.0, -1.0), "gamma must be a finite number >= 0, got -1.0"),
        (lambda p: VectorHopfield(p).field(p[:, 1:]), r"x must be torch.float64 of shape"),
        (lambda p: VectorHopfield(p).update(p.float()), "got torch.float32"),
        (lambda p: VectorHopfield(p).update(2 * p), "x must have tokens of norm 1"),
    ],
)
def test_refuses_what_it_cannot_use(patterns, call, words):
    with pytest.raises(ValueError, match=words):
        call(patterns)
