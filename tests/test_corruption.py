import math

import pytest
import torch
from conftest import random_network, random_states

from attractor_lib.corruption import AddNoise, HideTokens, Rotate, mean_token, no_corruption
from attractor_lib.embedding import PatchEmbedding


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hides_exactly_k_tokens_evenly_over_the_sites():
    tokens = random_states(4000, 5, 11)
    fill = mean_token(tokens)
    state, sites = HideTokens(2, fill)(tokens, generator())
    assert (sites.sum(-1) == 2).all()
    torch.testing.assert_close(
        sites.double().mean(0), torch.full((5,), 0.4, dtype=torch.float64), atol=0.04, rtol=0
    )
    assert torch.equal(state[sites], fill.expand_as(tokens)[sites]) and torch.equal(
        state[~sites], tokens[~sites]
    )


def test_with_least_each_example_hides_a_number_of_its_own_all_equally_often():
    tokens = random_states(6000, 5, 3)
    state, sites = HideTokens(4, mean_token(tokens), least=2)(tokens, generator())
    counts = sites.sum(-1).bincount(minlength=6) / len(tokens)
    expected = torch.tensor([0, 0, 1 / 3, 1 / 3, 1 / 3, 0])
    torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(
        sites.double().mean(0), torch.full((5,), 0.6, dtype=torch.float64), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("rank", [None, 2])
def test_the_true_value_of_a_hidden_token_changes_nothing(rank):
    """The leak test of masked prediction: the prediction on hidden sites does not see what they
    held.
    """
    network, tokens = random_network(rank), random_states(7, 5, 11)
    hide = HideTokens(2, mean_token(tokens))
    state, sites = hide(tokens, generator())
    other = torch.where(sites[..., None], random_states(7, 5, 11, seed=9), tokens)
    state_of_other, same_sites = hide(other, generator())
    assert torch.equal(sites, same_sites) and not torch.equal(tokens, other)
    assert torch.equal(network.update(state), network.update(state_of_other))
    assert not torch.allclose(
        network.update(tokens)[sites], network.update(other)[sites]
    )  # unhidden, it would


def test_noise_has_the_level_asked_for_and_stays_an_image():
    embedding = PatchEmbedding(12, 3)
    grey = torch.full((2000, 12, 12), 0.5)
    state, sites = AddNoise(0.1, 0.1, embedding)(embedding.encode(grey), generator())
    assert sites.all() and abs(embedding.decode(state).std().item() - 0.1) < 0.002
    mixed, _ = AddNoise(0.0, 0.1, embedding)(embedding.encode(grey), generator())
    levels = embedding.decode(mixed).flatten(1).std(1)
    assert levels.min() < 0.02 and levels.max() < 0.13 and abs(levels.mean().item() - 0.05) < 0.005


def test_noise_on_colour_has_one_level_an_image():
    embedding = PatchEmbedding(8, 4, channels=3)
    grey = torch.full((400, 3, 8, 8), 0.5)
    noisy, _ = AddNoise(0.01, 0.1, embedding)(embedding.encode(grey), generator())
    spread = (embedding.decode(noisy) - 0.5).flatten(2).std(-1)  # of each colour
    assert spread.min() > 0.005 and spread.max() < 0.12 and spread.mean(1).std() > 0.02
    assert (spread.max(1).values / spread.min(1).values).max() < 1.8


def test_no_corruption_predicts_every_site_from_the_clean_example():
    tokens = random_states(3, 5, 11)
    state, sites = no_corruption(tokens)
    assert torch.equal(state, tokens) and sites.all()


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5])
def test_a_rotation_turns_every_token_by_its_angle_in_a_direction_of_its_own(angle):
    tokens = random_states(3000, 5, 3)
    state, sites = Rotate(angle)(tokens, generator(3))
    torch.testing.assert_close(
        (state * tokens).sum(-1), torch.full((3000, 5), math.cos(angle), dtype=torch.float64)
    )
    torch.testing.assert_close(state.norm(dim=-1), torch.ones(3000, 5, dtype=torch.float64))
    assert sites.all()
    if angle:
        # even over directions: the tangent parts of one token turned often have mean zero
        turned = Rotate(angle)(tokens[:1].expand(3000, -1, -1), generator(3))[0]
        tangent = (turned - math.cos(angle) * tokens[:1]) / math.sin(angle)
        assert tangent.mean(0).norm(dim=-1).max() < 0.06
        same_site = torch.einsum("ia,ja->ij", tangent[0], tangent[0])
        assert same_site.fill_diagonal_(0).abs().max() < 1 - 1e-6


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Rotate(-0.1), "angle must be between 0 and pi radians, got -0.1"),
        (lambda: Rotate(3.2), "angle must be between 0 and pi"),
        (
            lambda: Rotate(0.1)(torch.ones(4, 5, 1), generator()),
            "tokens must have at least 2 components to be turned, got 1",
        ),
        (
            lambda: HideTokens(0, torch.ones(5, 11)),
            "n_hidden must be a whole number from 1 to 5, got 0",
        ),
        (lambda: HideTokens(6, torch.ones(5, 11)), "got 6"),
        (
            lambda: HideTokens(3, torch.ones(5, 11), least=4),
            "least must be a whole number from 1 to 3, got 4",
        ),
        (
            lambda: HideTokens(3, torch.ones(5, 11))(torch.ones(2, 4, 11), generator()),
            r"tokens must be \(batch, 5, 11\) as fill is, got \(2, 4, 11\)",
        ),
        (
            lambda: AddNoise(0.5, 0.1, PatchEmbedding(12, 3)),
            "high must be a finite number >= 0.5, got 0.1",
        ),
        (lambda: AddNoise(-0.1, 0.1, PatchEmbedding(12, 3)), "low must be a finite number >= 0"),
        (lambda: AddNoise(float("nan"), 0.1, PatchEmbedding(12, 3)), "low must be a finite number"),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
