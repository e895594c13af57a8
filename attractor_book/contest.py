"""The contest of long training: who takes part, and how each is trained (19_verdict)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import linregress
from torch import Tensor, nn

from attractor_book.contenders import n_parameters
from attractor_lib.analysis import pixel_error
from attractor_lib.baselines import BareAttention, TransformerStack, backpropagation
from attractor_lib.cascade import AfterStages, AmongStages, Cascade, start_from
from attractor_lib.couplings import LowRank, SharedFactors
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import clamp
from attractor_lib.trainer import TrainingConfig, train

Predict = Callable[[Tensor, Tensor], Tensor]  # (state, sites) -> tokens
Watch = Callable[[Predict], float]


@dataclass(frozen=True)
class Trained:
    """A model, and what its training took.

    Attributes:
        model: the module that was trained, or of which the last stage was.
        predict: (state, sites) -> tokens.
        stages: how many it has.
        parameters: numbers that were trained, all stages before included.
        curve: one record an epoch of the last stage: epoch, loss, seconds, and error on the images
            left out.
    """

    model: nn.Module
    predict: Predict
    stages: int
    parameters: int
    curve: list[dict]


@dataclass(frozen=True)
class EndToEnd:
    """A model trained by backpropagation, as practitioners do: AdamW, warm-up, cosine.

    Attributes:
        family: what figures call it.
        make: (n_sites, dim, seed) -> the model.
        learning_rate: tuned.
        weight_decay: of AdamW.
    """

    family: str
    make: Callable[..., nn.Module]
    learning_rate: float
    weight_decay: float = 0.01

    def fit(
        self, tokens: Tensor, corrupt: Callable, config: TrainingConfig, watch: Watch, **_
    ) -> Iterator[Trained]:
        """The model, trained on clean tokens (n, N, d); config's rate is times the tuned one."""
        model = self.make(*tokens.shape[1:], seed=config.seed).to(tokens.device)
        config = replace(
            config,
            learning_rate=config.learning_rate * self.learning_rate,
            optimizer="AdamW",
            weight_decay=self.weight_decay,
            warmup=0.05,
        )

        def predict(state: Tensor, sites: Tensor) -> Tensor:
            with torch.no_grad():
                return model(state)

        error = partial(watch, predict)
        curve = watched(model, backpropagation, tokens, corrupt, config, error)
        yield Trained(model, predict, 1, n_parameters(model), curve)


def watched(
    model, rule, tokens, corrupt, config: TrainingConfig, error: Callable | None
) -> list[dict]:
    """The history of a training, with error() after each epoch; empty without it."""
    steps = len(tokens) // config.batch_size

    def observe(_, step: int) -> dict | None:
        return {"error": error()} if step and step % steps == 0 else None

    history = train(
        model, rule, tokens, corrupt, config, observe=observe if error else None, report=None
    )
    if error is None:
        return []
    return [
        {**{name: record[name] for name in ("epoch", "loss", "seconds")}, **record["observed"][-1]}
        for record in history
    ]


def stack(width: int, learning_rate: float, **depth: int) -> EndToEnd:
    """Blocks of that width on top of each other (`TransformerStack`)."""

    def make(n_sites: int, dim: int, seed: int) -> nn.Module:
        return TransformerStack(n_sites, dim, width, seed=seed, **depth)

    looped = depth.get("n_loops", 1) > 1
    family = "looped block" if looped else "block" if depth["n_layers"] == 1 else "stack of blocks"
    return EndToEnd(family, make, learning_rate)


def bare_attention(width: int, learning_rate: float) -> EndToEnd:
    """One attention layer."""

    def make(n_sites: int, dim: int, seed: int) -> nn.Module:
        return BareAttention(n_sites, dim, width, seed=seed)

    return EndToEnd("bare attention", make, learning_rate)


