"""The von Mises-Fisher distribution against scipy, mpmath, quadrature, its own derivative, and
draws against their mean.
"""

import math

import mpmath
import pytest
import torch
from conftest import random_states
from scipy import special

from attractor_lib.distributions.von_mises_fisher import (
    log_normaliser,
    log_normaliser_and_ratio,
    mean_length,
    sample,
)

KAPPAS = [0.0, 1e-8, 1e-3, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e5]
DIMS = [2, 3, 4, 7, 20, 41, 42, 43, 50, 101, 300, 1000]


@pytest.fixture(scope="module")
def exact():
    """log Z and A from mpmath with 30 digits: {(kappa, d): (log Z, A)}. kappa are numbers that
    float32 holds exactly.
    """
    with mpmath.workdps(30):
        return {
            (n, d): reference(torch.tensor(kappa).item(), d)
            for n, kappa in enumerate(KAPPAS)
            for d in DIMS
        }


def reference(kappa, d):
    half = mpmath.mpf(d) / 2
    if kappa == 0:
        return mpmath.log(2 * mpmath.pi**half / mpmath.gamma(half)), mpmath.mpf(0)
    bessel = mpmath.besseli(half - 1, kappa)
    log_z = half * mpmath.log(2 * mpmath.pi) + mpmath.log(bessel) - (half - 1) * mpmath.log(kappa)
    return log_z, mpmath.besseli(half, kappa) / bessel


@pytest.mark.parametrize("dtype, bar", [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_agrees_with_mpmath(exact, dtype, bar):
    kappa = torch.tensor(KAPPAS).to(dtype)
    for d in DIMS:
        log_z, length = log_normaliser(kappa, d), mean_length(kappa, d)
        assert log_z.dtype == length.dtype == dtype
        for n in range(len(KAPPAS)):
            expected, a = (float(v) for v in exact[n, d])
            assert abs(log_z[n].item() - expected) <= bar * max(1, abs(expected)), (KAPPAS[n], d)
            assert abs(length[n].item() - a) <= bar * a, (KAPPAS[n], d)


def test_agrees_with_scipy_where_it_does_not_underflow():
    kappa = torch.linspace(1, 700, 97, dtype=torch.float64)
    for d in (2, 3, 10, 50):
        scaled = torch.from_numpy(special.ive(d / 2 - 1, kappa.numpy()))
        expected = d / 2 * math.log(2 * math.pi) + scaled.log() + kappa - (d / 2 - 1) * kappa.log()
        keep = scaled > 1e-300
        torch.testing.assert_close(
            log_normaliser(kappa, d)[keep], expected[keep], rtol=1e-11, atol=1e-11
        )
        torch.testing.assert_close(
            mean_length(kappa, d)[keep],
            (torch.from_numpy(special.ive(d / 2, kappa.numpy())) / scaled)[keep],
            rtol=1e-11,
            atol=0,
        )


@pytest.mark.parametrize("d", [2, 3, 5, 50, 1000])
def test_mean_length_is_the_derivative_of_the_log_normaliser(d):
    kappa, step = torch.tensor([0.5, 3.0, 40.0, 900.0], dtype=torch.float64), 1e-3
    difference = (log_normaliser(kappa + step, d) - log_normaliser(kappa - step, d)) / (2 * step)
    torch.testing.assert_close(difference, mean_length(kappa, d), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        log_normaliser_and_ratio(kappa, d)[1] * kappa, mean_length(kappa, d), rtol=1e-14, atol=0
    )


def test_known_in_three_dimensions_and_at_zero():
    kappa = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(
        log_normaliser(kappa, 3), (4 * math.pi * kappa.sinh() / kappa).log(), rtol=1e-13, atol=0
    )
    torch.testing.assert_close(
        mean_length(kappa, 3), 1 / kappa.tanh() - 1 / kappa, rtol=1e-12, atol=0
    )
    zero = torch.zeros(1, dtype=torch.float64)
    for d, surface in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        assert log_normaliser(zero, d).item() == pytest.approx(math.log(surface), abs=1e-13)
    assert log_normaliser_and_ratio(zero, 7)[1].item() == pytest.approx(1 / 7, rel=1e-13)


@pytest.mark.parametrize("d", [2, 3, 6])
def test_density_integrates_to_one_by_quadrature(d):
    """In the cosine w, the surface element is |S^(d-2)| (1 - w^2)^((d-3)/2) dw; w = cos(angle)
    keeps it smooth at d = 2.
    """
    angle = (torch.arange(4000, dtype=torch.float64) + 0.5) * math.pi / 4000
    ring = 2 * math.pi ** ((d - 1) / 2) / math.gamma((d - 1) / 2) * angle.sin() ** (d - 2)
    for kappa in (0.0, 0.7, 25.0):
        log_z = log_normaliser(torch.tensor(kappa, dtype=torch.float64), d)
        assert (
            (kappa * angle.cos() - log_z).exp() * ring
        ).sum().item() * math.pi / 4000 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 8.0, 300.0, 1e5])
