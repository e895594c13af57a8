"""The baselines against the same layers written out by hand from their parameters."""

import pytest
import torch
from conftest import random_states
from torch.nn import functional as F

from attractor_lib.baselines import (
    BareAttention,
    EnergyTransformer,
    HopfieldLayer,
    TransformerBlock,
)

WIDTH, HEADS = 12, 3


def attention_by_hand(layer, z):
    q, k, v = (
        (z @ layer.in_proj_weight.T + layer.in_proj_bias)
        .unflatten(-1, (3, HEADS, WIDTH // HEADS))
        .permute(2, 0, 3, 1, 4)
    )
    a = torch.softmax(q @ k.mT / (WIDTH // HEADS) ** 0.5, -1)
    return layer.out_proj((a @ v).transpose(1, 2).flatten(2))


def test_bare_attention_has_no_residual_and_no_mlp():
    model, x = BareAttention(5, 11, WIDTH, HEADS).double(), random_states(7, 5, 11)
    z = attention_by_hand(model.attention, model.embed(x) + model.positions)
    torch.testing.assert_close(model(x), model.read_out(z), atol=1e-12, rtol=0)


def test_transformer_block_has_both_residuals_norms_before_and_a_gelu_mlp():
    model, x = TransformerBlock(5, 11, WIDTH, HEADS).double(), random_states(7, 5, 11)
    block, z = model.block, model.embed(x) + model.positions
    z = z + attention_by_hand(block.self_attn, block.norm1(z))
    z = z + block.linear2(F.gelu(block.linear1(block.norm2(z))))
    assert block.linear1.out_features == 4 * WIDTH
    torch.testing.assert_close(model(x), model.read_out(z), atol=1e-12, rtol=0)


def test_the_energy_transformer_descends_its_energy():
    model, g = (
        EnergyTransformer(5, 11, WIDTH, HEADS).double(),
        torch.randn(7, 5, WIDTH, dtype=torch.float64, requires_grad=True),
    )
    beta, energy = (
        (WIDTH // HEADS) ** -0.5,
        -torch.relu(torch.einsum("nc,mic->min", model.memories, g)).square().sum() / 2,
    )
    for W_q, W_k in zip(model.query, model.key):
        for i in range(5):
            scores = torch.stack(
                [((g[:, j] @ W_k.T) * (g[:, i] @ W_q.T)).sum(-1) for j in range(5) if j != i]
            )
            energy -= (beta * scores).logsumexp(0).sum() / beta
    torch.testing.assert_close(
        model.descent(g), -torch.autograd.grad(energy, g)[0], atol=1e-12, rtol=0
    )
    x = random_states(7, 5, 11)
    z = model.embed(x) + model.positions
    for _ in range(model.n_steps):
        centred = z - z.mean(-1, keepdim=True)
        g = (
            model.gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            + model.shift
        )
        z = z + model.step * model.descent(g)
    torch.testing.assert_close(model(x), model.read_out(z), atol=1e-12, rtol=0)


def test_the_hopfield_layer_retrieves_the_pattern_that_it_is_shown():
    model, x = HopfieldLayer(5, 11, n_patterns=6).double(), random_states(6, 5, 11)
    with torch.no_grad():
        model.stored.copy_(100 * x.flatten(1))
        model.retrieved.copy_(x.flip(0).flatten(1))
        torch.testing.assert_close(model(x), x.flip(0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("model", [BareAttention, TransformerBlock, EnergyTransformer])
def test_the_seed_decides_and_the_global_generator_is_left_alone(model):
    state = torch.random.get_rng_state()
    same, other = model(5, 11, WIDTH, HEADS, seed=1), model(5, 11, WIDTH, HEADS, seed=2)
    assert torch.equal(same.embed.weight, model(5, 11, WIDTH, HEADS, seed=1).embed.weight)
    assert not torch.equal(same.embed.weight, other.embed.weight)
    assert torch.equal(state, torch.random.get_rng_state())
