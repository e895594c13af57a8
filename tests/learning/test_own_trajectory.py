import pytest
import torch
from conftest import BATCH, D, N, random_network, random_states

from attractor_lib.corruption import HideTokens, mean_token, no_corruption
from attractor_lib.dynamics import run
from attractor_lib.learning import prediction_rule
from attractor_lib.learning.own_trajectory import OwnTrajectory, PersistentTrajectories


def batches():
    for seed in range(1, 5):
        sites = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(seed)) < 0.5
        yield (
            random_states(BATCH, N, D, seed=seed),
            random_states(BATCH, N, D, seed=10 + seed),
            sites,
        )


def same(a, b):
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][name], b[1][name]) for name in b[1])


def test_old_batches_come_back_in_turn_n_steps_on_with_their_own_target_and_clamped_sites(network):
    rule = PersistentTrajectories(prediction_rule, n_steps=3, renewal=1e-12, n_batches=2)
    first, second, third, fourth = batches()
    for batch in (first, second):
        assert same(rule(network, *batch), prediction_rule(network, *batch))
    for given, old in ((third, first), (fourth, second)):
        s, x, sites = old
        s = run(network.update, s, 3, clamped=~sites).final
        assert same(rule(network, *given), prediction_rule(network, s, x, sites))
    s, x, sites = first
    s = run(network.update, s, 6, clamped=~sites).final
    assert same(rule(network, *third), prediction_rule(network, s, x, sites))


def test_the_trajectory_goes_on_with_the_couplings_as_they_are_now(network):
    rule = PersistentTrajectories(prediction_rule, n_steps=1, renewal=1e-12, n_batches=1)
    first, second, *_ = batches()
    rule(network, *first)
    network.bias += 1
    s = run(network.update, first[0], 1, clamped=~first[2]).final
    assert same(rule(network, *second), prediction_rule(network, s, *first[1:]))


def test_renewal_one_is_the_plain_rule_and_in_between_rows_are_renewed_whole(network):
    rule = PersistentTrajectories(prediction_rule, renewal=1, n_batches=1)
    for batch in batches():
        assert same(rule(network, *batch), prediction_rule(network, *batch))
    seen = []
    rule = PersistentTrajectories(
        lambda network, *batch: seen.append(batch), n_steps=2, renewal=0.5, n_batches=1
    )
    first, second, *_ = batches()
    rule(network, *first), rule(network, *second)
    old = run(network.update, first[0], 2, clamped=~first[2]).final
    renewed = torch.tensor([torch.equal(row, new) for row, new in zip(seen[1][1], second[1])])
    assert 0 < renewed.sum() < BATCH
    for row in range(BATCH):
        expected = second if renewed[row] else (old, *first[1:])
        assert all(torch.equal(got[row], value[row]) for got, value in zip(seen[1], expected))


def test_own_trajectory_takes_a_share_of_the_batches_on_with_the_other_sites_clamped():
    network, tokens = random_network(2), random_states(7, 5, 11)
    hide = HideTokens(2, mean_token(tokens))
    corrupt, draw = (
        OwnTrajectory(network.update, hide, max_steps=3, share=0.5),
        torch.Generator().manual_seed(0),
    )
    seen = []
    for _ in range(400):
        before = draw.get_state()
        state, sites = corrupt(tokens, draw)
        s, expected_sites = hide(tokens, torch.Generator().set_state(before))
        assert torch.equal(sites, expected_sites) and torch.equal(state[~sites], tokens[~sites])
        way = torch.cat(
            [s[None], *(run(network.update, s, n, clamped=~sites).final[None] for n in (1, 2, 3))]
        )
        seen.append((way == state).flatten(1).all(1).nonzero().item())
    steps = torch.tensor(seen).bincount(minlength=4) / 400
    torch.testing.assert_close(steps, torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]), atol=0.08, rtol=0)


@pytest.mark.parametrize("max_steps, share", [(0, 0.5), (2, 1.5), (2, -0.1)])
def test_own_trajectory_refuses_arguments_out_of_range(max_steps, share):
    with pytest.raises(
        ValueError,
        match=f"max_steps must be at least 1 and share from 0 to 1, got {max_steps} and {share}",
    ):
        OwnTrajectory(torch.neg, no_corruption, max_steps, share)


@pytest.mark.parametrize(
    "arguments", [{"n_steps": 0}, {"renewal": 0}, {"renewal": 1.1}, {"n_batches": 0}]
)
def test_refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="must be at least 1 and renewal in"):
        PersistentTrajectories(prediction_rule, **arguments)


def test_refuses_a_batch_of_another_size(network):
    rule = PersistentTrajectories(prediction_rule, n_batches=1)
    first, *_ = batches()
    rule(network, *first)
    with pytest.raises(ValueError, match="shape of the batches kept"):
        rule(network, *(part[:3] for part in first))
