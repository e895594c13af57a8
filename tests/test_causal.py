"""The causal network: exact probabilities, no leak, its rule against autograd and naive loops."""

import itertools
import math

import pytest
import torch

from attractor_lib.causal import CausalCascade, CausalNetwork, StageRule, causal_rule, known_letters
from attractor_lib.corruption import no_corruption
from attractor_lib.couplings import LowRank
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train

V = 3
FORMS = pytest.mark.parametrize("exact", [False, True], ids=["field", "exact"])


def made(exact=False, n_letters=V, std=0.7, seed=1, **sizes):
    """A small network in float64 with parameters of order one."""
    sizes = {"context": 4, "n_known": 2, "n_heads": 2, "rank": 3} | sizes
    network = CausalNetwork(n_letters, exact=exact, **sizes).double()
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.copy_(std * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def texts(*shape, n_letters=V, seed=0):
    return torch.randint(n_letters, shape, generator=torch.Generator().manual_seed(seed))


def cascade(exact=False):
    first = made(exact)
    return CausalCascade(first, made(exact, n_hidden=6, seed=2, n_heads=1, context=3))


def naive(network, text):
    """log p(s_i = v | s_<i) of one text, by loops over the equations of the module."""
    letters, n = text.tolist(), network.n_known
    before = [V] * n + letters  # letter t is before[t + n]
    looked = lambda table, t: sum(table[m, before[t + n - 1 - m]] for m in range(n))  # noqa: E731
    rows = []
    for i in range(len(letters)):
        e = -network.bias - looked(network.W, i)
        for h in range(network.n_heads):
            heard = [j for j in range(-1, i) if i - j <= network.context]
            q, keys = looked(network.Q, i)[h], [looked(network.K, j + 1)[h] for j in heard]
            t = torch.stack([q @ k + network.r[h, i - j - 1] for j, k in zip(heard, keys)])
            u = torch.stack([network.U[:, h] @ k for k in keys])  # (j, v)
            if network.exact:
                e = e - (t[:, None] + u).logsumexp(0)
            else:
                e = e - t.softmax(0) @ u
        rows.append((-e).log_softmax(0))
    return torch.stack(rows)


@FORMS
@pytest.mark.parametrize("context", [1, 4, 9])
def test_log_conditionals_are_those_of_naive_loops(exact, context):
    """Texts longer than the context, too."""
    network, letters = made(exact, context=context), texts(3, 7)
    expected = torch.stack([naive(network, text) for text in letters])
    torch.testing.assert_close(network.log_conditionals(letters), expected, rtol=0, atol=1e-12)


@FORMS
@pytest.mark.parametrize("model", [made, cascade])
def test_probabilities_of_all_texts_sum_to_one(exact, model):
    every = torch.tensor(list(itertools.product(range(V), repeat=6)))
    log_p = model(exact).log_conditionals(every)
    assert log_p.shape == (V**6, 6, V)
    total = log_p.gather(-1, every[..., None]).sum((1, 2)).exp().sum()
    assert abs(total - 1) < 1e-12
    assert (log_p.exp().sum(-1) - 1).abs().max() < 1e-12


@FORMS
@pytest.mark.parametrize("model", [made, cascade])
def test_nothing_leaks_from_the_future(exact, model):
    network, letters = model(exact), texts(5, 80)
    changed = letters.clone()
    changed[:, 70:] = (letters[:, 70:] + 1) % V
    before, after = network.log_conditionals(letters), network.log_conditionals(changed)
    assert torch.equal(before[:, :71], after[:, :71]) and not torch.equal(before, after)


@FORMS
@pytest.mark.parametrize("n_hidden", [0, 5])
@pytest.mark.parametrize("length", [1, 7, 70])
def test_the_rule_is_the_gradient_of_the_likelihood(exact, n_hidden, length):
    network, letters = made(exact, n_hidden=n_hidden, std=0.4), texts(4, length)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(4, length, n_hidden, generator=generator).double() if n_hidden else None
    sites = torch.rand(4, length, generator=generator) < 0.6
    sites[0, 0] = True
    loss, gradients = causal_rule(network, letters, sites=sites, hidden=hidden)
    parameters = dict(network.named_parameters())
    network.requires_grad_(True)
    log_p = network.log_conditionals(letters, hidden).gather(-1, letters[..., None])[..., 0]
    expected = -log_p[sites].mean()
    expected_gradients = torch.autograd.grad(expected, list(parameters.values()))
    assert abs(loss - expected) < 1e-12 and set(gradients) == set(parameters)
    for name, g in zip(parameters, expected_gradients):
        torch.testing.assert_close(gradients[name], g, rtol=0, atol=1e-10)
    assert not any(g.requires_grad for g in gradients.values())


def test_the_field_form_is_an_attractor_network():
    """Its field at a token that is hidden: tokens are [letter; known letters], the couplings those
    of all sites alike, and a site before the first shows the start.
    """
    n, length = 2, 5
    network, letters = made(n_known=n, context=9), texts(1, length)
    network.r.zero_(), network.W.zero_(), network.bias.zero_()
    width = V + 1
    one_hot = torch.eye(width, dtype=torch.float64)
    windows = known_letters(torch.nn.functional.pad(letters, (1, 0), value=V), n, V)[0]
    shown = torch.tensor([V, *letters[0].tolist()])
    tokens = torch.cat([0 * one_hot[shown], one_hot[windows].flatten(1)], 1)[None]
    heads, rank = network.n_heads, network.rank
    asks = torch.zeros(heads, rank, width * (n + 1), dtype=torch.float64)
    shows = torch.zeros_like(asks)
    asks[..., :V] = network.U.permute(1, 2, 0)
    asks[..., width:] = network.Q.permute(2, 3, 0, 1).flatten(2)
    # what a site shows: its own letter is the newest, the known ones follow
    shows[..., : width * n] = network.K.permute(2, 3, 0, 1).flatten(2)
    tokens[0, :, :width] = one_hot[shown]
    couplings = LowRank(*(w[:, None].expand(-1, length + 1, -1, -1).clone() for w in (asks, shows)))
    hears = torch.ones(length + 1, length + 1).tril(-1).bool()
    attractor = AttractorNetwork(
        length + 1, width * (n + 1), couplings=couplings, hears=hears, n_known=width * n
    )
    attractor = attractor.double()
    attractor.space = type("Any", (), {"check": lambda *a: None, "project": None})()
    for i in range(1, length + 1):
        hidden = tokens.clone()
        hidden[0, i, :width] = 0  # the letter is not known, and does not ask
        field = attractor.field(hidden)[0, i, :V]
        expected = -network.energies(letters)[0, i - 1]
        torch.testing.assert_close(field, expected, rtol=0, atol=1e-12)


def test_both_forms_agree_to_first_order():
    letters, small = texts(4, 9), 1e-4
    logs = []
    for exact in (False, True):
        network = made(exact)
        network.U *= small
        e = network.energies(letters)
        logs.append(e - e.mean(-1, keepdim=True))  # the exact form has a constant besides
    change = (logs[0] - logs[1]).abs().max()
    assert 0 < change < 100 * small**2


def test_scores_far_apart_are_right_or_refused():
    network, letters = made(True), texts(2, 6)
    network.U *= 50
    torch.testing.assert_close(
        network.log_conditionals(letters)[0], naive(network, letters[0]), rtol=0, atol=1e-9
    )
    network.U *= 100
    with pytest.raises(FloatingPointError, match="too far apart"):
        network.log_conditionals(letters)


@FORMS
def test_attention_sums_to_one_and_hears_the_context(exact):
    network = made(exact, context=3)
    a = network.attention(texts(2, 6))
    back = torch.arange(6)[:, None] - torch.arange(6)
    heard = (back >= 0) & (back < 3)
    assert a.shape == (2, 2, 6, 6) and (a.sum(-1) - 1).abs().max() < 1e-12
    assert (a[..., ~heard] == 0).all() and (a[..., heard] > 0).all()


@FORMS
@pytest.mark.parametrize("model", [made, cascade])
@pytest.mark.parametrize("start", [(), (4,), (2, 0), (2, 30)])
def test_generates_what_the_conditionals_say(exact, model, start):
    """Drawn letter by letter with the same numbers from the whole text, though it looks at what it
    can reach alone.
    """
    network, prompt = model(exact), texts(*start) if start else torch.tensor([])
    got = network.generate(prompt, 12, generator=torch.Generator().manual_seed(5))
    again = network.generate(prompt, 12, generator=torch.Generator().manual_seed(5))
    assert torch.equal(got, again) and got.shape == (*prompt.shape[:-1], prompt.shape[-1] + 12)
    generator = torch.Generator().manual_seed(5)
    text = prompt.long() if prompt.ndim == 2 else prompt.long()[None]
    for _ in range(12):
        log_p = network.log_conditionals(torch.nn.functional.pad(text, (0, 1)))[:, -1]
        text = torch.cat([text, log_p.exp().multinomial(1, generator=generator)], 1)
    assert torch.equal(got, text.reshape(got.shape))


def test_frequencies_of_what_is_generated_are_the_probabilities():
    network, n = made(), 4000
    drawn = network.generate(torch.zeros(n, 0, dtype=torch.long), 2)
    pairs = torch.tensor(list(itertools.product(range(V), repeat=2)))
    log_p = network.log_conditionals(pairs).gather(-1, pairs[..., None]).sum((1, 2))
    counts = (drawn[:, None] == pairs).all(-1).sum(0) / n
    spread = (log_p.exp() * (1 - log_p.exp()) / n).sqrt()
    assert ((counts - log_p.exp()).abs() < 4 * spread).all()


def test_temperature_zero_takes_the_likeliest_and_low_ones_come_near():
    network, prompt = made(), texts(3, 4)
    cold = network.generate(prompt, 8, temperature=0)
    for i in range(4, 12):
        assert torch.equal(cold[:, i], network.log_conditionals(cold)[:, i].argmax(-1))
    assert torch.equal(cold, network.generate(prompt, 8, temperature=1e-6))


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_draws_no_letter_from_energies_that_are_nan(temperature):
    network = made()
    network.bias[1] = torch.nan
    with pytest.raises(ValueError, match="energies must be numbers to draw a letter, got NaN"):
        network.generate(texts(1, 3), 2, temperature=temperature)


@FORMS
@pytest.mark.parametrize("model", [made, cascade])
def test_every_text_ends_as_the_same_one(exact, model):
    """Site by site: after t updates the first t letters are those of greedy generation."""
    network, text = model(exact), texts(6, 9)
    greedy = network.generate(torch.tensor([]), 9, temperature=0)
    for t in range(1, 10):
        text = network.update(text)
        assert (text[:, :t] == greedy[:t]).all()
    assert torch.equal(network.update(text), text)


def test_training_finds_a_rule_of_the_text():
    """A letter is the one two before it: nothing is left to doubt."""
    text = texts(1, 400, n_letters=2)
    for t in range(2, 400):
        text[:, t] = text[:, t - 2]
    windows = text[0].unfold(0, 20, 1)
    network = CausalNetwork(2, context=4, n_known=2, n_heads=1, rank=2)
    config = TrainingConfig(epochs=5, batch_size=20, learning_rate=0.05)
    history = train(network, causal_rule, windows, no_corruption, config, report=None)
    assert history[-1]["loss"] < 0.08 < history[0]["loss"]  # two letters in 20: 0.069
    new = network.generate(torch.tensor([0, 1]), 6, temperature=0)
    assert new.tolist() == [0, 1] * 4


def test_a_stage_learns_what_the_hidden_spins_know():
    """A letter is the one two before it; a stage that asks with one letter alone cannot know."""
    letters = texts(200, 12, n_letters=2)
    for t in range(2, 12):
        letters[:, t] = letters[:, t - 2]
    first = CausalNetwork(2, context=4, n_known=2, n_heads=2, rank=2)
    config = TrainingConfig(epochs=20, batch_size=20, learning_rate=0.05)
    train(first, causal_rule, letters, no_corruption, config, report=None)
    stages, kept = CausalCascade(first), [p.clone() for p in first.parameters()]
    own = CausalNetwork(2, context=1, n_known=1, n_heads=1, rank=1, n_hidden=stages.n_hidden)
    blind = CausalNetwork(2, context=1, n_known=1, n_heads=1, rank=1)
    (last,) = train(own, StageRule(stages), letters, no_corruption, config, report=None)[-1:]
    (alone,) = train(blind, causal_rule, letters, no_corruption, config, report=None)[-1:]
    assert last["loss"] < 0.3 < 0.6 < alone["loss"]
    assert all(map(torch.equal, kept, first.parameters()))
    whole = -stages.add(own).log_conditionals(letters).gather(-1, letters[..., None]).mean()
    assert whole < 0.3


@FORMS
def test_blocks_change_nothing(exact):
    """One example alone, and in a batch that is computed in several parts."""
    network, letters = made(exact, n_heads=8, context=70), texts(40, 130)
    whole = network.log_conditionals(letters)
    torch.testing.assert_close(network.log_conditionals(letters[17:18]), whole[17:18])
    loss, gradients = causal_rule(network, letters)
    parts = [causal_rule(network, some) for some in letters.split(10)]
    torch.testing.assert_close(loss, sum(part[0] for part in parts) / 4)
    for name, g in gradients.items():
        torch.testing.assert_close(g, sum(part[1][name] for part in parts) / 4)


def test_texts_without_letters_or_examples():
    network = made()
    assert network.log_conditionals(texts(3, 0)).shape == (3, 0, V)
    assert network.log_conditionals(texts(0, 3)).shape == (0, 3, V)
    assert cascade().log_conditionals(texts(3, 0)).shape == (3, 0, V)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"n_letters": 1}, "n_letters must be a whole number >= 2, got 1"),
        ({"context": 0}, "context must be a whole number >= 1, got 0"),
        ({"n_known": 0}, "n_known must be a whole number >= 1"),
        ({"n_heads": 1.5}, "n_heads must be a whole number >= 1, got 1.5"),
        ({"rank": True}, "rank must be a whole number"),
        ({"n_hidden": -1}, "n_hidden must be a whole number >= 0, got -1"),
    ],
)
def test_refuses_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        CausalNetwork(**{"n_letters": 3, "context": 4, **sizes})


