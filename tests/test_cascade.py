"""The cascade against its equations, written out stage by stage and site by site."""

import pytest
import torch
from conftest import BATCH, HEADS, RANK, D, N, random_network, random_states, randomised
from torch.nn import functional as F

from attractor_lib.cascade import AfterStages, AmongStages, Cascade, start_from
from attractor_lib.corruption import HideTokens, mean_token, no_corruption
from attractor_lib.couplings import SharedFactors
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train

HIDDEN, LENGTH = HEADS * RANK, 0.7
ALL = torch.ones(N, dtype=torch.bool)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def stage(n_known, rank=RANK, gamma=0.0):
    return randomised(AttractorNetwork(N, D + n_known, HEADS, rank, 1.7, gamma, n_known=n_known))


def hidden_by_hand(network, state):
    """z_i = rho P[sum_j a^h_i<-j k^h_ij of all heads]"""
    a, k = network.attention(state), network.couplings.keys(state)
    o = (a[..., None] * k).sum(-2)
    return LENGTH * F.normalize(torch.cat([o[:, h] for h in range(HEADS)], -1), dim=-1)


def test_without_hidden_spins_each_stage_sees_what_the_one_before_leaves():
    tokens = random_states(BATCH, N, D)
    hide = HideTokens(3, mean_token(tokens), least=1)
    first, second = (random_network(None, beta=beta) for beta in (1.0, 4.0))
    cascade = Cascade().add(first).add(second)
    state, sites = AfterStages(cascade, hide)(tokens, generator())
    start, same = hide(tokens, generator())
    middle = torch.where(same[..., None], first.update(start), start)
    assert torch.equal(sites, same)
    last = torch.where(same[..., None], second.update(middle), start)
    torch.testing.assert_close(state, last, atol=1e-14, rtol=0)
    torch.testing.assert_close(cascade(start, same, 1), middle, atol=1e-14, rtol=0)
    assert torch.equal(AfterStages(Cascade(), hide)(tokens, generator())[0], start)


@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("keeps_given", [False, True])
def test_hidden_spins_are_what_the_equations_say(rank, keeps_given):
    given, sites = random_states(BATCH, N, D), torch.rand(BATCH, N, generator=generator()) < 0.5
    cascade = Cascade(True, keeps_given, LENGTH)
    assert cascade.n_known(D) == 0
    first = stage(0, rank, gamma=0.4)
    cascade.add(first)
    known = HEADS * (rank or D) + (D if keeps_given else 0)
    assert cascade.n_known(D) == known or rank is None
    second = stage(cascade.n_known(D), rank, gamma=0.2)
    cascade.add(second)
    x = torch.where(sites[..., None], first.update(given), given)
    parts = [x, hidden_by_hand(first, given), *([given] if keeps_given else [])]
    middle = torch.cat(parts, -1)
    last = torch.where(sites[..., None], second.update(middle)[..., :D], given)
    found = list(cascade.states(given, sites))
    assert torch.equal(found[0], given)
    torch.testing.assert_close(found[1], middle, atol=1e-12, rtol=0)
    torch.testing.assert_close(found[2][..., :D], last, atol=1e-12, rtol=0)
    assert cascade(given, sites).shape == given.shape


@pytest.mark.parametrize("keeps_given", [False, True])
def test_one_network_may_be_all_stages(keeps_given):
    """Its hidden spins are 0 at the start."""
    given, sites = random_states(BATCH, N, D), torch.rand(BATCH, N, generator=generator()) < 0.5
    network = stage(HIDDEN + (D if keeps_given else 0))
    cascade = Cascade(True, keeps_given, LENGTH).add(network).add(network).add(network)
    assert len(list(cascade.parameters())) == len(list(network.parameters()))
    x, z = given, given.new_zeros(BATCH, N, HIDDEN)
    for state in cascade.states(given, sites):
        s = torch.cat([x, z, *([given] if keeps_given else [])], -1)
        torch.testing.assert_close(state, s, atol=1e-12, rtol=0)
        x = torch.where(sites[..., None], network.update(s)[..., :D], given)
        z = hidden_by_hand(network, s)


def test_a_recurrent_network_learns_at_all_states_but_the_last():
    given, sites = random_states(BATCH, N, D), torch.ones(BATCH, N, dtype=torch.bool)
    network = stage(HIDDEN)
    cascade = Cascade(True).add(network).add(network).add(network)
    among, rng = AmongStages(cascade, lambda tokens, _: (tokens, sites)), generator()
    states, drawn = list(cascade.states(given, sites)), set()
    for _ in range(60):
        came, same = among(given, rng)
        drawn |= {t for t, state in enumerate(states) if torch.equal(came, state)}
        assert same is sites
    assert drawn == {0, 1, 2}
    before = repr(among)
    network.bias += 1
    assert repr(among) == before  # as it learns, or no training could go on from a checkpoint


