"""The claims of chapters 3 to 6 and 13, measured on any images (notebook 21_other_images)."""

import base64
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attractor_book.chapter import ImageTokens
from attractor_book.contenders import CONTENDERS, attractor, n_parameters, update_of
from attractor_lib.analysis import operations, overlap, restoration_error, transient_lifetime
from attractor_lib.corruption import AddNoise, HideTokens, mean_token, no_corruption
from attractor_lib.dynamics import run
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.learning.own_trajectory import PersistentTrajectories
from attractor_lib.linear import clean_moments, sampled_moments, with_hidden
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import clamp
from attractor_lib.trainer import TrainingConfig, train

FULL, HEADS, BARE, BLOCK = "one full head", "16 heads", "bare attention 64", "block 64"
MODELS = {
    FULL: attractor(1, None, 2e-2, beta=1.0),
    HEADS: CONTENDERS["attractor 16x16"],
    BARE: CONTENDERS["bare attention 64"],
    BLOCK: CONTENDERS["transformer block 64"],
    "4 heads of rank 8": CONTENDERS["attractor 4x8"],
    "8 heads": CONTENDERS["attractor 8x16"],
    "block 32": CONTENDERS["transformer block 32"],
    "block 128": CONTENDERS["transformer block 128"],
}
MAIN = FULL, HEADS, BARE, BLOCK
REGRESSION = "regression"


