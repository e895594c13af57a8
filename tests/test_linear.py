import itertools
from dataclasses import replace

import pytest
import torch
from conftest import random_states

from attractor_lib.corruption import HideTokens, no_corruption
from attractor_lib.linear import (
    Moments,
    best_self_term,
    clean_moments,
    hidden_moments,
    learning_curve,
    overlap_in_time,
    precision,
    sampled_moments,
    step_matrix,
    with_hidden,
)
from attractor_lib.states import project

N, D = 5, 3


def examples(n=40):
    return random_states(n, N, D, seed=3)


def masked(x, fill, k):
    """Every choice of k hidden tokens for every example: states, targets, sites."""
    sites = torch.zeros(0, N, dtype=torch.bool)
    for hidden in itertools.combinations(range(N), k):
        row = torch.zeros(1, N, dtype=torch.bool)
        row[0, list(hidden)] = True
        sites = torch.cat([sites, row])
    states = torch.where(sites[:, None, :, None], fill, x)
    return states.flatten(0, 1), x.repeat(len(sites), 1, 1), sites.repeat_interleave(len(x), 0)


def direct(states, targets, sites, i, own=False):
    """The least-squares map onto site i from the states where it is predicted, and its errors."""
    used = sites[:, i]
    others = torch.ones(N, dtype=torch.bool)
    others[i] = own
    inputs = torch.cat([states[used][:, others].flatten(1), torch.ones(int(used.sum()), 1)], 1)
    map_ = torch.linalg.lstsq(inputs, targets[used, i], driver="gelsd").solution
    return inputs @ map_, (inputs @ map_ - targets[used, i]).square().mean(0)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("least, k", [(1, 1), (2, 2), (3, 3), (1, 3), (5, 5)])
