"""The same results on CUDA as on the CPU; skipped where there is none."""

import copy

import pytest
import torch
from conftest import BATCH, RANK, D, N, random_network, random_states

from attractor_lib import kernels
from attractor_lib.analysis import distinct_states, nearest_overlap, restoration_error
from attractor_lib.corruption import HideTokens, mean_token
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


@pytest.mark.parametrize(
    "batch, N, d, heads", [(1, 2, 3, 1), (500, 16, 50, 1), (257, 49, 17, 2), (64, 4, 64, 1)]
)
def test_the_kernel_equals_the_equations(batch, N, d, heads):
    pytest.importorskip("triton")
    network = AttractorNetwork(N, d, heads, beta=3.0).cuda()
    for p in network.parameters():
        p += 0.3 * torch.randn_like(p)
    state, target = (
        torch.nn.functional.normalize(torch.randn(batch, N, d, device="cuda"), dim=-1)
        for _ in range(2)
    )
    assert kernels.serving(network, state) is kernels.cuda
    with kernels.only():
        (_, expected), field = prediction_rule(network, state, target), network.field(state)
    torch.testing.assert_close(network.field(state), field, atol=1e-5, rtol=1e-4)
    for name, gradient in prediction_rule(network, state, target)[1].items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)


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
