"""Random patterns: their law, their correlation, and the memory they may take."""

import math

import pytest
import torch
from scipy.special import gamma, hyp2f1

from attractor_lib import patterns
from attractor_lib.analysis import overlap
from attractor_lib.patterns import random_patterns


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def expected_overlap(c, d):
    return c * 2 / d * (gamma((d + 1) / 2) / gamma(d / 2)) ** 2 * hyp2f1(0.5, 0.5, d / 2 + 1, c**2)


@pytest.mark.parametrize("d", [1, 2, 5, 11])
@pytest.mark.parametrize("c", [0.0, 0.3, 0.8, 1.0])
def test_mean_overlap_is_the_formula_of_the_docstring(c, d):
    pairs = random_patterns(
        2, 40_000, d, generator(), c, torch.float64
    )  # many sites: many draws of the common token too
    assert abs(overlap(*pairs).item() - expected_overlap(c, d)) < 4 / math.sqrt(40_000 * d)
    assert expected_overlap(0.5, 5) == pytest.approx(0.46, abs=0.005)
    assert expected_overlap(c, 1) == pytest.approx(2 / math.pi * math.asin(c))


@pytest.mark.parametrize("c", [0.0, 0.5])
def test_tokens_are_uniform_on_the_sphere(c):
    x = random_patterns(1, 50_000, 3, generator(), c, torch.float64)[0]
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(50_000, dtype=torch.float64))
    torch.testing.assert_close(x.mean(0), torch.zeros(3, dtype=torch.float64), atol=0.012, rtol=0)
    torch.testing.assert_close(
        x.T @ x / 50_000, torch.eye(3, dtype=torch.float64) / 3, atol=0.012, rtol=0
    )
    assert (
        abs((x[:, 0] <= 0.5).double().mean().item() - 0.75) < 0.01
    )  # in 3 dimensions every component is uniform


def test_the_common_token_belongs_to_a_site_and_the_generator_decides():
    x = random_patterns(3, 5, 11, generator(), 1.0)
    torch.testing.assert_close(x[0], x[2])
    assert overlap(x[0, :1], x[0, 1:2]).abs() < 0.99
    assert torch.equal(
        random_patterns(3, 5, 11, generator(4)), random_patterns(3, 5, 11, generator(4))
    )
    assert not torch.equal(
        random_patterns(3, 5, 11, generator(4)), random_patterns(3, 5, 11, generator(5))
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 5, 11), "n must be a whole number >= 1, got 0"),
        ((3, 0, 11), "n_sites must be a whole number >= 1, got 0"),
        ((3, 5, 2.5), "dim must be a whole number >= 1, got 2.5"),
        ((3, 5, 11, 1.1), "correlation must be a finite number from 0 to 1, got 1.1"),
        ((3, 5, 11, -0.1), "correlation must be a finite number from 0 to 1"),
        ((3, 5, 11, math.nan), "correlation must be a finite number from 0 to 1, got nan"),
        ((3, 5, 11, 0.0, torch.int64), "dtype must be a floating type"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_patterns(*arguments[:3], generator(), *arguments[3:])


def test_refuses_a_seed_in_place_of_a_generator():
    with pytest.raises(ValueError, match="generator must be a torch.Generator, got 0"):
        random_patterns(3, 5, 11, 0)


def test_refuses_more_patterns_than_memory_holds_before_allocating(monkeypatch):
    with pytest.raises(
        MemoryError,
        match=r"1000000000000 patterns of 16 sites and 50 components need 8.94e\+06 GiB",
    ):
        random_patterns(10**12, 16, 50, generator())
    monkeypatch.setattr(patterns, "available_memory", lambda device: 12 * 3 * 5 * 11)
    assert len(random_patterns(3, 5, 11, generator())) == 3
    with pytest.raises(MemoryError, match="4 patterns"):
        random_patterns(4, 5, 11, generator())
    monkeypatch.setattr(
        patterns, "available_memory", lambda device: None
    )  # a system that does not tell
    assert len(random_patterns(4, 5, 11, generator())) == 4


def test_available_memory_is_what_a_machine_can_have():
    there = patterns.available_memory()
    assert there is None or 2**20 < there < 2**50