def test_hidden_tokens_equal_a_direct_solve_over_all_masks(least, k):
    x, fill = examples(), random_states(1, N, D, seed=7)[0]
    moments = hidden_moments(x, fill, k, least)
    found, error = moments.solve(), moments.error(moments.solve())
    # as often as each k is drawn: a mask of k tokens has the chance 1 / C(N, k)
    parts = [masked(x, fill, j) for j in range(least, k + 1)]
    copies = [60 // (len(p[0]) // len(x)) for p in parts]
    states, targets, sites = (
        torch.cat([p[a].repeat(c, *[1] * (p[a].ndim - 1)) for p, c in zip(parts, copies)])
        for a in range(3)
    )
    for i in range(N):
        predicted, squares = direct(states, targets, sites, i)
        torch.testing.assert_close(found.field(states[sites[:, i]])[:, i], predicted)
        torch.testing.assert_close(error[i], squares)


def test_the_error_of_a_predictor_elsewhere_is_that_of_its_states():
    x, fill = examples(), random_states(1, N, D, seed=7)[0]
    predictor = hidden_moments(x, fill, 2).solve()
    for k in (1, 3):
        states, targets, sites = masked(x, fill, k)
        squares = (predictor.field(states) - targets).square()
        mean = torch.stack([squares[sites[:, i], i].mean(0) for i in range(N)])
        torch.testing.assert_close(hidden_moments(x, fill, k).error(predictor), mean)
    clean = sampled_moments(x, no_corruption, None)
    squares = (predictor.field(x) - x).square().mean(0)
    torch.testing.assert_close(clean.error(predictor), squares)  # from another origin


def test_the_masks_drawn_agree():
    x, fill = examples(), random_states(1, N, D, seed=7)[0]
    predictor = hidden_moments(x, fill, 3, 2).solve()
    states, sites = HideTokens(3, fill, 2)(x.repeat(2000, 1, 1), torch.Generator().manual_seed(0))
    squares = (predictor.field(states) - x.repeat(2000, 1, 1)).square().sum(-1)[sites].mean()
    expected = hidden_moments(x, fill, 3, 2).error(predictor).sum(-1).mean()
    torch.testing.assert_close(squares, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("own", [True, False])
def test_sampled_moments_equal_a_direct_solve(own):
    x, generator = examples(), torch.Generator().manual_seed(1)
    noisy = project(x + 0.3 * torch.randn(x.shape, generator=generator), x)
    everywhere = torch.ones(len(x), N, dtype=torch.bool)
    moments = sampled_moments(x, lambda *_: (noisy, everywhere), None, sees_itself=own)
    found = moments.solve()
    for i in range(N):
        predicted, squares = direct(noisy, x, everywhere, i, own)
        torch.testing.assert_close(found.field(noisy)[:, i], predicted)
        torch.testing.assert_close(moments.error(found)[i], squares)
    torch.testing.assert_close(found(noisy), project(found.field(noisy), noisy))


@pytest.mark.parametrize("own", [True, False])
def test_ridge_equals_a_solve_for_each_site(own):
    x, ridge = examples(), 0.03
    moments = replace(hidden_moments(x, x.mean(0), 2), sees_itself=own)
    found = moments.solve(ridge)
    for i in range(N):
        used = torch.ones(N * D + 1, dtype=torch.bool)
        if not own:
            used[i * D : (i + 1) * D] = False
        penalty = ridge * torch.eye(int(used.sum()), dtype=torch.float64)
        penalty[-1, -1] = 0
        S, B = moments.second[used][:, used], moments.cross[used, i]
        A = torch.zeros(D, N * D + 1, dtype=torch.float64)
        A[:, used] = torch.linalg.solve(S + penalty, B).mT
        torch.testing.assert_close(found.matrix[i].flatten(1), A[:, :-1], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found.bias[i], A[:, -1], rtol=1e-9, atol=1e-11)


def test_ridge_minimises_error_and_penalty():
    moments, ridge = hidden_moments(examples(8), torch.zeros(N, D), 2), 0.1
    best = moments.solve(ridge)

    def loss(predictor):
        return moments.error(predictor).sum() + ridge * predictor.matrix.square().sum()

    for sign in (-1, 1):
        moved = moments.solve(ridge)
        moved.matrix.add_(sign * 1e-3 * (best.matrix != 0))
        assert loss(moved) > loss(best)
    least = moments.solve()  # fewer examples than inputs: the best of least norm
    assert moments.error(least).sum() < moments.error(best).sum()
    assert best.matrix.norm() < least.matrix.norm()


def test_what_is_refused():
    x, fill = examples(), torch.zeros(N, D)
    with pytest.raises(ValueError, match="1 <= least <= n_hidden <= 5, got least=6"):
        hidden_moments(x, fill, 6)
    with pytest.raises(ValueError, match="as fill is"):
        hidden_moments(x[:, :4], fill, 1)
    with pytest.raises(ValueError, match="there is hidden_moments"):
        sampled_moments(x, HideTokens(2, fill), torch.Generator())
    with pytest.raises(ValueError, match="passes >= 1, got 40 and 0"):
        sampled_moments(x, no_corruption, None, passes=0)
    with pytest.raises(ValueError, match="ridge must be a finite number >= 0, got -1"):
        hidden_moments(x, fill, 1).solve(-1)
    with pytest.raises(ValueError, match=r"s must be \(batch, 5, 3\)"):
        hidden_moments(x, fill, 1).solve().field(x[:, :4])


def test_all_numbers_of_hidden_tokens_come_from_the_clean_moments():
    x, fill = examples(), random_states(1, N, D, seed=7)[0]
    clean, sampled = clean_moments(x, fill), sampled_moments(x, no_corruption, None, 1, False)
    for ridge in (0.0, 0.1):
        predictor = clean.solve(ridge)
        torch.testing.assert_close(predictor.field(x), sampled.solve(ridge).field(x))
        torch.testing.assert_close(clean.error(predictor), sampled.error(predictor))
    for name in ("second", "cross", "square"):
        torch.testing.assert_close(getattr(with_hidden(clean, 1), name), getattr(clean, name))
    with pytest.raises(ValueError, match="others alone"):
        with_hidden(sampled_moments(x, no_corruption, None), 1)


def gaussian(sites, d, seed=0):
    """Mean and covariance with eigenvalues over two decades, and the moments of the two."""
    generator, n = torch.Generator().manual_seed(seed), sites * d
    turn = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
    C = turn @ torch.logspace(-2, 0, n).diag() @ turn.mT
    mean = torch.randn(n, generator=generator)
    second = torch.zeros(n + 1, n + 1)
    second[:-1, :-1], second[-1, :-1], second[:-1, -1] = C + mean.outer(mean), mean, mean
    second[-1, -1] = 1
    square = second.diagonal()[:-1].view(sites, d)
    cross = second[:, :-1].unflatten(1, (sites, d))
    return mean, C, Moments(second, cross, square, torch.zeros(sites, d), False)


def drawn(mean, C, n, sites, seed):
    noise = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed))
    return (mean + noise @ torch.linalg.cholesky(C).mT).view(n, sites, -1)


