"""Measurements on states and maps whose answer is known."""

import math

import pytest
import torch
from conftest import random_states

from attractor_lib import kernels
from attractor_lib.analysis import (
    basin_radius,
    distinct_states,
    nearest_overlap,
    operations,
    overlap,
    restoration_error,
    retrieval,
    transient_lifetime,
)
from attractor_lib.corruption import AddNoise, HideTokens, Rotate, mean_token, no_corruption
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork


def test_overlap_by_loops():
    x, y = random_states(7, 5, 11), random_states(7, 5, 11, seed=1)
    expected = [sum(x[m, i] @ y[m, i] for i in range(5)) / 5 for m in range(7)]
    torch.testing.assert_close(overlap(x, y), torch.stack(expected))
    torch.testing.assert_close(overlap(x, -x), -torch.ones(7, dtype=x.dtype))


def test_nearest_overlap_finds_the_example_and_does_not_depend_on_the_block():
    examples = random_states(23, 5, 11)
    x = torch.nn.functional.normalize(
        examples[[17, 3, 9]] + 0.1 * random_states(3, 5, 11, seed=4), dim=-1
    )
    values, indices = nearest_overlap(x, examples, block=2)
    assert indices.tolist() == [17, 3, 9]
    torch.testing.assert_close(values, overlap(x, examples[indices]))


def test_restoration_error_of_known_predictions():
    embedding = PatchEmbedding(6, 2)
    images = torch.rand(7, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = embedding.encode(images)
    hide = HideTokens(4, mean_token(tokens))
    perfect = restoration_error(lambda x: tokens, tokens, hide, embedding)
    assert perfect[0].min() > 1e-3 and perfect[1].max() < 1e-20
    black = embedding.encode(torch.zeros_like(images))
    state, sites = hide(tokens, torch.Generator().manual_seed(0))
    expected = [(embedding.pixels(tokens)[m][sites[m]] ** 2).mean() for m in range(7)]
    torch.testing.assert_close(
        restoration_error(lambda x: black, tokens, hide, embedding)[1], torch.stack(expected)
    )


def test_restoration_error_against_true_pixels_and_with_an_update_for_each_step():
    images = torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(0))
    low = PatchEmbedding(8, 4, n_frequencies=5)
    tokens, true = low.encode(images), low.patches(images)
    hide = HideTokens(2, mean_token(tokens))
    perfect = [lambda x: x, lambda x: tokens]
    error = restoration_error(perfect, tokens, hide, low, n_steps=2, pixels=true)
    _, sites = hide(tokens, torch.Generator().manual_seed(0))
    missing = ((low.pixels(tokens) - true).square().mean(-1) * sites).sum(-1) / 2
    torch.testing.assert_close(error[2], missing)
    assert torch.equal(error[0], error[1]) and missing.min() > 1e-3
    assert restoration_error(perfect, tokens, hide, low, n_steps=2)[2].max() < 1e-12


