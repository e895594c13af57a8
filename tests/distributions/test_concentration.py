"""Fitted concentrations against scipy, the inverse, the derivative of the likelihood, and draws."""

import math

import pytest
import torch
from conftest import random_states
from scipy import optimize, stats

from attractor_lib.distributions.concentration import (
    AroundField,
    fit_concentration,
    fit_concentration_factor,
    fit_concentration_mixture,
    mixture_log_density,
)
from attractor_lib.distributions.von_mises_fisher import log_normaliser, mean_length, sample


@pytest.mark.parametrize("d", [2, 3, 7, 50, 1000])
def test_fitted_concentration_is_the_inverse_of_the_mean_length(d):
    kappa = torch.tensor([[0.0, 1e-3, 0.5], [7.0, 300.0, 1e5]], dtype=torch.float64)
    found = fit_concentration(mean_length(kappa, d), d)
    torch.testing.assert_close(found, kappa, rtol=1e-9, atol=1e-12)
    assert fit_concentration(mean_length(kappa[:, :2], d).float(), d).dtype == torch.float32
    torch.testing.assert_close(
        fit_concentration(mean_length(kappa, d).flatten()[:4].float(), d),
        kappa.flatten()[:4].float(),
        rtol=1e-4,
        atol=1e-6,
    )
    assert fit_concentration(torch.tensor([-1.0, -0.3, 0.0]), d).tolist() == [0, 0, 0]
    assert fit_concentration(kappa[:0], d).shape == (0, 3)


@pytest.mark.parametrize("d", [3, 20])
def test_fitted_concentration_agrees_with_scipy(d):
    """scipy.stats.vonmises_fisher.fit takes the direction from the tokens too, so they are given
    their own mean direction.
    """
    x = sample(
        torch.eye(d, dtype=torch.float64)[0].expand(400, d),
        torch.full((400,), 6.0, dtype=torch.float64),
        torch.Generator().manual_seed(4),
    )
    direction, kappa = stats.vonmises_fisher.fit(x.numpy())
    cosine = (x @ torch.as_tensor(direction)).mean()
    assert fit_concentration(cosine, d).item() == pytest.approx(kappa, rel=1e-6)


@pytest.mark.parametrize("d", [2, 5, 50])
def test_fitted_factor_has_the_largest_likelihood(d):
    """The derivative of the log-likelihood by finite differences is zero there and falls through
    it, and a search without derivatives finds the same.
    """
    generator = torch.Generator().manual_seed(11)
    length = 30 * torch.rand(40, 3, generator=generator, dtype=torch.float64)
    length[0] = 0
    kappa = 1.7 * length
    direction = random_states(40, 3, d, seed=12)
    x = sample(direction, kappa, generator)
    score = length * (x * direction).sum(-1)

    def log_likelihood(c):
        return (c * score - log_normaliser(c * length, d)).mean().item()

    c = fit_concentration_factor(length, score, d)
    slope = [log_likelihood(c + s + 1e-4) - log_likelihood(c + s - 1e-4) for s in (-0.1, 0, 0.1)]
    assert slope[0] > 1e-6 and abs(slope[1]) < 1e-9 and slope[2] < -1e-6
    by_search = optimize.minimize_scalar(
        lambda c: -log_likelihood(c), (0.5, 2), options={"xtol": 1e-9}
    )
    assert c == pytest.approx(by_search.x, rel=1e-5)
    assert fit_concentration_factor(length, -score.abs(), d) == 0


def test_the_factor_of_unit_lengths_is_the_concentration():
    cosine = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert fit_concentration_factor(torch.ones_like(cosine), cosine, 9) == pytest.approx(
        fit_concentration(cosine.mean(), 9).item(), rel=1e-12
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fit_concentration(torch.tensor([0.2, 1.0]), 3), "mean_cosine must be below 1"),
        (lambda: fit_concentration(torch.tensor(math.nan), 3), "mean_cosine must be below 1"),
        (lambda: fit_concentration(0.5, 3), "mean_cosine must be a tensor of float32 or float64"),
        (lambda: fit_concentration(torch.zeros(2), 1), "dim must be a whole number >= 2, got 1"),
        (
            lambda: fit_concentration_factor(-torch.ones(2), torch.ones(2), 3),
            "length must be finite and >= 0",
        ),
        (
            lambda: fit_concentration_factor(torch.ones(2), torch.ones(3), 3),
            r"score must be finite, torch.float32 of shape \(2,\) like length",
        ),
        (
            lambda: fit_concentration_factor(torch.ones(2), torch.ones(2), 3),
            "score must be below length on average for a finite factor, got means of 1 and 1",
        ),
    ],
)
def test_fits_refuse_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def cosines(kappas, d, seed=5):
    """x . u of one draw for each kappa."""
    direction = random_states(1, d)[0]
    kappa = torch.tensor(kappas, dtype=torch.float64)
    drawn = sample(direction.expand(len(kappa), d), kappa, torch.Generator().manual_seed(seed))
    return drawn @ direction


