"""The baselines against the same layers written out by hand from their parameters."""

import pytest
import torch
from conftest import random_states
from torch.nn import functional as F

from attractor_lib.baselines import (
    BareAttention,
    CausalStack,
    EnergyTransformer,
    HopfieldLayer,
    NGram,
    TransformerBlock,
    TransformerStack,
    backpropagation,
    likelihood,
)
from attractor_lib.sources import MarkovSource

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


def a_text(*shape, n_letters=3, seed=0):
    return torch.randint(n_letters, shape, generator=torch.Generator().manual_seed(seed))


def test_a_causal_stack_has_probabilities_and_no_leak():
    model, letters = CausalStack(3, 6, width=16, n_layers=2, n_heads=2), a_text(4, 6)
    with torch.no_grad():
        log_p = model.log_conditionals(letters)
        assert log_p.shape == (4, 6, 3) and (log_p.exp().sum(-1) - 1).abs().max() < 1e-5
        changed = letters.clone()
        changed[:, 4:] = (letters[:, 4:] + 1) % 3
        after = model.log_conditionals(changed)
    torch.testing.assert_close(after[:, :5], log_p[:, :5], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, 5], log_p[:, 5])
    assert torch.equal(model(letters[:, :3]), model.log_conditionals(letters[:, :3]))
    with pytest.raises(ValueError, match="at most 6 a text, got 7"):
        model.log_conditionals(a_text(1, 7))


def test_the_likelihood_of_a_stack_has_autograds_gradients():
    model, letters = CausalStack(3, 6, width=16, n_heads=2), a_text(4, 6)
    sites = torch.ones(4, 6, dtype=torch.bool)
    sites[:, 3:] = False
    loss, gradients = likelihood(model, letters, letters, sites)
    log_p = model.log_conditionals(letters[:, :3]).gather(-1, letters[:, :3, None])
    torch.testing.assert_close(loss, -log_p.detach().mean())
    assert set(gradients) == set(dict(model.named_parameters()))
    assert gradients["read_out.weight"].abs().max() > 0
    small = letters.to(torch.uint8)
    torch.testing.assert_close(likelihood(model, small, small, sites)[0], loss)
    with pytest.raises(ValueError, match="target must be the letters themselves"):
        likelihood(model, letters, 2 - letters, sites)
    with pytest.raises(ValueError, match="at least one letter must count"):
        likelihood(model, letters, letters, torch.zeros_like(sites))


def test_backpropagation_refuses_what_would_be_broadcast():
    x, sites = random_states(3, 4, 6).float(), torch.ones(3, 4, dtype=torch.bool)
    for state, target in ((x, x[:1]), (x[:0], x[:0])):
        with pytest.raises(ValueError, match="state and target must have one shape"):
            backpropagation(BareAttention(4, 6, width=16), state, target, sites[: len(state)])


def test_models_that_differ_say_so():
    """By what a checkpoint knows them again."""
    for one, other in (
        (BareAttention(4, 6, 16, 8), BareAttention(4, 6, 16, 2)),
        (TransformerStack(4, 6, 16, n_loops=1), TransformerStack(4, 6, 16, n_loops=2)),
        (HopfieldLayer(4, 6, 8), HopfieldLayer(4, 6, 16)),
        (CausalStack(3, 6, 16, n_heads=2), CausalStack(3, 7, 16, n_heads=2)),
    ):
        assert repr(one) != repr(other)


def test_ngrams_by_hand():
    """Text 0 0 1: p(1 | 0) with Witten and Bell's back-off, by fractions."""
    model = NGram(torch.tensor([0, 0, 1]), 2, 2)
    p = model.log_conditionals(torch.tensor([[0, 0], [1, 0]])).exp()
    # alone: counts 2 and 1, two kinds, uniform before: (2 + 2/2) / 5
    alone = torch.tensor([3 / 5, 2 / 5])
    # after the start: 0 once, one kind; after 0: 0 and 1 once, two kinds; after 1: nothing seen
    first = torch.tensor([(1 + alone[0]) / 2, alone[1] / 2])
    after_zero = (torch.tensor([1.0, 1.0]) + 2 * alone) / 4
    expected = torch.stack([torch.stack([first, after_zero]), torch.stack([first, alone])])
    torch.testing.assert_close(p, expected)


def test_ngrams_find_a_markov_chain():
    source, generator = MarkovSource(3, 2), torch.Generator().manual_seed(0)
    model = NGram(source.sample(1, 20_000, generator)[0], 3, 3)
    letters = source.sample(50, 100, generator)
    nats = [
        -log_p.gather(-1, letters[..., None])[:, 10:].double().mean()
        for log_p in (model.log_conditionals(letters), source.log_conditionals(letters))
    ]
    assert nats[1] < nats[0] < nats[1] + 0.01
    for wrong, message in (
        ((letters[0], 0, 3), "n must be a whole number >= 1"),
        ((letters[0], 12, 65), "n must be smaller for 65 letters, got 12"),
        ((letters[0], 2, 2), "text must be from 0 to 1, got 0 to 2"),
        ((letters[0, :0], 2, 3), "text must hold at least one letter"),
    ):
        with pytest.raises(ValueError, match=message):
            NGram(*wrong)
    for told in (model, source, CausalStack(3, 100)):
        with pytest.raises(ValueError, match="letters must be from 0 to 2, got 3 to 3"):
            told.log_conditionals(torch.tensor([[3]]))
