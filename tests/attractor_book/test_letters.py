"""Models of text: each kind learns, and is measured on letters with a past."""

import pytest
import torch

from attractor_book.letters import (
    SOURCES,
    Blocks,
    Counted,
    LogBilinear,
    Stages,
    Task,
    heard,
    kept,
    language,
    nats,
    remembered,
    text,
    windows,
    written,
)
from attractor_lib.data import Alphabet
from attractor_lib.trainer import TrainingConfig


@pytest.fixture(scope="module")
def task():
    return Task(text("markov 2", 4000, 1000), context=16, stride=8)


@pytest.mark.parametrize(
    "entrant, least",
    [
        (Stages(2, 3, 2, 2, 3e-2, 0.0), 0.05),
        (Stages(2, 3, 2, 1, 3e-2, 0.0, exact=True), 0.05),
        (Blocks(16, 2, 1e-2), 0.05),
        (LogBilinear(2, 3e-2), 0.05),
        (Counted(3), 0.2),
    ],
)
def test_every_kind_learns_and_none_beats_the_source(task, entrant, least):
    config = TrainingConfig(epochs=3, batch_size=20, learning_rate=1.0, optimizer="AdamW")
    error = lambda model: task.nats(model, "left_out").mean().item()  # noqa: E731
    uniform, limit = torch.tensor(8.0).log(), task.limit().mean()
    found = list(entrant.fit(task, config, error))
    assert [model.stages for model in found] == list(range(1, 1 + getattr(entrant, "n_stages", 1)))
    for fitted in found:
        reached = task.nats(fitted.model).mean()
        assert limit < reached < uniform - least * (uniform - limit)
        for record in fitted.curve[-1:]:
            assert record["error"] == error(fitted.model) and record["epoch"] == 3
    parameters = [fitted.parameters for fitted in found]
    assert parameters == sorted(parameters) and parameters[0] > 0


def test_each_letter_is_measured_once_with_a_past():
    """A model that tells how many letters it was given: between half the context and all of it."""

    class Counts:
        def log_conditionals(self, letters):
            return -torch.arange(letters.shape[1])[:, None].expand(*letters.shape, 9).double()

    letters = torch.randint(9, (1, 100))
    told = nats(Counts(), letters, 10)
    assert len(told) == 95 and told.min() == 5 and told.max() == 9
    assert windows(letters, 10, 5).shape == (19, 10)


def test_the_limit_is_that_of_the_same_letters_in_the_whole_text():
    """A chain of order 2 needs no more than a piece has; a copy needs what lies before it."""
    markov, copy = (Task(text(name, 500, 500), 16, 8) for name in ("markov 2", "copy"))
    torch.testing.assert_close(markov.limit(), markov.nats(markov.text.source))
    assert copy.limit().shape == copy.nats(copy.text.source).shape
    assert copy.limit()[30:].mean() < 0.8 < 2 < copy.nats(copy.text.source).mean()
    assert Task(text("markov 2", 100, 100)._replace(source=None)).limit() is None
    with pytest.raises(ValueError, match="context must be even, got 15"):
        Task(text("copy", 100, 100), 15)


def test_texts_are_the_same_each_time_and_test_letters_for_each_seed():
    for name in SOURCES:
        one, again, other = text(name, 300, 200), text(name, 300, 200), text(name, 300, 200, seed=1)
        assert torch.equal(one.train, again.train) and not torch.equal(one.train, other.train)
        assert torch.equal(one.test, other.test) and not torch.equal(one.test, one.left_out)
        assert one.train.max() < one.n_letters


def test_shakespeare_is_split_in_order(monkeypatch):
    whole = {"train": "abcdefghij", "test": "jihg"}
    monkeypatch.setattr("attractor_book.letters.load_text", lambda name, split: whole[split])
    found = text("tinyshakespeare", 5, 3)
    decoded = [found.alphabet.decode(part[0]) for part in found[:3]]
    assert decoded == ["abcde", "hij", "jih"] and found.n_letters == 10


@pytest.fixture(scope="module")
def read():
    """A text in a natural language, and a model that has seen a little of it."""
    task = Task(text("python", 4000, 2000), context=16, stride=16)
    config = TrainingConfig(epochs=1, batch_size=20, learning_rate=1.0, optimizer="AdamW")
    (fitted,) = Stages(2, 3, 2, 1, 3e-2, 0.0).fit(task, config, lambda model: 0.0)
    return task, fitted.model


def test_letters_that_an_alphabet_lacks_are_left_out():
    alphabet = Alphabet("ab")
    assert kept("a cab", alphabet) == "aab"
    train, test = (language("python", split) for split in ("train", "test"))
    assert abs(len(train) - 9 * len(test)) < 10 and "import" in train


def test_passages_are_of_one_size_and_differ_as_they_say(read):
    task, _ = read
    passages = task.passages(30, other="python")
    assert {some.shape for some in passages.values()} == {(30, 16)}
    wrong = (passages["a fifth wrong"] != passages["test"]).double().mean()
    assert 0.1 < wrong < 0.25
    torch.testing.assert_close(passages["shuffled"].sort().values, passages["test"].sort().values)


def test_a_passage_is_remembered_as_the_updates_leave_it(read):
    task, model = read
    some = task.passages(5)["test"]
    shares = remembered(model, some, 2)
    twice = model.update(model.update(some))
    assert shares[0] == 1 and shares[2] == (twice == some).double().mean()


def test_what_a_head_hears_adds_up(read):
    task, model = read
    some = task.passages(20)["test"]
    for row in heard(model.stages[0], some):
        assert 0 < sum(row["by distance"]) < 1  # the start has the rest
        assert 0 <= row["the letter to come"] <= 1
    alike = torch.full((3, 16), 2)
    for row in heard(model.stages[0], alike):
        assert row["the letter to come"] > 1 - 1e-6 and row["the letter to come, chance"] == 1
        assert row["after the same letter, chance"] == 14 / 15  # the first stands after none
        assert row["after the same letter"] > 0.5


def test_it_writes_on_from_a_prompt(read):
    task, model = read
    alphabet = task.text.alphabet
    rows = list(written(model, alphabet, ["The ", "a"], [0, 1.0], 7, 16))
    assert [(r["prompt"], r["temperature"]) for r in rows] == [
        ("The ", 0),
        ("The ", 1.0),
        ("a", 0),
        ("a", 1.0),
    ]
    assert all(len(row["written"]) == 7 for row in rows)
    expected = model.generate(alphabet.encode("The "), 7, 0)
    assert rows[0]["written"] == alphabet.decode(expected)[4:]
