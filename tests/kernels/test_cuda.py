"""The same results on CUDA as on the CPU; skipped where there is none."""

import copy

import pytest
import torch
from conftest import BATCH, HEARS, RANK, D, N, random_network, random_states

from attractor_lib import kernels
from attractor_lib.analysis import distinct_states, nearest_overlap, restoration_error
from attractor_lib.corruption import HideTokens, mean_token
from attractor_lib.couplings import Full, LowRank, SharedFactors
from attractor_lib.dynamics import run
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=[None, RANK], ids=["full", "low-rank"])
def pair(request):
    network = random_network(request.param)
    return network, copy.deepcopy(network).cuda()


def test_model_rules_and_dynamics(pair):
    here, there = pair
    x, target = random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5)
    for name in ("local_energies", "attention", "field", "update"):
        torch.testing.assert_close(
            getattr(there, name)(x.cuda()).cpu(), getattr(here, name)(x), atol=1e-10, rtol=0
        )
    for rule, arguments in ((energy_rule, (x,)), (prediction_rule, (x, target))):
        _, expected = rule(here, *arguments)
        _, got = rule(there, *(a.cuda() for a in arguments))
        for name in expected:
            torch.testing.assert_close(got[name].cpu(), expected[name], atol=1e-10, rtol=0)
    torch.testing.assert_close(
        run(there.update, x.cuda(), 5).final.cpu(), run(here.update, x, 5).final, atol=1e-8, rtol=0
    )


def problem(couplings, batch, hears="all others"):
    pytest.importorskip("triton")
    N, d = couplings.n_sites, couplings.dim
    network = AttractorNetwork(N, d, couplings=couplings, beta=3.0, hears=HEARS[hears](N)).cuda()
    g = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(0)}
    for p in network.parameters():
        p += 0.3 * torch.randn(p.shape, **g) / p.shape[-2] ** 0.5
    state = torch.nn.functional.normalize(torch.randn(batch, N, d, **g), dim=-1)
    assert all(kernels.serving(network, state, e) is kernels.cuda for e in kernels.cuda.COMPUTES)
    return network, state, torch.randn(batch, N, d, **g), torch.rand(batch, N, **g) < 0.6


def results(network, *example):
    loss, gradients = prediction_rule(network, *example)
    return {"field": network.field(example[0]), "loss": loss, **gradients}


def check_equal(got, expected, tolerance):
    for name, value in expected.items():
        error = (got[name] - value).abs().max() / value.abs().max().clamp(min=1e-2)
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("hears", HEARS)
@pytest.mark.parametrize(
    "couplings, batch",
    [
        (Full.random(1, 2, 3), 1),
        (Full.random(1, 16, 50), 500),
        (Full.random(2, 49, 17), 257),
        (Full.random(1, 4, 64), 64),
        (LowRank.random(1, 2, 3, 1), 1),
        (LowRank.random(16, 16, 50, 16), 2048),
        (LowRank.random(3, 5, 50, 8), 77),
        (LowRank.random(2, 49, 13, 33), 65),
        (LowRank.random(2, 256, 200, 16), 3),
        (LowRank.random(1, 65, 7, 128), 5),
        (SharedFactors.random(4, 16, 50, 16, 4), 300),
    ],
    ids=repr,
)
def test_the_kernels_equal_the_equations(couplings, batch, hears):
    example = problem(copy.deepcopy(couplings), batch, hears)
    with kernels.only():
        expected = results(*example)
    got = results(*example)
    check_equal(got, expected, 1e-5)
    assert all(torch.equal(value, got[name]) for name, value in results(*example).items())


@pytest.mark.parametrize("couplings", [Full.random(2, 16, 50), LowRank.random(16, 16, 50, 16)])
def test_tf32_where_it_is_allowed(couplings):
    example = problem(copy.deepcopy(couplings), 500)
    expected = results(*example)
    torch.set_float32_matmul_precision("high")
    try:
        check_equal(results(*example), expected, 2e-2)
    finally:
        torch.set_float32_matmul_precision("highest")


def peak(network, *example):
    """Bytes that the rule has at once besides what it is given."""
    kernels.cuda.prediction_rule(network, *example)  # the first call compiles, and cuBLAS allocates
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kernels.cuda.prediction_rule(network, *example)
    return torch.cuda.max_memory_allocated() - before


def test_memory_is_linear_in_sites():
    few, many = (peak(*problem(LowRank.random(8, N, 16, 16), 64)) for N in (64, 256))
    assert many < 4.5 * few
    of_queries = 4 * 64 * 8 * 256 * 16  # and there are k, o, g, dq, dk; attention has 16 times that
    assert many < 10 * of_queries


def test_memory_does_not_grow_with_the_batch_beyond_a_block(monkeypatch):
    couplings = LowRank.random(8, 16, 50, 16)
    monkeypatch.setattr(kernels.cuda, "NUMBERS", 512 * 8 * 16 * 16)
    few, many = (peak(*problem(copy.deepcopy(couplings), batch)) for batch in (512, 8192))
    assert many < 1.1 * few + 2**20


def test_training_resumes_and_analysis_runs(pair, tmp_path):
    _, network = pair
    tokens = random_states(64, N, D).cuda()
    hide = HideTokens(2, mean_token(tokens))
    for _ in range(2):  # the second call resumes a finished run
        history = train(
            network,
            prediction_rule,
            tokens,
            hide,
            TrainingConfig(epochs=2, batch_size=16),
            tmp_path / "c.pt",
            report=None,
        )
    assert len(history) == 2 and network.bias.is_cuda
    assert nearest_overlap(tokens, tokens)[1].cpu().tolist() == list(range(64))
    assert distinct_states(tokens[:0])[0].is_cuda
    embedding = PatchEmbedding(6, 2)
    images = embedding.encode(torch.rand(7, 6, 6, device="cuda"))
    assert (
        restoration_error(lambda x: images, images, HideTokens(4, mean_token(images)), embedding)[
            1
        ].max()
        < 1e-10
    )