@pytest.mark.parametrize("n, ridge", [(15, 1e-6), (30, 0.02), (41, 0.02), (60, 0.1), (160, 1e-6)])
def test_learning_curve_equals_the_mean_of_many_regressions(n, ridge):
    sites, d = 3, 20  # 40 inputs a site
    mean, C, everything = gaussian(sites, d)
    train, test = (errors[0].mean() for errors in learning_curve(everything, [n], ridge))
    found = []
    for seed in range(60):
        moments = clean_moments(drawn(mean, C, n, sites, seed), torch.zeros(sites, d))
        predictor = moments.solve(ridge)
        found.append((moments.error(predictor).mean(), everything.error(predictor).mean()))
    on_train, on_test = torch.tensor(found).mean(0)
    # the constant costs one more part in n; corrections to the theory are of the order 1/n too
    torch.testing.assert_close(on_test, test * (1 + 1 / n), rtol=0.06, atol=0)
    torch.testing.assert_close(on_train, train, rtol=0.06, atol=1e-6)


def test_learning_curve_without_ridge_is_the_classical_one():
    _, _, everything = gaussian(3, 20)
    v = everything.error(everything.solve())
    train, test = learning_curve(everything, [81, 401], 1e-12)
    for row, n in enumerate((80, 400)):
        torch.testing.assert_close(test[row], v / (1 - 40 / n), rtol=1e-6, atol=0)
        torch.testing.assert_close(train[row], v * (1 - 40 / n), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="ridge must be a finite number > 0"):
        learning_curve(everything, [10], 0.0)
    with pytest.raises(ValueError, match="numbers must each be at least 2"):
        learning_curve(everything, [1, 10], 0.1)


def test_the_best_self_term_minimises_the_error_of_the_mixture():
    x, generator = examples(200), torch.Generator().manual_seed(0)
    s = x + 0.3 * torch.randn(x.shape, generator=generator) - 0.1 * x
    h = 0.8 * x + 0.2 * s + 0.2 * torch.randn(x.shape, generator=generator)

    def error(gamma):
        return ((h + gamma * s) / (1 + gamma) - x).square().mean()

    best = best_self_term(h, s, x)
    assert 0.01 < best < 10
    assert all(error(best) < error(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    assert best_self_term(x, s, x) == 0 and best_self_term(h, x, x) == float("inf")


def test_the_best_self_term_of_a_gaussian_is_the_posterior_mean():
    generator, v, sigma = torch.Generator().manual_seed(0), 0.3, 0.5
    h, e, f = (torch.randn(40000, N, D, generator=generator) for _ in range(3))
    x = h + v**0.5 * e
    assert best_self_term(h, x + sigma * f, x) == pytest.approx(v / sigma**2, rel=0.02)


def one_by_one(predictor, x):
    x = x.clone()
    for i in range(N):
        x[:, i] = predictor.field(x)[:, i]
    return x


def test_a_sweep_updates_each_site_at_the_newest_tokens():
    x, fill = examples(), random_states(1, N, D, seed=7)[0]
    predictor, before = clean_moments(x, fill).solve(0.1), x.clone()
    expected = x.clone()
    for i in range(N):
        expected[:, i] = predictor.update(expected)[:, i]
    torch.testing.assert_close(predictor.sweep(x), expected)
    assert torch.equal(x, before) and (predictor.sweep(x) - predictor.update(x)).abs().max() > 0.01


@pytest.mark.parametrize("sequential", [False, True])
def test_overlap_in_time_is_that_of_the_runs(sequential):
    x, fill = examples(), random_states(1, N, D, seed=7)[0]
    moments = clean_moments(x, fill)
    predictor = with_hidden(moments, 2).solve(0.01)
    m = overlap_in_time(moments, step_matrix(predictor, sequential), 6)
    state = x
    for t in range(7):
        torch.testing.assert_close(m[t], 1 - (state - x).square().sum() / (2 * N * len(x)))
        state = one_by_one(predictor, state) if sequential else predictor.field(state)
    assert m[1] - m[6] > 0.01
    with pytest.raises(ValueError, match="as the moments are"):
        overlap_in_time(moments, torch.eye(3), 2)


def test_regression_on_the_others_is_one_minus_the_precision_over_its_blocks():
    moments, ridge = clean_moments(examples(), torch.zeros(N, D)), 0.01
    omega, A = precision(moments, ridge), moments.solve(ridge).matrix.reshape(N * D, N * D)
    blocks = torch.block_diag(*(omega[i : i + D, i : i + D] for i in range(0, N * D, D)))
    torch.testing.assert_close(A, torch.eye(N * D) - torch.linalg.solve(blocks, omega))
