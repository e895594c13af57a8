"""Models of text: who takes part, how each is trained, and what it is measured by (notebooks
20_causal_network and 22_shakespeare).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from torch import Tensor

from attractor_book.contenders import n_parameters
from attractor_book.contest import watched
from attractor_lib.baselines import CausalStack, NGram, likelihood
from attractor_lib.causal import CausalCascade, CausalNetwork, StageRule, causal_rule
from attractor_lib.corruption import no_corruption
from attractor_lib.data import Alphabet, load_text
from attractor_lib.sources import CopySource, MarkovSource
from attractor_lib.trainer import TrainingConfig

SOURCES = {
    "markov 2": MarkovSource(8, 2),
    "markov 3": MarkovSource(8, 3),
    "copy": CopySource(8, 24, 0.1),
}
TEXTS = (*SOURCES, "python", "tinyshakespeare")


class Text(NamedTuple):
    """Letters to train on, to choose by, and to measure on, (n, T) each: texts that are independent
    of each other, or one; and the true probabilities, where they are known.
    """

    train: Tensor
    left_out: Tensor
    test: Tensor
    n_letters: int
    source: object = None
    alphabet: Alphabet | None = None


def text(name: str, n_train: int, n_test: int, seed: int = 0) -> Text:
    """By name, of `TEXTS`; n_train letters to train on, n_test to choose by and to measure on.

    Of a text in a language, which may have fewer letters to train on than n_train, those left out
    are the last of the train split. A source's letters to measure on are the same whatever the
    seed, of those to train on.
    """
    if name in SOURCES:
        source = SOURCES[name]
        parts = [
            source.sample(1, n, torch.Generator().manual_seed(s))
            for n, s in ((n_train, seed), (n_test, 1_000_001), (n_test, 1_000_002))
        ]
        return Text(*parts, source.n_letters, source)
    letters, others = (language(name, split) for split in ("train", "test"))
    alphabet = Alphabet(letters)
    numbers, test = alphabet.encode(letters), alphabet.encode(kept(others, alphabet))
    parts = numbers[:-n_test][:n_train], numbers[-n_test:], test[:n_test]
    return Text(*(part[None] for part in parts), len(alphabet), alphabet=alphabet)


def language(name: str, split: str) -> str:
    """A text in a natural language: "python" is the language reference that comes with Python,
    which needs no network; its first 90% are to train on.
    """
    if name != "python":
        return load_text(name, split)
    whole = "\n".join(topics.values())
    first = len(whole) * 9 // 10
    return whole[:first] if split == "train" else whole[first:]


def kept(letters: str, alphabet: Alphabet) -> str:
    """Without the letters that an alphabet does not have."""
    return "".join(letter for letter in letters if letter in alphabet.letters)


def windows(letters: Tensor, length: int, stride: int) -> Tensor:
    """All pieces of that length, `stride` apart: (n, length)."""
    return letters.unfold(1, length, stride).flatten(0, 1)


@torch.no_grad()
def nats(model, letters: Tensor, context: int) -> Tensor:
    """-log p of each letter from context / 2 on, given from there to context - 1 letters before."""
    half = context // 2
    pieces = windows(letters, context, half).split(64)
    log_p = (model.log_conditionals(p).gather(-1, p[..., None])[:, half:, 0] for p in pieces)
    return -torch.cat([values.flatten().double() for values in log_p])


def remembered(model, passages: Tensor, n_steps: int) -> list[float]:
    """The share of letters as at the start after 0 ... n_steps updates of all at once."""
    state, shares = passages, [1.0]
    for _ in range(n_steps):
        state = model.update(state)
        shares.append((state == passages).double().mean().item())
    return shares


@torch.no_grad()
def heard(network: CausalNetwork, passages: Tensor) -> Iterator[dict]:
    """What the heads of a first stage hear at the last letter of each passage: attention by
    distance, and its part on letters that are the one to come, and on those that stand after the
    same letter; beside the part of such letters, which is chance.
    """
    a = network.attention(passages)[:, :, -1, 1:].double()  # without the start
    past, last = passages[:, :-1], passages[:, -1:]
    after = torch.cat([torch.zeros_like(past[:, :1]).bool(), past[:, :-1] == past[:, -1:]], 1)
    kinds = {"the letter to come": past == last, "after the same letter": after}
    by_distance, whole = a.mean(0).flip(-1), a.sum((0, 2))
    for h in range(network.n_heads):
        row = {"head": h, "by distance": by_distance[h].tolist()}
        for kind, there in kinds.items():
            row[kind] = ((a[:, h] * there).sum() / whole[h]).item()
            row[f"{kind}, chance"] = there.double().mean().item()
        yield row


def written(
    model, alphabet: Alphabet, prompts, temperatures, n: int, context: int, seed: int = 0
) -> Iterator[dict]:
    """Rows of what a model writes after each prompt, at each temperature: n letters; context is the
    length of the pieces that it was trained on.
    """
    for prompt in prompts:
        for temperature in temperatures:
            draw = torch.Generator().manual_seed(seed)
            start = alphabet.encode(prompt)
            found = model.generate(start, n, temperature, draw, window=context - 1)
            rest = alphabet.decode(found)[len(prompt) :]
            yield {"prompt": prompt, "temperature": temperature, "written": rest}


@dataclass(frozen=True)
class Task:
    """A text, and how it is read: in pieces of `context` letters, `stride` apart.

    Pieces begin amid the text, and there a model sees the start. So what is maximised in training
    is the likelihood of pieces, not of the text.

    Raises:
        ValueError: for an odd context, whose halves would overlap.
    """

    text: Text
    context: int = 64
    stride: int = 16

    def __post_init__(self):
        if self.context % 2:
            raise ValueError(f"context must be even, got {self.context}")

    @property
    def n_letters(self) -> int:
        return self.text.n_letters

    @property
    def pieces(self) -> Tensor:
        """To train on: (n, context)."""
        return windows(self.text.train, self.context, self.stride)

    def nats(self, model, split: str = "test") -> Tensor:
        """Of each letter of a split, see `nats`."""
        return nats(model, getattr(self.text, split), self.context)

    def passages(self, n: int, other: str | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Pieces (n, context) to run from: of the train and the test text, test pieces with a fifth
        of their letters replaced, shuffled ones, and those of another text, by name.
        """
        draw, apart = torch.Generator().manual_seed(seed), (self.context, self.context)
        test = windows(self.text.test, *apart)[:n]
        wrong = torch.rand(test.shape, generator=draw) < 0.2
        any_letter = torch.randint(self.n_letters, test.shape, generator=draw)
        found = {
            "train": windows(self.text.train, *apart)[:n],
            "test": test,
            "a fifth wrong": torch.where(wrong, any_letter, test),
            "shuffled": test.gather(1, torch.rand(test.shape, generator=draw).argsort(1)),
        }
        if other:
            alphabet = self.text.alphabet
            letters = alphabet.encode(kept(language(other, "train"), alphabet))
            found["another author"] = windows(letters[None], *apart)[:n]
        return found

    def limit(self, split: str = "test") -> Tensor | None:
        """Of the same letters, of the source itself, which knows the whole text; None without."""
        if self.text.source is None:
            return None
        letters, half = getattr(self.text, split), self.context // 2
        log_p = self.text.source.log_conditionals(letters).gather(-1, letters[..., None])
        measured = (letters.shape[1] - self.context) // half + 1
        return -log_p[0, half : half * (measured + 1), 0]


