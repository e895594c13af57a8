"""Mean field of vector Hopfield networks: integrals against samples, the response against finite
differences, trajectories against networks, and each term of the theory left out.
"""

import math
from functools import partial

import pytest
import torch
from conftest import random_states

from attractor_lib import mean_field
from attractor_lib.analysis import overlap
from attractor_lib.corruption import Rotate
from attractor_lib.dynamics import run
from attractor_lib.mean_field import (
    SingleSite,
    critical_load,
    crosstalk,
    denoising_load,
    dynamics,
    first_step,
    load_of,
    mean_alignment,
    mean_response,
    retrieval,
)
from attractor_lib.patterns import random_patterns
from attractor_lib.states import project
from attractor_lib.vector_hopfield import VectorHopfield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fields(kappa, dim, n=400_000):
    """kappa e + z, many times."""
    h = torch.randn(n, dim, generator=generator(), dtype=torch.float64)
    h[:, 0] += kappa
    return h


@pytest.mark.parametrize("dim", [3, 5, 11])
@pytest.mark.parametrize("kappa", [0.4, 2.0, 7.0])
def test_integrals_are_the_means_over_gaussian_fields(kappa, dim):
    h = fields(kappa, dim)
    length = h.norm(dim=-1)
    for samples, value in (
        (h[:, 0] / length, mean_alignment(kappa, dim)),
        ((1 - 1 / dim) / length, mean_response(kappa, dim)),
    ):
        assert abs(samples.mean() - value) < 4 * samples.std() / len(samples) ** 0.5


def test_at_one_component_they_are_those_of_signs():
    for kappa in (0.0, 0.3, 1.7, 6.0):
        assert mean_alignment(kappa, 1) == pytest.approx(math.erf(kappa / 2**0.5), abs=1e-12)
        delta = math.sqrt(2 / math.pi) * math.exp(-(kappa**2) / 2)
        assert mean_response(kappa, 1) == pytest.approx(delta, abs=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 5, 40])
