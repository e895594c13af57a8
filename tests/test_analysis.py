"""Measurements on states and maps whose answer is known."""

import pytest
import torch
from conftest import random_states

from attractor_lib.analysis import distinct_states, nearest_overlap, overlap, restoration_error, transient_lifetime
from attractor_lib.corruption import AddNoise, HideTokens, mean_token
from attractor_lib.embedding import PatchEmbedding


def test_overlap_by_loops():
    x, y = random_states(7, 5, 11), random_states(7, 5, 11, seed=1)
    expected = [sum(x[m, i] @ y[m, i] for i in range(5)) / 5 for m in range(7)]
    torch.testing.assert_close(overlap(x, y), torch.stack(expected))
    torch.testing.assert_close(overlap(x, -x), -torch.ones(7, dtype=x.dtype))


def test_nearest_overlap_finds_the_example_and_does_not_depend_on_the_block():
    examples = random_states(23, 5, 11)
    x = torch.nn.functional.normalize(examples[[17, 3, 9]] + 0.1 * random_states(3, 5, 11, seed=4), dim=-1)
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
    torch.testing.assert_close(restoration_error(lambda x: black, tokens, hide, embedding)[1], torch.stack(expected))


def test_restoration_error_clamps_what_is_visible():
    embedding = PatchEmbedding(6, 2)
    tokens = embedding.encode(torch.rand(7, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
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
    m = torch.tensor([[1.0, 0.9, 0.8, 0.3, 0.9], [1.0, 0.2, 0.9, 0.9, 0.9], [1.0, 0.9, 0.9, 0.9, 0.9]]).T
    assert transient_lifetime(m, 0.5).tolist() == [2, 0, 4]


def test_distinct_states_groups_copies():
    a, b, c = random_states(3, 5, 11)
    first, sizes = distinct_states(torch.stack([a, b, b, c, b, c]))
    assert first.tolist() == [1, 3, 0] and sizes.tolist() == [3, 2, 1]
    assert [len(v) for v in distinct_states(a[None][:0])] == [0, 0]


@pytest.mark.parametrize("call, message", [
    (lambda x: overlap(x, x[:, :4]), r"same last two dimensions \(N, d\), got \(7, 5, 11\) and \(7, 4, 11\)"),
    (lambda x: nearest_overlap(x, x[:0]), r"examples must have shape \(n >= 1, 5, 11\), got \(0, 5, 11\)"),
    (lambda x: transient_lifetime(x, 0.5), r"m must have shape \(n_steps \+ 1, batch\), got \(7, 5, 11\)"),
])
def test_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_states(7, 5, 11))