class Fitted(NamedTuple):
    """A model, and what its training took.

    Attributes:
        model: has ``log_conditionals``.
        stages: how many it has.
        parameters: that were trained, all stages before included.
        curve: a record an epoch of the last stage.
    """

    model: object
    stages: int
    parameters: int
    curve: list[dict]


@dataclass(frozen=True)
class Stages:
    """Causal attractor networks, each trained by the causal rule alone, from the one before it on.

    Attributes:
        n_heads, rank, n_known: of each.
        n_stages: networks.
        learning_rate, weight_decay: tuned, of AdamW.
        exact: the exact form, or the field form.
        dropout: of hidden spins.
    """

    n_heads: int
    rank: int
    n_known: int
    n_stages: int
    learning_rate: float
    weight_decay: float
    exact: bool = False
    dropout: float = 0.0

    family = "stages"

    def fit(self, task: Task, config: TrainingConfig, error: Callable) -> Iterator[Fitted]:
        cascade = CausalCascade()
        for t in range(self.n_stages):
            generator = torch.Generator().manual_seed(config.seed + 1000 * t)
            sizes = task.n_letters, task.context, self.n_known, self.n_heads, self.rank, self.exact
            stage = CausalNetwork(*sizes, generator, n_hidden=cascade.n_hidden)
            rule = StageRule(cascade, self.dropout, config.seed) if t else causal_rule
            own = replace(
                config,
                learning_rate=config.learning_rate * self.learning_rate,
                weight_decay=self.weight_decay,
            )
            with_it = CausalCascade(*cascade.stages, stage)
            curve = watched(stage, rule, task.pieces, no_corruption, own, partial(error, with_it))
            cascade = with_it
            yield Fitted(cascade, t + 1, n_parameters(cascade), curve)