def test_the_integrals_hold_for_any_kappa(dim):
    """The response is the divergence of the mean direction: [A' + (d-1) A / kappa] / d."""
    for kappa in (0.05, 1.0, 30.0, 2000.0):
        step = 1e-4 * kappa
        slope = mean_alignment(kappa + step, dim) - mean_alignment(kappa - step, dim)
        divergence = slope / (2 * step) + (dim - 1) * mean_alignment(kappa, dim) / kappa
        assert mean_response(kappa, dim) == pytest.approx(divergence / dim, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dim", [2, 7])
def test_denoising_load_is_where_the_first_step_changes_nothing(dim):
    for m0 in (0.05, 0.5, 0.95):
        load = denoising_load(m0, dim)
        assert first_step(m0, load, dim) == pytest.approx(m0, abs=1e-9)
        assert first_step(m0, 0.9 * load, dim) > m0 > first_step(m0, 1.1 * load, dim)
    assert denoising_load(0.5, 1000) == pytest.approx(750, rel=2e-3)


def test_critical_load_at_one_component_and_at_many():
    assert critical_load(1) == pytest.approx(0.137906, abs=1e-6)  # Hopfield's
    assert critical_load(4000) * 4000 == pytest.approx(4 / 27, rel=1e-3)
    for kappa, dim in ((40.0, 1000), (100.0, 4000)):
        assert load_of(kappa, dim) == pytest.approx(kappa**4 / (kappa**2 + dim) ** 3, rel=1e-2)


@pytest.mark.parametrize("dim", [1, 2, 5, 23])
def test_retrieval_solves_its_three_equations_on_the_branch_of_the_largest_overlap(dim):
    critical = critical_load(dim)
    found = [retrieval(share * critical, dim) for share in (1e-3, 0.1, 0.6, 0.999)]
    for state, share in zip(found, (1e-3, 0.1, 0.6, 0.999)):
        kappa = state.m / state.noise
        assert state.m == pytest.approx(mean_alignment(kappa, dim), abs=1e-12)
        assert state.response == pytest.approx(mean_response(kappa, dim) / state.noise, abs=1e-12)
        noise = math.sqrt(share * critical) / dim / (1 - state.response)
        assert state.noise == pytest.approx(noise, rel=1e-8)
    assert [s.m for s in found] == sorted((s.m for s in found), reverse=True)
    assert retrieval(1.001 * critical, dim) is None
    assert retrieval(critical, dim).m == pytest.approx(found[-1].m, abs=0.02)


def test_a_network_at_rest_near_its_pattern_has_the_predicted_overlap():
    n_sites, dim, load = 1500, 3, 0.024
    overlaps = []
    for seed in range(3):
        patterns = random_patterns(36, n_sites, dim, generator(seed), dtype=torch.float64)
        x = patterns[:12]
        end = run(VectorHopfield(patterns).update, x, 200, observe=lambda s: s[:0]).final
        overlaps.append(overlap(end, x))
    overlaps, state = torch.cat(overlaps), retrieval(load, dim)
    assert abs(overlaps.mean() - state.m) < 0.003
    bare = mean_alignment(state.m * dim / math.sqrt(load), dim)  # crosstalk that is not amplified
    assert bare - state.m > 0.02


def single_sites(memory, gamma, fields, x0, probe):
    """The process with given noise: x(T) of all samples."""
    sites = SingleSite(x0, probe, gamma)
    for t, eta in enumerate(fields):
        sites.step(0.3 + 0.1 * t, eta, memory[t, :t])
    return sites


def test_the_response_is_that_of_finite_differences():
    dim, n, steps, size = 5, 7, 4, 1e-6
    x0, probe = random_states(n, dim), random_states(n, dim, seed=1) * dim**0.5
    memory = torch.tril(torch.rand(steps, steps, generator=generator(), dtype=torch.float64), -1)
    eta = torch.randn(steps, n, dim, generator=generator(2), dtype=torch.float64)
    sites = single_sites(memory, 0.7, eta, x0, probe)
    for s in range(steps):
        ends = []
        for sign in (1, -1):
            pushed = eta.clone()
            pushed[s] += sign * size * probe
            ends.append(single_sites(memory, 0.7, pushed, x0, probe).x[-1])
        expected = (ends[0] - ends[1]) / (2 * size)
        torch.testing.assert_close(sites.moved[-1][s], expected, atol=1e-7, rtol=0)
        trace = (expected * probe).sum(-1).mean() / dim
        torch.testing.assert_close(sites.response()[s], trace, atol=1e-7, rtol=0)


def test_the_process_is_that_of_its_equation():
    dim, n, gamma = 3, 5, 0.4
    x0, probe = random_states(n, dim), random_states(n, dim, seed=1)
    eta = torch.randn(3, n, dim, generator=generator(2), dtype=torch.float64)
    memory = torch.tensor([[0.0, 0, 0], [0.6, 0, 0], [-0.2, 0.5, 0]], dtype=torch.float64)
    x = single_sites(memory, gamma, eta, x0, probe).x
    for t in range(3):
        h = eta[t] + gamma * x[t] + sum(memory[t, s] * x[s] for s in range(t))
        h[:, 0] += 0.3 + 0.1 * t
        torch.testing.assert_close(x[t + 1], h / h.norm(dim=-1, keepdim=True))


def test_dynamics_begins_with_the_first_step_and_keeps_to_its_definitions():
    found = dynamics(0.4, 0.5, 5, 4, generator(), n_samples=100_000)
    assert found.m[0] == pytest.approx(0.4, abs=1e-12)
    assert abs(found.m[1] - first_step(0.4, 0.5, 5)) < 0.004
    assert torch.equal(found.correlation, found.correlation.mT)
    torch.testing.assert_close(found.correlation.diagonal(), torch.ones(5, dtype=torch.float64))
    assert torch.equal(found.response, found.response.tril(-1))
    kappa = 0.4 * 5 / math.sqrt(0.5)
    response = mean_response(kappa, 5) * 5 / math.sqrt(0.5)
    assert abs(found.response[1, 0] - response) < 0.02


def simulated(load, dim, n_steps, gamma=0.0, n_sites=1500, networks=4, starts=20):
    """m(t) of networks: mean over starts, and its standard error over networks and starts."""
    all_m = []
    for seed in range(networks):
        draw = generator(100 + seed)
        patterns = random_patterns(round(load * n_sites), n_sites, dim, draw, dtype=torch.float64)
        x = patterns[:starts]
        x0, _ = Rotate(math.acos(0.5))(x, draw)
        update = VectorHopfield(patterns, gamma=gamma).update
        all_m.append(overlap(run(update, x0, n_steps).states, x))
    m = torch.cat(all_m, 1)
    return m.mean(1), m.std(1) / m.shape[1] ** 0.5


def tolerance(error):
    """Of order 1/N, and three standard errors."""
    return 0.004 + 3 * error.max()


@pytest.mark.parametrize("load, gamma", [(0.03, 0.0), (0.2, 0.0), (0.2, 1.5)])
def test_dynamics_is_that_of_a_network(load, gamma):
    m, error = simulated(load, 4, 12, gamma)
    theory = dynamics(0.5, load, 4, 12, generator(), gamma).m
    assert (m - theory).abs().max() < tolerance(error)


def left_out(term, G, root, load, dim):
    """`crosstalk` with a term left out, or of the wrong sign."""
    (factor, memory), bare = crosstalk(G, root, load, dim), crosstalk(0 * G, root, load, dim)
    return {
        "Gamma": (factor, bare[1]),
        "sign of Gamma": (factor, -memory),
        "(1-G)^-1 in the noise": (bare[0], memory),
        "sign of G": crosstalk(-G, root, load, dim),
        "Q": (crosstalk(G, torch.eye(len(G), dtype=G.dtype), load, dim)[0], memory),
    }[term]


@pytest.mark.parametrize(
    "term", ["Gamma", "sign of Gamma", "(1-G)^-1 in the noise", "sign of G", "Q"]
)
def test_no_term_of_the_dynamics_can_be_left_out(term, monkeypatch):
    m, error = simulated(0.2, 4, 12)
    monkeypatch.setattr(mean_field, "crosstalk", partial(left_out, term))
    theory = dynamics(0.5, 0.2, 4, 12, generator()).m
    assert (m - theory).abs().max() > 2 * tolerance(error)


def test_gamma_is_no_other_number():
    m, error = simulated(0.2, 4, 12, 1.5)
    for gamma in (1.2, 1.8):
        theory = dynamics(0.5, 0.2, 4, 12, generator(), gamma).m
        assert (m - theory).abs().max() > 2 * tolerance(error)


def test_samples_agree_with_their_own_error():
    found = [dynamics(0.5, 0.1, 3, 8, generator(s), n_samples=4_000).m for s in range(4)]
    more = dynamics(0.5, 0.1, 3, 8, generator(9), n_samples=40_000).m
    found = torch.stack(found)
    assert ((found.mean(0) - more).abs() < 0.01).all() and found.std(0).max() < 0.02


def test_what_moves_no_more_is_no_trouble():
    """Without load there is no noise: x(t) is the pattern from t = 1 on, and Q has rank 2."""
    found = dynamics(0.5, 0.0, 3, 6, generator(), n_samples=50)
    torch.testing.assert_close(found.m[1:], torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: first_step(1.2, 0.1, 3), "m0 must be a finite number from 0 to 1, got 1.2"),
        (lambda: first_step(0.5, 0.0, 3), "load must be a finite number > 0, got 0.0"),
        (lambda: first_step(0.5, 0.1, 0), "dim must be a whole number >= 1, got 0"),
        (lambda: denoising_load(1, 3), "m0 must be below 1"),
        (lambda: mean_alignment(math.nan, 3), "kappa must be a finite number >= 0, got nan"),
        (lambda: load_of(-1.0, 3), "kappa must be a finite number >= 0, got -1.0"),
        (lambda: critical_load(2.5), "dim must be a whole number >= 1, got 2.5"),
        (lambda: retrieval(-0.1, 3), "load must be a finite number > 0, got -0.1"),
        (lambda: dynamics(0.5, 0.1, 1, 3, generator()), "dim must be a whole number >= 2, got 1"),
        (lambda: dynamics(0.5, 0.1, 3, 0, generator()), "n_steps must be a whole number >= 1"),
        (lambda: dynamics(0.5, 0.1, 3, 3, 0), "generator must be a torch.Generator, got 0"),
        (lambda: dynamics(0.0, 0.0, 3, 3, generator()), "must not all be 0"),
        (lambda: dynamics(0.5, 0.1, 3, 3, generator(), -1.0), "gamma must be a finite number >= 0"),
        (lambda: SingleSite(torch.ones(2, 3), torch.ones(2, 3)), "tokens of norm 1"),
        (lambda: SingleSite(torch.eye(3), torch.ones(2, 3)), "must both have shape"),
        (
            lambda: SingleSite(torch.eye(3), torch.eye(3)).step(1.0, torch.eye(3), torch.ones(2)),
            r"memory must have shape \(0,\), got \(2,\)",
        ),
    ],
)
def test_refuses_what_it_cannot_use(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_retrieval_is_reached_by_the_dynamics():
    """Below the critical load the two theories meet, whatever the self-term."""
    state = retrieval(0.02, 4)
    for gamma in (0.0, 1.0):
        found = dynamics(1.0, 0.02, 4, 60, generator(), gamma, n_samples=4_000)
        assert abs(found.m[-1] - state.m) < 0.004


def test_the_reaction_drops_out_of_the_direction():
    """A field along the token moves no fixed point: P[h] = P[h + r P[h]] for r >= 0."""
    h = fields(1.0, 4, 50)
    n = project(h, otherwise=h)
    torch.testing.assert_close(project(h + 0.7 * n, otherwise=h), n)