@pytest.mark.parametrize("d", [2, 3, 7, 50])
def test_draws_have_the_mean_and_the_variance_of_the_distribution(d, kappa):
    """z-tests: the cosine w has mean A and variance 1 - A^2 - (d-1) A / kappa; across the direction
    the mean is 0.
    """
    n, generator = 20_000, torch.Generator().manual_seed(3)
    direction = random_states(1, d)[0]
    x = sample(direction.expand(n, d), torch.full((n,), kappa, dtype=torch.float64), generator)
    torch.testing.assert_close(
        x.norm(dim=-1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-12
    )
    ratio = log_normaliser_and_ratio(torch.tensor(kappa, dtype=torch.float64), d)[1]
    a = kappa * ratio
    missing = 1 - x @ direction  # 1 - w, of order d / kappa
    assert abs(missing.mean() - (1 - a)) < 4 * missing.std() / n**0.5
    square = missing.square()
    expected = (1 - a) ** 2 + 1 - a**2 - (d - 1) * ratio
    assert abs(square.mean() - expected) < 4 * square.std() / n**0.5 + 1e-9 * (kappa == 1e5)
    across = random_states(1, d, seed=9)[0]
    across = across - (across @ direction) * direction
    assert abs((x @ across).mean()) < 4 * (x @ across).std() / n**0.5


def test_each_draw_has_its_own_direction_and_concentration():
    direction, generator = random_states(4, 3, 5), torch.Generator().manual_seed(7)
    kappa = torch.full((4, 3), 1e8, dtype=torch.float64)
    kappa[1, 2] = 0
    x = sample(direction, kappa, generator)
    near = (x - direction).norm(dim=-1) < 1e-2
    assert near.sum() == 11 and not near[1, 2]
    assert torch.equal(x, sample(direction, kappa, torch.Generator().manual_seed(7)))
    single = sample(direction.float(), kappa.float(), generator)
    assert single.dtype == torch.float32 and (single.norm(dim=-1) - 1).abs().max() < 1e-6
    assert sample(direction[:0], kappa[:0], generator).shape == (0, 3, 5)


@pytest.mark.parametrize(
    "kappa, dim, message",
    [
        (torch.tensor([1.0, -0.1]), 3, r"kappa must be finite and >= 0, got values from -0.1 to 1"),
        (torch.tensor(math.nan), 3, "kappa must be finite and >= 0, got values from nan"),
        (torch.tensor(math.inf), 3, "kappa must be finite and >= 0, got values from inf"),
        (torch.tensor(1), 3, "kappa must be a tensor of float32 or float64, got torch.int64"),
        (1.0, 3, "kappa must be a tensor of float32 or float64, got float"),
        (torch.tensor(1.0), 1, "dim must be a whole number >= 2, got 1"),
        (torch.tensor(1.0), 2.5, "dim must be a whole number >= 2, got 2.5"),
    ],
)
def test_refuses_bad_input(kappa, dim, message):
    for function in (log_normaliser, mean_length, log_normaliser_and_ratio):
        with pytest.raises(ValueError, match=message):
            function(kappa, dim)


@pytest.mark.parametrize(
    "direction, kappa, message",
    [
        (
            torch.ones(2, 3),
            torch.ones(2),
            "direction must have tokens of norm 1, got norms that differ from 1 by up to 0.732",
        ),
        (torch.eye(3) * math.nan, torch.ones(3), "direction must have tokens of norm 1"),
        (
            torch.eye(3),
            torch.ones(2),
            r"kappa must be torch.float32 of shape \(3,\) on cpu like direction, got",
        ),
        (torch.eye(3), torch.ones(3).double(), "kappa must be torch.float32"),
        (torch.eye(3), -torch.ones(3), "kappa must be finite and >= 0"),
        (torch.ones(4, 1), torch.ones(4), "dim must be a whole number >= 2, got 1"),
    ],
)
def test_sample_refuses_bad_input(direction, kappa, message):
    with pytest.raises(ValueError, match=message):
        sample(direction, kappa)