@pytest.mark.parametrize(
    "letters, message",
    [
        (torch.tensor([0, 1]), r"letters must be a tensor of shape \(batch, T\), got \(2,\)"),
        ([[0, 1]], r"letters must be a tensor of shape \(batch, T\), got list"),
        (torch.tensor([[0.0, 1.0]]), "letters must be whole numbers, got torch.float32"),
        (torch.tensor([[True]]), "letters must be whole numbers, got torch.bool"),
        (torch.tensor([[0, 3]]), "letters must be from 0 to 2, got 0 to 3"),
        (torch.tensor([[-1, 2]]), "letters must be from 0 to 2, got -1 to 2"),
    ],
)
def test_refuses_letters(letters, message):
    for call in (made().log_conditionals, lambda x: causal_rule(made(), x), cascade().energies):
        with pytest.raises(ValueError, match=message):
            call(letters)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": -0.1}, "temperature must be a finite number >= 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be a finite number >= 0, got nan"),
        ({"n": -1}, "n must be a whole number >= 0, got -1"),
        ({"prompt": torch.tensor([3])}, "prompt must be from 0 to 2, got 3 to 3"),
        ({"prompt": torch.tensor([0.5])}, "prompt must be whole numbers, got torch.float32"),
        ({"prompt": "abc"}, r"prompt must be a tensor of shape \(T,\) or \(batch, T\), got str"),
        ({"prompt": torch.tensor(1)}, r"or \(batch, T\), got \(\)"),
        ({"temperature": "1"}, "temperature must be a finite number >= 0, got '1'"),
        ({"n": True}, "n must be a whole number >= 0, got True"),
        ({"window": 0}, "window must be a whole number >= 1, got 0"),
    ],
)
def test_refuses_what_cannot_be_generated(arguments, message):
    with pytest.raises(ValueError, match=message):
        made().generate(**{"prompt": torch.tensor([0]), "n": 2, **arguments})


