"""Bare attention's closed form against autograd in float64, and as a rule to train with."""

import pytest
import torch
from conftest import random_states

from attractor_lib.baselines import BareAttention, backpropagation
from attractor_lib.corruption import HideTokens, mean_token
from attractor_lib.learning.bare_attention import bare_attention_rule
from attractor_lib.trainer import TrainingConfig, train

BATCH, N, D, WIDTH, HEADS = 7, 5, 11, 12, 3


def random_model(scale=1.0):
    """Every parameter, the biases too, of a size at which nothing is small."""
    model, generator = (
        BareAttention(N, D, WIDTH, HEADS).double(),
        torch.Generator().manual_seed(1),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) / 2)
    return model


def example():
    sites = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(2)) < 0.5
    return random_states(BATCH, N, D), random_states(BATCH, N, D, seed=5), sites


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.4])
@pytest.mark.parametrize("sites", ["all", "one for all", "own for each"])
def test_it_is_the_gradient_of_its_loss(scale, sites):
    model, (state, target, own) = random_model(scale), example()
    chosen = {"all": torch.ones(BATCH, N, dtype=torch.bool), "one for all": own[0]}.get(sites, own)
    loss, gradients = bare_attention_rule(model, state, target, None if sites == "all" else chosen)
    expected_loss, expected = backpropagation(model, state, target, chosen.expand(BATCH, N))
    torch.testing.assert_close(loss, expected_loss, atol=1e-10, rtol=0)
    assert gradients.keys() == expected.keys()
    for name, g in gradients.items():
        assert expected[name].abs().max() > 1e-6 or "in_proj_bias" in name
        torch.testing.assert_close(g, expected[name], atol=1e-10, rtol=0)


def test_without_target_the_state_is_the_target():
    model, (state, _, sites) = random_model(), example()
    (loss, gradients), (same, others) = (
        bare_attention_rule(model, state, *target, sites=sites) for target in ((), (state,))
    )
    assert loss == same and all(torch.equal(g, others[name]) for name, g in gradients.items())


def test_it_trains_as_backpropagation_does():
    tokens = random_states(100, N, D)
    corrupt, config = HideTokens(2, mean_token(tokens)), TrainingConfig(epochs=5, batch_size=20)
    models = [BareAttention(N, D, WIDTH, HEADS).double() for _ in range(2)]
    histories = [
        train(model, rule, tokens, corrupt, config, report=None)
        for model, rule in zip(models, (bare_attention_rule, backpropagation))
    ]
    closed, by_autograd = ([record["loss"] for record in h] for h in histories)
    assert closed[-1] < 0.99 * closed[0]
    assert closed == pytest.approx(by_autograd, rel=1e-9)
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


def test_no_autograd_in_the_rule(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("autograd was used")

    for owner, name in ((torch.Tensor, "backward"), (torch.autograd, "backward")):
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    loss, gradients = bare_attention_rule(random_model(), *example())
    assert loss.grad_fn is None and all(g.grad_fn is None for g in gradients.values())


def test_what_is_refused():
    model, (state, target, sites) = random_model(), example()
    with pytest.raises(ValueError, match=r"of one shape \(batch >= 1, 5, d\)"):
        bare_attention_rule(model, state[:, :4])
    with pytest.raises(ValueError, match="of one shape"):
        bare_attention_rule(model, state, target[:3])
    with pytest.raises(ValueError, match="of one shape"):
        bare_attention_rule(model, state[:0])
    with pytest.raises(ValueError, match="sites must be boolean"):
        bare_attention_rule(model, state, target, sites[:, :4])