@dataclass(frozen=True)
class Layered:
    """A cascade of attractor networks, each trained by the prediction rule alone, from the stage
    before it on: Adam, warm-up, cosine. What is trained after each stage is a model.

    Attributes:
        n_heads, rank: of each stage.
        hidden: whether it hands on hidden spins.
        n_stages: networks.
        learning_rate: tuned.
        n_shared: None, or matrices that the sites share (`SharedFactors`).
        weight_decay: of AdamW, or 0 for Adam.
        afresh: whether stages start from random couplings, not as the one before.
        recurrent: whether all stages are one network, trained at its own states for as many epochs
            as all stages have.
        end_to_end: a control, all stages trained together, by backpropagation through them, for as
            many epochs as all stages have.
    """

    n_heads: int
    rank: int
    hidden: bool
    n_stages: int
    learning_rate: float
    n_shared: int | None = None
    weight_decay: float = 0.0
    afresh: bool = False
    recurrent: bool = False
    end_to_end: bool = False

    @property
    def family(self) -> str:
        if not self.hidden:
            return "cascade"
        kind = "hidden spins" + ", recurrent" * self.recurrent
        return kind if self.n_shared is None else kind + ", shared"

    def network(self, n_sites: int, dim: int, n_known: int, generator) -> AttractorNetwork:
        """A stage for tokens of dim components."""
        sizes = self.n_heads, n_sites, dim + n_known, self.rank
        couplings = (
            LowRank.random(*sizes, generator=generator)
            if self.n_shared is None
            else SharedFactors.random(*sizes, self.n_shared, generator=generator)
        )
        form = {"couplings": couplings, "n_known": n_known}
        return AttractorNetwork(n_sites, dim + n_known, beta=10.0, **form)

    def tuned(self, config: TrainingConfig) -> TrainingConfig:
        """The configuration with this cascade's optimiser; its learning rate multiplies ours."""
        rate = config.learning_rate * self.learning_rate
        own = {"learning_rate": rate, "warmup": 0.1, "optimizer": "AdamW"}
        return replace(config, **own, weight_decay=self.weight_decay)

    def fit(
        self,
        tokens: Tensor,
        corrupt: Callable,
        config: TrainingConfig,
        watch: Watch | None = None,
        keeps_given: bool = False,
    ) -> Iterator[Trained]:
        """The first 1, 2 ... stages, as for `EndToEnd`; with `keeps_given` as for `Cascade`."""
        if self.end_to_end or self.recurrent:
            yield from self.fit_together(tokens, corrupt, config, watch, keeps_given)
            return
        n_sites, dim = tokens.shape[1:]
        cascade = Cascade(self.hidden, keeps_given).to(tokens.device)
        for t in range(self.n_stages):
            seed = config.seed + 1000 * t
            generator = torch.Generator().manual_seed(seed)
            stage = self.network(n_sites, dim, cascade.n_known(dim), generator).to(tokens.device)
            if t and not self.afresh:
                start_from(stage, cascade.stages[-1])
            after = AfterStages(cascade, corrupt)
            own = replace(self.tuned(config), seed=seed)

            def so_far(state: Tensor, sites: Tensor, stage=stage, cascade=cascade) -> Tensor:
                new = stage.spins(stage.update(cascade.seen(state, sites)))
                return clamp(new, state, ~sites)

            error = watch and partial(watch, so_far)
            curve = watched(stage, prediction_rule, tokens, after, own, error)
            cascade.add(stage)
            predict = partial(cascade, n_stages=t + 1)
            yield Trained(cascade, predict, t + 1, n_parameters(cascade), curve)

    def untrained(self, n_sites: int, dim: int, keeps_given: bool, seed: int, device) -> Cascade:
        """All stages."""
        cascade = Cascade(self.hidden, keeps_given)
        known = (self.n_heads * self.rank if self.hidden else 0) + keeps_given * dim
        for t in range(self.n_stages):
            if not (self.recurrent and t):
                n_known = known if self.recurrent or t else 0
                generator = torch.Generator().manual_seed(seed + 1000 * t)
                stage = self.network(n_sites, dim, n_known, generator)
            cascade.add(stage)
        return cascade.to(device)

    def fit_together(self, tokens, corrupt, config, watch, keeps_given) -> Iterator[Trained]:
        """All stages, none trained before the others."""
        cascade = self.untrained(*tokens.shape[1:], keeps_given, config.seed, tokens.device)
        trained, rule = cascade, through_all_stages
        if not self.end_to_end:
            trained, rule = cascade.stages[0], prediction_rule
            corrupt = AmongStages(cascade, corrupt)
        config = replace(self.tuned(config), epochs=config.epochs * self.n_stages)
        error = watch and partial(watch, cascade)
        curve = watched(trained, rule, tokens, corrupt, config, error)
        for t in range(self.n_stages if self.end_to_end else 1, self.n_stages + 1):
            about = n_parameters(cascade), curve if t == self.n_stages else []
            yield Trained(cascade, partial(cascade, n_stages=t), t, *about)


