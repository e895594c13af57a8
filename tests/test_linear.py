import itertools

import pytest
import torch
from conftest import random_states

from attractor_lib.corruption import HideTokens, no_corruption
from attractor_lib.linear import hidden_moments, sampled_moments
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