def test_refuses_examples_that_the_rule_cannot_have():
    network, letters = made(), texts(2, 4)
    for wrong, message in (
        ({"target": (letters + 1) % V}, "target must be the letters themselves"),
        ({"sites": torch.ones(2, 4)}, "sites must be boolean of shape"),
        ({"sites": torch.zeros(2, 4).bool()}, "at least one letter must count"),
        ({"sites": [True] * 4}, "sites must be boolean of shape"),
        ({"hidden": torch.zeros(2, 4, 1).double()}, "hidden must be None, as n_hidden is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            causal_rule(network, letters, **wrong)
    with pytest.raises(ValueError, match="at least one letter must count"):
        causal_rule(network, letters[:, :0])
    with pytest.raises(ValueError, match="network must be a CausalNetwork, got CausalCascade"):
        causal_rule(cascade(), letters)
    with pytest.raises(ValueError, match=r"hidden must have shape \(2, 4, 1\), got None"):
        made(n_hidden=1).energies(letters)
    with pytest.raises(ValueError, match="hidden must be torch.float64 .* got torch.float32"):
        made(n_hidden=1).energies(letters, torch.zeros(2, 4, 1))
    with pytest.raises(ValueError, match="hidden must be finite"):
        made(n_hidden=1).energies(letters, torch.full((2, 4, 1), math.nan).double())
    with pytest.raises(ValueError, match="n_letters=3 and n_hidden=6, got 3 and 5"):
        CausalCascade(made(), made(n_hidden=5))


def test_with_a_window_each_letter_is_drawn_as_from_a_text_that_begins_there():
    network, prompt = made(context=9), texts(2, 7)
    new = network.generate(prompt, 4, temperature=0, window=5)
    for t in range(7, 11):
        expected = network.energies(torch.cat([new[:, t - 5 : t], new[:, :1]], 1))[:, -1].argmin(-1)
        assert torch.equal(new[:, t], expected)
    assert torch.equal(
        network.generate(prompt, 4, temperature=0),
        network.generate(prompt, 4, temperature=0, window=99),
    )


def test_a_stage_alone_does_not_write_and_a_cascade_without_stages_knows_nothing():
    with pytest.raises(ValueError, match="hidden must have shape .* got None: a CausalCascade has"):
        made(n_hidden=1).generate(torch.tensor([0]), 1)
    for call in (CausalCascade().log_conditionals, CausalCascade().energies):
        with pytest.raises(ValueError, match="must have a stage"):
            call(texts(1, 2))
    first = made(n_hidden=0, n_heads=1, rank=3)
    stages = CausalCascade(first)
    again = made(n_hidden=3, n_heads=1, rank=3)
    stages.add(again)
    with pytest.raises(ValueError, match="there already"):
        stages.add(again)


def test_a_cascade_reaches_as_far_as_it_says_and_no_farther():
    whole, letters = cascade(), texts(50, 12)
    seen = []
    for back in range(1, 12):
        other = letters.clone()
        other[:, -1 - back] = (letters[:, -1 - back] + 1) % V
        a, b = (whole.energies(x)[:, -1] for x in (letters, other))
        seen.append(not torch.equal(a, b))
    assert seen == [back <= whole.reach for back in range(1, 12)] and whole.reach == 7


def test_hidden_spins_drop_out_and_come_back_where_a_training_was_left():
    letters, stages = texts(60, 12), CausalCascade(made())
    stage = made(n_hidden=stages.n_hidden, std=0.3)
    whole, _ = StageRule(stages)(stage, letters)
    rule = StageRule(stages, dropout=0.3, seed=1)
    losses = [rule(stage, letters)[0] for _ in range(3)]
    assert len({float(loss) for loss in losses} | {float(whole)}) == 4
    other = StageRule(stages, dropout=0.3, seed=1)
    other(stage, letters)
    kept = other.state_dict()
    again = StageRule(stages, dropout=0.3, seed=7)
    again.load_state_dict(kept)
    assert again(stage, letters)[0] == losses[1]
    assert StageRule(stages).state_dict() == {}  # nothing is drawn
    with pytest.raises(ValueError, match="dropout must be at least 0 and less than 1, got 1"):
        StageRule(stages, dropout=1)


def test_a_rule_of_a_stage_tells_cascades_apart():
    assert repr(StageRule(CausalCascade(made()))) == repr(StageRule(CausalCascade(made())))
    assert repr(StageRule(CausalCascade(made()))) != repr(StageRule(CausalCascade(made(seed=2))))


def test_the_exact_form_refuses_what_would_be_wrong():
    """A heard letter that speaks for v by e^100, from a score 110 lower, is not lost silently."""
    network = CausalNetwork(2, context=3, n_known=1, n_heads=1, rank=1, exact=True)
    for p in network.parameters():
        p.zero_()
    network.K[0, 0], network.K[0, 1], network.U[1] = 1.0, 0.0, 80.0
    network.r[0] = torch.tensor([110.0, 0.0, 0.0])
    letters = torch.tensor([[0, 1, 0]])
    exact = network.double().energies(letters)
    with pytest.raises(FloatingPointError, match="too far apart for torch.float32"):
        network.float().energies(letters)
    assert abs((exact[0, 2, 0] - exact[0, 2, 1]).item()) < 1e-9


@FORMS
def test_float32_is_close_to_float64(exact):
    network, letters = made(exact), texts(3, 40)
    expected = network.log_conditionals(letters)
    got = network.float().log_conditionals(letters)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4)