def test_mixture_finds_the_concentrations_that_made_the_tokens():
    t = cosines([8.0] * 6000 + [900.0] * 2000, 12)
    q, kappa = fit_concentration_mixture(t, 12, 2)
    order = kappa.argsort()
    torch.testing.assert_close(q[order], q.new_tensor([0.75, 0.25]), rtol=0, atol=0.02)
    torch.testing.assert_close(kappa[order], q.new_tensor([8.0, 900.0]), rtol=0.06, atol=0)


def test_mixture_of_one_is_the_one_concentration():
    t = cosines([20.0] * 500, 7)
    q, kappa = fit_concentration_mixture(t, 7, 1)
    assert q.item() == pytest.approx(1)
    assert kappa.item() == pytest.approx(fit_concentration(t.mean(), 7).item(), rel=1e-12)
    expected = kappa * t - log_normaliser(kappa, 7)
    torch.testing.assert_close(mixture_log_density(t, q, kappa, 7), expected, rtol=1e-12, atol=0)


def test_no_step_of_the_mixture_lowers_the_likelihood():
    t = cosines([3.0] * 300 + [12.0] * 300 + [60.0] * 300, 9)
    fits = [fit_concentration_mixture(t, 9, 3, steps) for steps in range(1, 20)]
    nats = torch.stack([mixture_log_density(t, *fit, 9).mean() for fit in fits])
    assert nats.diff().min() > -1e-12 and nats[-1] > nats[0] + 0.005


def test_the_mixture_is_a_density():
    """By quadrature in the cosine on S^2, where the surface element is 2 pi dt."""
    q, kappa = torch.tensor([[0.3, 0.7], [0.5, 40.0]], dtype=torch.float64)
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 10_000 - 1
    total = mixture_log_density(t, q, kappa, 3).exp().sum() * 2 * math.pi / 10_000
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_tokens_that_are_hit_exactly_leave_the_mixture_finite():
    t = torch.cat([torch.ones(50), cosines([5.0] * 50, 6).float()])
    q, kappa = fit_concentration_mixture(t, 6, 2)
    assert kappa.isfinite().all() and mixture_log_density(t, q, kappa, 6).isfinite().all()


@pytest.mark.parametrize(
    "cosine, n, message",
    [
        (torch.zeros(2), 3, "n_components = 3"),
        (torch.zeros(2, 2), 1, "cosine must be finite"),
        (torch.tensor([math.nan, 0.0]), 1, "cosine must be finite"),
        (torch.zeros(4, dtype=torch.long), 1, "cosine must be a tensor of float32 or float64"),
    ],
)
def test_mixture_refuses_bad_input(cosine, n, message):
    with pytest.raises(ValueError, match=message):
        fit_concentration_mixture(cosine, 5, n)


def test_densities_around_a_field_site_by_site():
    """Each site by itself, on the tokens that count alone, whatever the others hold."""
    n, sites_n, d = 60, 3, 7
    field = 2 * random_states(n, sites_n, d) * torch.rand(n, sites_n, 1).double().add(0.1)
    generator = torch.Generator().manual_seed(8)
    unit = field / field.norm(dim=-1, keepdim=True)
    x = sample(unit, torch.full((n, sites_n), 9.0).double(), generator)
    sites = torch.rand(n, sites_n, generator=generator) < 0.5
    wrong = torch.where(sites[..., None], x, -x)
    fit = AroundField.fit(field, wrong, sites, n_components=2)
    found = fit.log_densities(field, x)
    for i in range(sites_n):
        at = sites[:, i]
        length = field[:, i].norm(dim=-1)
        cosine = (x[:, i] * unit[:, i]).sum(-1)
        kappa = fit_concentration(cosine[at].mean(), d)
        c = fit_concentration_factor(length[at], (length * cosine)[at], d)
        few = fit_concentration_mixture(cosine[at], d, 2, 30)
        by_length = c * length
        expected = {
            "one kappa": kappa * cosine - log_normaliser(kappa, d),
            "kappa = c |h|": by_length * cosine - log_normaliser(by_length, d),
            "few kappas": mixture_log_density(cosine, *few, d),
        }
        for name, density in expected.items():
            torch.testing.assert_close(found[name][:, i], density, rtol=1e-9, atol=1e-9)
        mean = fit.mean(field)[:, i]
        torch.testing.assert_close(mean, mean_length(kappa, d) * unit[:, i], rtol=1e-9, atol=1e-12)


def test_a_field_that_is_the_token_itself_has_finite_densities():
    x = random_states(40, 2, 5).float()
    fit = AroundField.fit(3 * x, x, torch.ones(40, 2, dtype=torch.bool))
    assert all(p.isfinite().all() and p.min() > 30 for p in fit.log_densities(3 * x, x).values())