def through_all_stages(
    cascade: Cascade, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of what the last stage leaves, and autograd's gradients of all stages."""
    names, parameters = zip(*cascade.named_parameters(), strict=True)
    cascade.requires_grad_(True)
    try:
        with torch.enable_grad():
            residual = (cascade(state, sites) - target) * sites[..., None]
            loss = residual.square().sum() / (2 * len(state))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        cascade.requires_grad_(False)
    unused = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients))
    return loss.detach(), dict(zip(names, unused, strict=True))


ENTRANTS = {
    "cascade 16x8": Layered(16, 8, False, 4, 2e-2),
    "hidden 4x8": Layered(4, 8, True, 8, 2e-2),
    "hidden 8x8": Layered(8, 8, True, 8, 2e-2),
    "hidden 16x8": Layered(16, 8, True, 6, 2e-2),
    "hidden 32x8": Layered(32, 8, True, 5, 2e-2),
    "hidden 16x8, decay": Layered(16, 8, True, 6, 2e-2, weight_decay=0.05),
    "hidden 32x8, decay": Layered(32, 8, True, 6, 2e-2, weight_decay=0.05),
    "shared 8x8": Layered(8, 8, True, 8, 3e-2, n_shared=2),
    "bare attention 128": bare_attention(128, 8e-3),
    "block 64, last norm": stack(64, 8e-3, n_layers=1, last_norm=True),
    **{f"block {width}": stack(width, 8e-3, n_layers=1) for width in (32, 64, 128, 256)},
    **{f"stack {n} x 64": stack(64, 8e-3, n_layers=n) for n in (2, 4)},
    "stack 2 x 64, last norm": stack(64, 8e-3, n_layers=2, last_norm=True),
    "recurrent 8x8, decay": Layered(8, 8, True, 6, 2e-2, weight_decay=0.05, recurrent=True),
    "recurrent 16x8, decay": Layered(16, 8, True, 6, 2e-2, weight_decay=0.05, recurrent=True),
    "recurrent 32x8, decay": Layered(32, 8, True, 6, 2e-2, weight_decay=0.05, recurrent=True),
    "recurrent 8x8, shared": Layered(8, 8, True, 6, 3e-2, n_shared=2, recurrent=True),
    "looped 2 x 64": stack(64, 8e-3, n_layers=1, n_loops=2),
    "looped 4 x 64": stack(64, 8e-3, n_layers=1, n_loops=4),
    "looped 2 x 128": stack(128, 8e-3, n_layers=1, n_loops=2),
}
ENTRANTS |= {
    f"{name}, decay": replace(ENTRANTS[name], weight_decay=0.1)
    for name in ("block 128", "block 256", "stack 4 x 64", "looped 2 x 128")
}


def priced_as(name: str) -> str:
    """The entrant of the benchmark that costs the same: AdamW's weight decay costs nothing."""
    return name.removesuffix(", decay") if isinstance(ENTRANTS[name], EndToEnd) else name