def test_restoration_error_clamps_what_is_visible():
    embedding = PatchEmbedding(6, 2)
    tokens = embedding.encode(
        torch.rand(7, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    seen = []

    def update(x):
        seen.append(x)
        return embedding.encode(torch.zeros(7, 6, 6, dtype=x.dtype))

    restoration_error(update, tokens, HideTokens(4, mean_token(tokens)), embedding, n_steps=2)
    _, sites = HideTokens(4, mean_token(tokens))(tokens, torch.Generator().manual_seed(0))
    assert torch.equal(seen[1][~sites], tokens[~sites])
    seen.clear()
    restoration_error(update, tokens, AddNoise(0.1, 0.1, embedding), embedding, n_steps=2)
    assert torch.equal(seen[1], embedding.encode(torch.zeros(7, 6, 6, dtype=tokens.dtype)))


def test_transient_lifetime_is_the_last_step_before_the_first_fall():
    m = torch.tensor(
        [[1.0, 0.9, 0.8, 0.3, 0.9], [1.0, 0.2, 0.9, 0.9, 0.9], [1.0, 0.9, 0.9, 0.9, 0.9]]
    ).T
    assert transient_lifetime(m, 0.5).tolist() == [2, 0, 4]


def test_distinct_states_groups_copies():
    a, b, c = random_states(3, 5, 11)
    first, sizes = distinct_states(torch.stack([a, b, b, c, b, c]))
    assert first.tolist() == [1, 3, 0] and sizes.tolist() == [3, 2, 1]
    assert [len(v) for v in distinct_states(a[None][:0])] == [0, 0]


def cap(examples, angle):
    """A map with basins of known size: tokens within `angle` of the example go to it at once,
    others to its antipode.
    """
    return lambda x: torch.where(
        ((x * examples).sum(-1) > math.cos(angle)).all(-1)[:, None, None], examples, -examples
    )


def test_retrieval_of_basins_of_known_radius():
    examples = random_states(7, 5, 11)
    angles = torch.linspace(0.1, 1.5, 15, dtype=torch.float64)
    fractions = []
    for angle in angles.tolist():
        retrieved, m = retrieval(cap(examples, 0.75), examples, Rotate(angle), n_steps=3, seed=1)
        assert m.shape == (4, 7) and torch.equal(retrieved, m[-1] >= 0.95)
        torch.testing.assert_close(m[0], torch.full((7,), math.cos(angle), dtype=torch.float64))
        fractions.append(retrieved.double().mean())
    assert fractions[6] == 1 and fractions[7] == 0  # 0.7 is inside, 0.8 outside
    assert basin_radius(angles, torch.stack(fractions)) == pytest.approx(0.75)


def test_retrieval_judges_the_end_and_clamps_only_when_asked():
    examples = random_states(7, 5, 11)
    forgets = iter([examples, -examples])
    retrieved, m = retrieval(lambda x: next(forgets), examples, Rotate(0.5), n_steps=2)
    assert not retrieved.any() and (m[1:].amax(0) > 0.999).all()
    hide = HideTokens(2, mean_token(examples))
    m = {
        clamp: retrieval(lambda x: -examples, examples, hide, 1, clamp=clamp)[1][1]
        for clamp in (False, True)
    }
    torch.testing.assert_close(m[False], torch.full((7,), -1, dtype=torch.float64))
    torch.testing.assert_close(m[True], torch.full((7,), (3 - 2) / 5, dtype=torch.float64))


def test_basin_radius_is_linear_between_points_and_says_what_lies_outside():
    strengths = torch.tensor([0.0, 1.0, 3.0, 4.0])
    assert basin_radius(strengths, torch.tensor([1.0, 0.8, 0.2, 0.9])) == pytest.approx(2.0)
    assert basin_radius(strengths, torch.tensor([1.0, 0.8, 0.2, 0.0]), level=0.9) == pytest.approx(
        0.5
    )
    assert basin_radius(strengths, torch.tensor([0.4, 0.8, 0.2, 0.0])) == 0
    assert basin_radius(strengths, torch.tensor([1.0, 0.8, 0.7, 0.5])) == float("inf")


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: retrieval(lambda s: s, x, Rotate(0.1), threshold=1.2),
            "threshold must be an overlap, above -1 and at most 1",
        ),
        (
            lambda x: basin_radius(torch.tensor([0.0, 0.0]), torch.ones(2)),
            "expected rising strengths",
        ),
        (lambda x: basin_radius(torch.tensor([0.0, 1.0]), torch.ones(3)), "as many fractions"),
        (
            lambda x: overlap(x, x[:, :4]),
            r"same last two dimensions \(N, d\), got \(7, 5, 11\) and \(7, 4, 11\)",
        ),
        (
            lambda x: nearest_overlap(x, x[:0]),
            r"examples must have shape \(n >= 1, 5, 11\), got \(0, 5, 11\)",
        ),
        (
            lambda x: transient_lifetime(x, 0.5),
            r"m must have shape \(n_steps \+ 1, batch\), got \(7, 5, 11\)",
        ),
    ],
)
def test_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_states(7, 5, 11))


def test_refuses_pixels_of_other_images():
    embedding = PatchEmbedding(8, 4)
    tokens = embedding.encode(torch.rand(3, 8, 8))
    pixels = embedding.pixels(tokens)[:2]
    with pytest.raises(ValueError, match="pixels must be of 3 images, as tokens, got 2"):
        restoration_error(lambda x: x, tokens, no_corruption, embedding, pixels=pixels, block=1)


def test_operations_by_hand():
    N, d, H, r = 5, 9, 2, 3
    x = random_states(70, N, d).float()
    full, low = AttractorNetwork(N, d, H), AttractorNetwork(N, d, H, r)
    assert kernels.serving(full, x) is kernels.cpu
    # full rank: keys N^2 d^2 a head, scores and means N^2 d; low rank: queries, keys and output N d
    # r, scores and means N^2 r
    assert operations(lambda: full.update(x)) == 70 * 2 * H * (N * N * d * d + 2 * N * N * d)
    assert operations(lambda: low.update(x)) == 70 * 2 * H * (3 * N * d * r + 2 * N * N * r)
    # the rule adds the outer products of the couplings' gradient and dL/da
    assert operations(lambda: prediction_rule(full, x, x)) == 70 * 2 * H * (
        2 * N * N * d * d + 3 * N * N * d
    )