def test_a_stage_never_changes_those_before():
    tokens = random_states(40, N, D)
    hide, cascade = HideTokens(2, mean_token(tokens)), Cascade(hidden=True).add(stage(0))
    before = {name: p.clone() for name, p in cascade.state_dict().items()}
    config = TrainingConfig(epochs=1, batch_size=20)
    second = stage(HIDDEN)
    train(second, prediction_rule, tokens, AfterStages(cascade, hide), config, report=None)
    assert all(torch.equal(p, before[name]) for name, p in cascade.state_dict().items())


@pytest.mark.parametrize("kind", ["full", "low rank"])
@pytest.mark.parametrize("known", [0, HIDDEN])
def test_a_stage_may_start_as_the_one_before(known, kind):
    if kind == "full":
        form = {"gamma": 0.3, "beta": 1.7}
        before = randomised(AttractorNetwork(N, D + known, **form, n_known=known))
        after = randomised(AttractorNetwork(N, D + HIDDEN, **form, n_known=HIDDEN))
    else:
        before, after = stage(known), stage(HIDDEN)
    start_from(after, before)
    x = random_states(BATCH, N, D)
    known_of = {n: torch.zeros(BATCH, N, n, dtype=torch.float64) for n in (known, HIDDEN)}
    field = before.field(torch.cat([x, known_of[known]], -1))
    torch.testing.assert_close(
        after.field(torch.cat([x, known_of[HIDDEN]], -1)), field, atol=1e-12, rtol=0
    )
    of_both = (next(network.couplings.parameters()) for network in (before, after))
    assert len({p.data_ptr() for p in of_both}) == 2


@pytest.mark.parametrize("form", [{"n_heads": HEADS + 1}, {"rank": RANK + 1}, {"n_sites": N + 1}])
def test_a_stage_of_other_sizes_does_not_start_as_the_one_before(form):
    sizes = {"n_sites": N, "n_heads": HEADS, "rank": RANK} | form
    other = AttractorNetwork(dim=D + HIDDEN, n_known=HIDDEN, **sizes).double()
    with pytest.raises(ValueError, match="stage may differ from before in what it knows besides"):
        start_from(other, stage(0))
    with pytest.raises(ValueError, match="in what it knows besides"):
        start_from(stage(0), stage(HIDDEN))


def test_shared_factors_and_other_modules_may_be_stages():
    given, sites = random_states(BATCH, N, D), torch.ones(N, dtype=torch.bool)
    couplings = SharedFactors.random(HEADS, N, D, RANK, 2)
    network = AttractorNetwork(N, D, couplings=couplings).double()
    cascade = Cascade(hidden=True).add(network)
    assert cascade.seen(given, sites).shape == (BATCH, N, D + HIDDEN)
    assert torch.equal(Cascade().add(torch.nn.Tanh())(given, sites), given.tanh())


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda c: c.add(stage(2)), "n_known=6, got 2"),
        (lambda c: Cascade(hidden=True).add(stage(2)), "n_known=0 or 6, got 2"),
        (lambda c: c.add(torch.nn.Tanh()), "has hidden spins"),
        (
            lambda c: c.add(AttractorNetwork(N, D + 2 + HIDDEN, n_known=HIDDEN)),
            "sites and free components",
        ),
        (lambda c: AmongStages(c.add(stage(HIDDEN)), no_corruption), "one network, got 2"),
        (lambda c: AmongStages(Cascade(), no_corruption), "one network, got 0"),
        (lambda c: Cascade(True).add(stage(HIDDEN)).seen(random_states(2, N, D + 1), ALL), "shape"),
        (lambda c: c(random_states(BATCH, N, D), ALL, 2), "n_stages must be .* from 0 to 1, got 2"),
        (lambda c: Cascade(length=0), "length must be a finite number > 0, got 0"),
        (lambda c: c(random_states(BATCH, N, D), torch.ones(N)), "sites must be boolean"),
    ],
)
def test_refuses_what_does_not_fit(add, message):
    cascade = Cascade(hidden=True).add(stage(0))
    with pytest.raises(ValueError, match=message):
        add(cascade)


def test_a_corruption_tells_cascades_apart():
    """So a checkpoint is refused after other stages, not gone on with."""

    def made(seed):
        generator = torch.Generator().manual_seed(seed)
        return Cascade().add(AttractorNetwork(4, 5, generator=generator))

    same, other = (repr(AfterStages(made(seed), no_corruption)) for seed in (0, 1))
    assert repr(AfterStages(made(0), no_corruption)) == same != other