def with_family(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with a column `family`, that of the entrant that its column `name` names."""
    return frame.assign(family=[ENTRANTS[name].family for name in frame["name"]])


OURS = (  # families
    "cascade",
    "hidden spins",
    "hidden spins, shared",
    "hidden spins, recurrent",
    "hidden spins, recurrent, shared",
)
RIVALS = {"a block": ("block", "looped block", "bare attention"), "a stack": ("stack of blocks",)}
COSTS = ["parameters", "operations", "seconds"]
MODEL = ["data", "task", "name", "stages", "epochs", "lr_factor"]  # what tells models apart


def models(stored: pd.DataFrame, costs: pd.DataFrame, n_images: int = 55_000) -> pd.DataFrame:
    """A row a model, seed and level: its family, errors, and costs.

    Of several learning rates only the one that is best on the images left out, over all levels.

    Args:
        stored: the rows of the stored runs.
        costs: those of the benchmark `verdict`, of one run or several, of which medians count.
        n_images: that a model is trained on in an epoch.

    Returns:
        The columns of `MODEL`, family, seed, level, "left out" and "test" (errors), parameters,
        operations (for an image) and seconds (of training, stages before included).
    """
    errors = stored[(stored["what"] == "error") & (stored["n_train"] == n_images)]
    keys = [*MODEL, "parameters", "seed", "level"]
    wide = errors.pivot_table("error", keys, "split").reset_index()
    costs = costs.groupby(["task", "name", "stages"])[["operations", "training µs"]].median()
    costs = costs.rename_axis(["task", "priced as", "stages"])
    wide = with_family(wide).assign(**{"priced as": wide["name"].map(priced_as)})
    wide = wide.merge(costs, on=["task", "priced as", "stages"]).drop(columns="priced as")
    seconds = 1e-6 * wide.pop("training µs") * wide["epochs"] * n_images
    wide = wide.assign(seconds=seconds)
    keys = [key for key in MODEL if key != "lr_factor"]
    rates = wide.groupby([*keys, "lr_factor"])["left out"].mean().groupby(keys).idxmin()
    return wide[pd.MultiIndex.from_frame(wide[[*keys, "lr_factor"]]).isin(rates)]


def sides(models: pd.DataFrame, rival: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Our models, and those of a rival, by the names of `RIVALS`."""
    ours, theirs = (models[models["family"].isin(f)] for f in (OURS, RIVALS[rival]))
    return ours, theirs


def verdicts(models: pd.DataFrame) -> pd.DataFrame:
    """The best of each side whatever it costs, chosen on the images left out.

    Returns:
        A row a data set, task, level and rival: who was chosen, test errors, their ratio, and from
        where to where it lies over the seeds.
    """
    rows = []
    for (data, task, level), frame in models.groupby(["data", "task", "level"]):
        for rival in RIVALS:
            ours, theirs = (chosen(f, "seconds", [math.inf]).iloc[0] for f in sides(frame, rival))
            row = {"data": data, "task": task, "level": level, "rival": rival}
            row |= {"ours": ours["test"], "theirs": theirs["test"]}
            row |= {"our model": ours["name"], "their model": theirs["name"]}
            row |= {"ratio": ours["test"] / theirs["test"]}
            row |= {"from": ours["low"] / theirs["high"], "to": ours["high"] / theirs["low"]}
            rows.append(row)
    return pd.DataFrame(rows)


def prices(models: pd.DataFrame) -> pd.DataFrame:
    """What the best of each side costs, chosen on the images left out; of models of one level.

    Returns:
        A row for ours, for the best of ours that needs no more operations than the best block, and
        for each rival: name, stages, error on the test images, and costs.
    """
    ours = sides(models, "a block")[0]

    def best(of: pd.DataFrame, operations: float = math.inf) -> pd.Series:
        return chosen(of, "operations", [operations]).iloc[0]

    theirs = {rival: best(sides(models, rival)[1]) for rival in RIVALS}
    within = best(ours, theirs["a block"]["operations"])
    rows = {"ours": best(ours), "ours, at a block's operations": within, **theirs}
    found = pd.DataFrame(rows).T.infer_objects()
    return found[["name", "stages", "test", *COSTS]].rename(columns={"test": "error"})


def at_equal_cost(models: pd.DataFrame, costs, aims: dict[str, float]) -> pd.DataFrame:
    """`summary` of the ratio for each data set, task, level, rival and cost; aims by rival, but 1
    at equal parameters.
    """
    rows = []
    for (data, task, level), frame in models.groupby(["data", "task", "level"]):
        for rival in RIVALS:
            for cost in costs:
                about = {"data": data, "task": task, "rival": rival, "cost": cost, "level": level}
                aim = 1.0 if cost == "parameters" else aims[rival]
                rows.append(about | summary(ratio(*sides(frame, rival), cost), aim))
    return pd.DataFrame(rows)


def chosen(models: pd.DataFrame, cost: str, limits) -> pd.DataFrame:
    """Within each limit of a cost, the model with the lowest error on the images left out.

    Args:
        models: as `models` returns them, of one level; errors are means over the seeds.
        cost: one of `COSTS`.
        limits: of the cost.

    Returns:
        A row a limit: its name, stages and epochs, its test error, lowest and highest over the
        seeds too, and its costs; NaN where nothing is as cheap.
    """
    of = models.groupby(MODEL).agg(
        left_out=("left out", "mean"),
        test=("test", "mean"),
        low=("test", "min"),
        high=("test", "max"),
        **{name: (name, "mean") for name in COSTS},
    )
    rows = []
    for limit in limits:
        within = of[of[cost] <= limit * (1 + 1e-9)]
        best = within["left_out"].idxmin() if len(within) else None
        about = {} if best is None else dict(zip(MODEL, best)) | within.loc[best].to_dict()
        rows.append({"limit": limit, **about})
    return pd.DataFrame(rows).reindex(
        columns=["limit", "name", "stages", "epochs", "test", "low", "high", *COSTS]
    )


def ratio(ours: pd.DataFrame, theirs: pd.DataFrame, cost: str, n: int = 201) -> pd.DataFrame:
    """The best of ours over the best of theirs within each limit of a cost: where a model comes in,
    and at others, evenly on a logarithmic scale, n with the ends.

    From the cost at which both have a model to that of the dearest of all.

    Returns:
        Columns limit, ratio, and low and high, its range over the seeds; and beyond, whether all of
        theirs are cheaper than that.
    """
    least, dearest = max(ours[cost].min(), theirs[cost].min()), theirs[cost].max()
    between = np.geomspace(least, max(ours[cost].max(), dearest), n)[1:-1]
    limits = np.concatenate([between, ours[cost], theirs[cost]])
    limits = np.unique([least, *limits[limits > least]])
    a, b = chosen(ours, cost, limits), chosen(theirs, cost, limits)
    return pd.DataFrame(
        {
            "limit": limits,
            "ratio": a["test"] / b["test"],
            "low": a["low"] / b["high"],
            "high": a["high"] / b["low"],
            "beyond": limits > dearest * (1 + 1e-9),
        }
    )


def summary(frame: pd.DataFrame, aim: float) -> dict[str, float]:
    """What a ratio over a range of costs comes to, of the frame that `ratio` returns.

    Returns:
        Up to the dearest of theirs its lowest and highest value; the factors in cost over which it
        is at most `aim`, and below 1, of the factor from first to dearest (where the value at the
        dearest itself counts for none of them); NaN where all of theirs are cheaper than the first
        of ours. And its value at any cost.
    """
    within = frame[~frame["beyond"]]
    factors = within["limit"].shift(-1) / within["limit"]  # each holds until the next

    def product(where: pd.Series) -> float:
        return factors[where].prod() if len(within) else math.nan

    return {
        "lowest": within["ratio"].min(),
        "highest": within["ratio"].max(),
        "at any cost": frame["ratio"].iloc[-1],
        "factor at the aim": product(within["ratio"] <= aim),
        "factor ahead": product(within["ratio"] < 1),
        "of": product(within["ratio"] > 0),
    }


LAWS = {  # of whom, by family: against seconds of training, train images, and parameters
    "hidden spins": ("hidden 16x8, decay", "hidden 16x8, decay", ["hidden 16x8, decay"]),
    "stack of blocks": (
        "stack 4 x 64",
        "stack 2 x 64",
        ["block 64", "stack 2 x 64", "stack 4 x 64"],
    ),
    "block": (
        "block 64",
        "block 64",
        ["block 32", "block 64", "block 128, decay", "block 256, decay"],
    ),
}
DRAWN = {"hidden spins": 3 * 55_000, "stack of blocks": 15 * 55_000, "block": 15 * 55_000}


def law_points(stored: pd.DataFrame, costs: pd.DataFrame, level: float) -> pd.DataFrame:
    """Errors on hidden tokens of MNIST against seconds of training with all images, train images at
    a fixed number of steps, and parameters as depth or width grows; arguments as for `models`.

    Returns:
        Columns family, x (one of those three), at, and error, of seed 0.
    """
    there = [n for n in (13_750, 27_500, 55_000) if (stored["n_train"] == n).any()]
    sizes = [models(stored, costs, n).assign(images=n) for n in there]
    of = pd.concat(sizes)
    mnist = (of["data"] == "MNIST") & (of["task"] == "hidden") & (of["seed"] == 0)
    of = of[mnist & (of["level"] == level)].rename(columns={"test": "error"})
    all_images = of[of["images"] == 55_000]
    longest = all_images["epochs"] == all_images.groupby("name")["epochs"].transform("max")
    last = of["stages"] == of.groupby("name")["stages"].transform("max")
    parts = []
    for family, (by_time, by_images, by_size) in LAWS.items():
        drawn = of["epochs"] * of["images"] == DRAWN[family]
        for x, frame in (
            ("seconds", of[last & (of["name"] == by_time) & (of["images"] == 55_000)]),
            ("images", of[last & (of["name"] == by_images) & drawn]),
            ("parameters", all_images[longest & all_images["name"].isin(by_size)]),
        ):
            parts.append(frame.assign(family=family, x=x, at=frame[x]))
    return pd.concat(parts)[["family", "x", "at", "error"]].sort_values("at")


def law(x, errors) -> dict[str, float]:
    """errors = c x^-a, fitted by least squares of the logarithms.

    Returns:
        The exponent a, its standard error, and c.

    Raises:
        ValueError: for fewer than three points, of which no error can be told.
    """
    if len(x) < 3:
        raise ValueError(f"x must hold at least 3 numbers, got {len(x)}")
    fit = linregress(np.log(x), np.log(errors))
    return {"a": -fit.slope, "error of a": fit.stderr, "c": math.exp(fit.intercept)}


def meet(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Where two laws of `law` meet: x, or infinity where it lies at no finite number."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.log(theirs["c"] / ours["c"]) / (theirs["a"] - ours["a"])))


@dataclass(frozen=True)
class Trial:
    """Corrupted images to restore, the same for everyone.

    Args:
        tokens: clean (n, N, d).
        pixels: of their patches (n, N, P).
        corrupt: as for ``attractor_lib.trainer.train``.
        embedding: how tokens are made of pixels.
        seed: of the corruption.
    """

    tokens: Tensor
    pixels: Tensor
    corrupt: Callable
    embedding: object
    seed: int = 0

    def errors(self, predict: Predict, block: int = 1000) -> Tensor:
        """The mean squared error per pixel on the corrupted sites of each image: (n,)."""
        generator = torch.Generator(self.tokens.device).manual_seed(self.seed)
        errors = []
        for x, true in zip(self.tokens.split(block), self.pixels.split(block), strict=True):
            state, sites = self.corrupt(x, generator)
            errors.append(pixel_error(predict(state, sites), true, sites, self.embedding))
        return torch.cat(errors)