@dataclass(frozen=True)
class Survey:
    """One data set, and how long is trained on it.

    Args:
        images: tokens to train on, and tokens and images to measure on.
        epochs: passes over them for every model.
        seed: of initial parameters, order of examples, corruption.
        n_steps: length of a run [updates].
        costs: with all models of `MODELS` on hidden tokens, not those of `MAIN` alone.
        report: told what has been trained.
    """

    images: ImageTokens
    epochs: int
    seed: int
    n_steps: int
    costs: bool = False
    report: Callable[[str], None] = print

    @property
    def tokens(self) -> Tensor:
        """To train on: (n, N, d)."""
        return self.images.tokens

    @property
    def fill(self) -> Tensor:
        """What stands in for a hidden token: (N, d)."""
        return mean_token(self.tokens)

    @property
    def n_sites(self) -> int:
        """N."""
        return self.tokens.shape[1]

    def network(self, *heads: int, beta: float) -> AttractorNetwork:
        """An untrained one of that many heads, and their rank."""
        start = torch.Generator().manual_seed(self.seed)
        network = AttractorNetwork(*self.tokens.shape[1:], *heads, beta=beta, generator=start)
        return network.to(self.tokens.device)

    def trained(self, network, rule, corrupt, learning_rate: float, **config) -> AttractorNetwork:
        """The network, trained; config as for `TrainingConfig`."""
        config = TrainingConfig(
            epochs=self.epochs, learning_rate=learning_rate, seed=self.seed, **config
        )
        train(network, rule, self.tokens, corrupt, config, report=None)
        return network

    def errors(self, update, corrupt, n_steps: int = 1) -> Tensor:
        """Of each test image after 0 ... n_steps updates: (n_steps + 1, n)."""
        return restoration_error(update, self.images.test, corrupt, self.images.embedding, n_steps)

    def hidden(self) -> Iterator[dict]:
        """Chapter 4: what is hidden is filled in."""
        clean, N = clean_moments(self.tokens, self.fill), self.n_sites
        levels = {k: HideTokens(k, self.fill) for k in (1, N // 4, N // 2)}
        linear = {k: with_hidden(clean, k).solve(ridge=1e-5) for k in levels}
        for k, corrupt in levels.items():
            yield {"model": "mean patch", "level": k, **mean(self.errors(lambda s: s, corrupt)[0])}
            yield {
                "model": REGRESSION,
                "level": k,
                **mean(self.errors(linear[k].update, corrupt)[1]),
            }
        yield from self._compared(levels, levels[N // 4], tuple(MODELS) if self.costs else MAIN)

    def noise(self) -> Iterator[dict]:
        """Chapter 5: noise is taken off, and what gamma does for one full head."""
        embedding = self.images.embedding
        levels = {s: AddNoise(s, s, embedding) for s in (0.1, 0.4, 1.0)}
        corrupt = AddNoise(0.0, 1.0, embedding)
        generator = torch.Generator(self.tokens.device).manual_seed(self.seed)
        linear = sampled_moments(self.tokens, corrupt, generator).solve(ridge=1e-5)
        for s, noisy in levels.items():
            yield {"model": REGRESSION, "level": s, **mean(self.errors(linear.update, noisy)[1])}
        yield from self._compared(levels, corrupt, MAIN)

    def _compared(self, levels: dict, corrupt: Callable, only) -> Iterator[dict]:
        """Rows of the errors of models trained on what `corrupt` leaves, and of their costs."""
        config = TrainingConfig(epochs=self.epochs, seed=self.seed)
        for label in only:
            began = time.perf_counter()
            (stage,) = replace(MODELS[label], n_stages=1).fit(self.tokens, corrupt, config)
            seconds, update = time.perf_counter() - began, update_of(stage)
            about = {"model": label, "seconds": seconds, **costs(stage, self.tokens)}
            for level, at in levels.items():
                found = self.errors(update, at, 20 if label in (FULL, HEADS) else 1)
                yield {
                    **about,
                    "level": level,
                    **mean(found[1]),
                    "after 20": found[-1].mean().item(),
                }
                if label == FULL:
                    damped = self.errors(stage.at(gamma=0.8).update, at)[1]
                    yield {"model": f"{FULL}, gamma 0.8", "level": level, **mean(damped)}
            if self.images.images.ndim == 4:  # in colour
                yield from self._pictures(label, update, levels, list(levels)[1])
            self.report(label)

    def _pictures(self, label: str, update, levels: dict, level, n: int = 8) -> Iterator[dict]:
        """Of some test images, what a model leaves; and with one full head their corruption."""
        embedding = self.images.embedding
        generator = torch.Generator(self.tokens.device).manual_seed(0)
        state, sites = levels[level](self.images.test[:n], generator)
        shown = {label: clamp(update(state), state, ~sites)}
        if label == FULL:
            shown |= {"corrupted": state, "intact": self.images.test[:n]}
        for kind, tokens in shown.items():
            yield {"model": kind, "level": level, "pixels": packed(embedding.decode(tokens))}

    def clean(self) -> Iterator[dict]:
        """Chapters 3 and 6: one full head trained on clean images, and by the energy rule."""
        some = HideTokens(self.n_sites // 4, self.fill)
        norm = {"coupling_norm": 20.0}
        networks = {
            "prediction rule": self.trained(
                self.network(1, beta=1.0), prediction_rule, no_corruption, 2e-2
            ),
            "energy rule": self.trained(
                self.network(1, beta=1.0), energy_rule, no_corruption, 2e-2, **norm
            ),
        }
        for rule, network in networks.items():
            error = mean(self.errors(network.update, some)[1])
            yield {"model": rule, "level": self.n_sites // 4, **error}
            yield from ({"model": rule, **row} for row in self._transients(network))
            self.report(f"{rule}, clean images")

    def _transients(self, network: AttractorNetwork) -> Iterator[dict]:
        """Overlaps in time with the image at the start, and with another; lifetimes."""
        test = self.images.test
        for start, x in {"train": self.tokens[: len(test)], "test": test}.items():

            def observe(s: Tensor, x=x) -> Tensor:
                return torch.stack([overlap(s, x), overlap(s, x.roll(1, 0))])

            m, null = run(network.update, x, self.n_steps, observe=observe).states.unbind(1)
            life = transient_lifetime(m, null[0].quantile(0.95).item()).double()
            about = {"start": start, "lifetime": life.median().item()}
            for t in sorted({*range(21), *range(20, self.n_steps + 1, 10), self.n_steps}):
                values = {"overlap": m[t].mean().item(), "null": null[t].mean().item()}
                spread = m[t].std().item() / len(x) ** 0.5
                yield {**about, "t": t, **values, "standard error": spread}

    def own(self) -> Iterator[dict]:
        """Chapter 13: the rule on the network's own trajectories, and the plain one."""
        hide = HideTokens(3 * self.n_sites // 4, self.fill, least=1)
        half = HideTokens(self.n_sites // 2, self.fill)
        own = PersistentTrajectories(prediction_rule, 3, 0.05, 12, self.seed)
        for label, rule in {"plain rule": prediction_rule, "own trajectories": own}.items():
            network = self.trained(self.network(16, 16, beta=5.0), rule, hide, 1e-2)
            errors = self.errors(network.update, half, self.n_steps).mean(1).tolist()
            for t, error in enumerate(errors):
                if t:
                    yield {"model": label, "t": t, "error": error}
            self.report(label)


MEASURED = {
    "hidden": Survey.hidden,
    "noise": Survey.noise,
    "clean": Survey.clean,
    "own": Survey.own,
}


def mean(errors: Tensor) -> dict[str, float]:
    """Of errors (n,), and its standard error over images."""
    spread = errors.double().std().item() / len(errors) ** 0.5
    return {"error": errors.double().mean().item(), "standard error": spread}


def costs(stage: nn.Module, tokens: Tensor) -> dict[str, float]:
    """Parameters, and operations of the matrix products for an image."""
    some, update = tokens[:16], update_of(stage)
    return {
        "parameters": n_parameters(stage),
        "operations": operations(lambda: update(some)) / len(some),
    }


def packed(images: Tensor) -> list:
    """Images with values in [0, 1] as 8 bits a value: their shape, and text."""
    values = (255 * images).round().to(torch.uint8).cpu().numpy()
    return [list(values.shape), base64.b64encode(values.tobytes()).decode()]


def unpacked(pixels: list) -> Tensor:
    """What `packed` made, as images again."""
    shape, text = pixels
    values = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(shape)
    return torch.from_numpy(values.copy()) / 255


class Claim(NamedTuple):
    """One line of the table.

    Attributes:
        chapter: where it is from.
        text: what is claimed.
        value: (rows of one run) -> a number.
        holds: (that number) -> whether it does.
    """

    chapter: int
    text: str
    value: Callable[[pd.DataFrame], float]
    holds: Callable[[float], bool]


def errors_of(rows: pd.DataFrame, claim: str, column: str = "error") -> pd.DataFrame:
    """Of one run: a row a model, a column a level, from the least on."""
    rows = rows[(rows["claim"] == claim) & rows["level"].notna() & rows[column].notna()]
    return rows.pivot_table(column, "model", "level")


def over(claim: str, a: str, b: str, choose=np.max) -> Callable[[pd.DataFrame], float]:
    """The ratio of a's errors to b's over the levels: the largest, or another choice."""

    def value(rows: pd.DataFrame) -> float:
        found = errors_of(rows, claim)
        return float(choose((found.loc[a] / found.loc[b]).to_numpy()))

    return value


def on_some(model: str, claim: str) -> Callable[[pd.DataFrame], float]:
    """Its error with a quarter of the tokens hidden, over that of the mean patch."""

    def value(rows: pd.DataFrame) -> float:
        hidden, found = errors_of(rows, "hidden"), errors_of(rows, claim)
        some = hidden.columns[1]
        return found.loc[model, some] / hidden.loc["mean patch", some]

    return value


def later(model: str) -> Callable[[pd.DataFrame], float]:
    """Its error after twenty updates over that of the first, the smallest over levels."""

    def value(rows: pd.DataFrame) -> float:
        first, last = errors_of(rows, "hidden"), errors_of(rows, "hidden", "after 20")
        return (last.loc[model] / first.loc[model]).min()

    return value


def in_time(rows: pd.DataFrame, column: str, start: str, rule="prediction rule") -> pd.Series:
    """Of the network trained on clean images, by t."""
    rows = rows[(rows["claim"] == "clean") & (rows["model"] == rule) & (rows["start"] == start)]
    return rows.set_index("t")[column]


def train_minus_test(rows: pd.DataFrame) -> float:
    """The largest difference between the overlaps of train and test images, up to t = 10."""
    train, test = (in_time(rows, "overlap", start) for start in ("train", "test"))
    return (train - test)[[1, 2, 3, 5, 10]].abs().max()


def above_null(t) -> Callable[[pd.DataFrame], float]:
    """The overlap of test images with their start, above that of unrelated ones."""

    def value(rows: pd.DataFrame) -> float:
        m, null = in_time(rows, "overlap", "test"), in_time(rows, "null", "test")
        return m.loc[t or m.index[-1]] - null.loc[t or null.index[-1]]

    return value


def lifetime(rows: pd.DataFrame) -> float:
    """The median over test images [updates]."""
    return in_time(rows, "lifetime", "test").iloc[0]


def last_over_best(model: str) -> Callable[[pd.DataFrame], float]:
    """The error at the end over the least, of half of the tokens filled in."""

    def value(rows: pd.DataFrame) -> float:
        rows = rows[(rows["claim"] == "own") & (rows["model"] == model)]
        error = rows.set_index("t")["error"]
        return error.iloc[-1] / error.min()

    return value


CLAIMS = [
    Claim(3, "the energy rule does not predict: over the mean patch, above 1.2",
          on_some("energy rule", "clean"), lambda v: v > 1.2),
    Claim(3, "nor the prediction rule on clean images: above 0.9",
          on_some("prediction rule", "clean"), lambda v: v > 0.9),
    Claim(3, "on hidden tokens it does: below 0.6",
          on_some(FULL, "hidden"), lambda v: v < 0.6),
    Claim(4, "16 heads over the block, any number hidden: below 1.08",
          over("hidden", HEADS, BLOCK), lambda v: v < 1.08),
    Claim(4, "16 heads over the block, half hidden: below 1",
          over("hidden", HEADS, BLOCK, lambda r: r[-1]), lambda v: v < 1),
    Claim(4, "16 heads over regression, any number hidden: below 1",
          over("hidden", HEADS, REGRESSION), lambda v: v < 1),
    Claim(4, "one full head over regression, a quarter hidden: within 5%",
          over("hidden", FULL, REGRESSION, lambda r: r[1]), lambda v: 0.95 < v < 1.05),
    Claim(4, "one full head over bare attention: below 1",
          over("hidden", FULL, BARE), lambda v: v < 1),
    Claim(4, "the first update is best: 20 updates over one, above 1",
          later(FULL), lambda v: v > 1),
    Claim(5, "16 heads over the block, little noise: below 1",
          over("noise", HEADS, BLOCK, lambda r: r[0]), lambda v: v < 1),
    Claim(5, "16 heads over the block, any noise: below 1.02",
          over("noise", HEADS, BLOCK), lambda v: v < 1.02),
    Claim(5, "one full head over regression, little noise: above 1",
          over("noise", FULL, REGRESSION, lambda r: r[0]), lambda v: v > 1),
    Claim(5, "a self-coupling of 0.8 helps at little noise: below 1",
          over("noise", f"{FULL}, gamma 0.8", FULL, lambda r: r[0]), lambda v: v < 1),
    Claim(5, "a self-coupling of 0.8 harms at much noise: above 1",
          over("noise", f"{FULL}, gamma 0.8", FULL, lambda r: r[-1]), lambda v: v > 1),
    Claim(6, "train = test: largest difference up to t = 10, below 0.02",
          train_minus_test, lambda v: v < 0.02),
    Claim(6, "the first update stays near: overlap above the null by 0.2",
          above_null(1), lambda v: v > 0.2),
    Claim(6, "in the end nothing is left: overlap above the null, below 0.05",
          above_null(None), lambda v: v < 0.05),
    Claim(6, "median lifetime: at least 3 updates", lifetime, lambda v: v >= 3),
    Claim(13, "the plain rule loses what it filled in: end over best, above 3",
          last_over_best("plain rule"), lambda v: v > 3),
    Claim(13, "own trajectories keep it: below 1.4",
          last_over_best("own trajectories"), lambda v: v < 1.4),
]  # fmt: skip


def claims(stored: pd.DataFrame) -> pd.DataFrame:
    """All claims on all data sets, a row each that was measured: chapter, claim, data, the mean
    over the seeds, their number, and for how many it holds.
    """
    table = {}
    for (data, _), rows in stored.groupby(["data", "seed"], sort=False):
        for claim in CLAIMS:
            try:
                value = claim.value(rows)
            except (KeyError, IndexError, ValueError):
                continue
            key = (claim.chapter, claim.text), data
            table.setdefault(key, []).append(value)
    found = []
    for (about, data), values in table.items():
        (holds,) = (c.holds for c in CLAIMS if (c.chapter, c.text) == about)
        row = {"chapter": about[0], "claim": about[1], "data": data, "mean": np.mean(values)}
        found.append(row | {"seeds": len(values), "holds": sum(map(bool, map(holds, values)))})
    return pd.DataFrame(found)