@dataclass(frozen=True)
class Blocks:
    """Transformer blocks, trained end to end."""

    width: int
    n_layers: int
    learning_rate: float
    dropout: float = 0.0

    family = "blocks"

    def fit(self, task: Task, config: TrainingConfig, error: Callable) -> Iterator[Fitted]:
        sizes = task.n_letters, task.context, self.width, self.n_layers
        model = CausalStack(*sizes, dropout=self.dropout, seed=config.seed)
        own = replace(
            config, learning_rate=config.learning_rate * self.learning_rate, weight_decay=0.1
        )

        def measured() -> float:
            model.eval()
            found = error(model)
            model.train()
            return found

        curve = watched(model, likelihood, task.pieces, no_corruption, own, measured)
        yield Fitted(model.eval(), 1, n_parameters(model), curve)


@dataclass(frozen=True)
class LogBilinear:
    """f alone: logits linear in each of the letters before, without heads; by the causal rule."""

    n_known: int
    learning_rate: float

    family = "log-bilinear"

    def fit(self, task: Task, config: TrainingConfig, error: Callable) -> Iterator[Fitted]:
        model = CausalNetwork(task.n_letters, 1, self.n_known, n_heads=1, rank=1)
        model.U.zero_()
        own = replace(
            config,
            learning_rate=config.learning_rate * self.learning_rate,
            frozen=("U", "Q", "K", "r"),
        )
        curve = watched(model, causal_rule, task.pieces, no_corruption, own, partial(error, model))
        yield Fitted(model, 1, model.W.numel() + model.bias.numel(), curve)


@dataclass(frozen=True)
class Counted:
    """n-grams with back-off: counted, not trained."""

    n: int

    family = "n-gram"

    def fit(self, task: Task, config: TrainingConfig, error: Callable) -> Iterator[Fitted]:
        model = NGram(task.text.train[0], self.n, task.n_letters)
        yield Fitted(model, 1, sum(int((c > 0).sum()) for _, c in model.tables), [])


ENTRANTS = {
    "stages 4x8": Stages(4, 8, 3, 2, 2e-2, 0.0),
    "exact 4x8": Stages(4, 8, 3, 2, 2e-2, 0.0, exact=True),
    "stages 16x16": Stages(16, 16, 5, 2, 2e-2, 0.1, dropout=0.2),
    "stages 32x16": Stages(32, 16, 6, 2, 2e-2, 0.1, dropout=0.3),
    "exact 16x16": Stages(16, 16, 5, 1, 2e-2, 0.1, exact=True),
    "block 32": Blocks(32, 1, 8e-3),
    "block 128": Blocks(128, 1, 4e-3),
    "stack 2 x 64": Blocks(64, 2, 4e-3),
    "stack 4 x 64": Blocks(64, 4, 4e-3),
    "block 128, dropout": Blocks(128, 1, 4e-3, dropout=0.1),
    "stack 2 x 64, dropout": Blocks(64, 2, 4e-3, dropout=0.1),
    "stack 4 x 64, dropout": Blocks(64, 4, 4e-3, dropout=0.1),
    "log-bilinear 8": LogBilinear(8, 5e-2),
    "log-bilinear 24": LogBilinear(24, 5e-2),
    **{f"{n}-gram": Counted(n) for n in (3, 4, 5, 6)},
}
