"""Sources of letters: what is drawn has the probabilities that they state."""

import itertools

import pytest
import torch

from attractor_lib.sources import CopySource, MarkovSource

SOURCES = [MarkovSource(3, 1), MarkovSource(2, 2, sharpness=1.0), CopySource(2, 2, 0.3)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_what_is_drawn_has_the_stated_probabilities(source):
    n, length, v = 20_000, 4, source.n_letters
    drawn = source.sample(n, length, torch.Generator().manual_seed(0))
    every = torch.tensor(list(itertools.product(range(v), repeat=length)))
    p = source.log_conditionals(every).gather(-1, every[..., None]).sum((1, 2)).exp()
    assert abs(p.sum() - 1) < 1e-12
    counts = (drawn[:, None] == every).all(-1).double().mean(0)
    assert ((counts - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-12).all()


def test_a_copy_is_exact_when_nothing_is_drawn_afresh():
    text = CopySource(5, 7, 1e-9).sample(3, 30, torch.Generator().manual_seed(0))
    assert torch.equal(text[:, 7:], text[:, :-7])


@pytest.mark.parametrize("length", [0, 1, 2])
def test_short_texts(length):
    for source in (*SOURCES, CopySource(2, 5)):
        text = source.sample(2, length, torch.Generator().manual_seed(0))
        assert text.shape == (2, length)
        assert source.log_conditionals(text).shape == (2, length, source.n_letters)


def test_refuses():
    with pytest.raises(ValueError, match="order must be a whole number >= 1, got 0"):
        MarkovSource(2, 0)
    with pytest.raises(ValueError, match="n_letters must be a whole number >= 2, got 1"):
        MarkovSource(1, 2)
    with pytest.raises(ValueError, match="error must be a finite number > 0 and <= 1, got 0"):
        CopySource(2, 3, 0)
