"""The models that are compared at equal cost: how each is made and trained (notebook
14_accuracy_for_its_cost).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attractor_lib.baselines import (
    BareAttention,
    EnergyTransformer,
    HopfieldLayer,
    TransformerBlock,
    backpropagation,
)
from attractor_lib.cascade import AfterStages, Cascade
from attractor_lib.couplings import SharedFactors
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import Rule, TrainingConfig, train


@dataclass(frozen=True)
class Contender:
    """A model to compare, and how it is trained.

    Attributes:
        label: what figures and tables call it.
        family: "attractor", or the kind of baseline.
        make: (n_sites, dim, seed) -> a stage.
        rule: of its training.
        learning_rate: of Adam at the start, tuned.
        n_stages: a cascade has as many networks, one for each update; each is trained after the one
            before.
        frozen: names of the parameters that stay as they are.
        sizes: its heads and rank, or its width; whether sites share their factors.
    """

    label: str
    family: str
    make: Callable[[int, int, int], nn.Module]
    rule: Rule
    learning_rate: float
    n_stages: int = 1
    frozen: tuple[str, ...] = ()
    sizes: Mapping[str, int | bool] = field(default_factory=dict, compare=False)

    def fit(
        self,
        tokens: Tensor,
        corrupt: Callable,
        config: TrainingConfig,
        lr_factor: float = 1.0,
        report: Callable | None = None,
    ) -> list[nn.Module]:
        """Its stages, trained one after the other on clean tokens (n, N, d).

        Args:
            tokens: on the device where it is trained.
            corrupt: as for `attractor_lib.trainer.train`.
            config: of the training; the learning rate and what is frozen are the contender's own.
            lr_factor: times its learning rate.
            report: as for `train`.
        """
        cascade = Cascade()
        for t in range(self.n_stages):
            seed = config.seed + 1000 * t
            stage = self.make(*tokens.shape[1:], seed).to(tokens.device)
            after = AfterStages(cascade, corrupt)
            rate = lr_factor * self.learning_rate
            own = replace(config, learning_rate=rate, frozen=self.frozen, seed=seed)
            train(stage, self.rule, tokens, after, own, report=report)
            cascade.add(stage)
        return list(cascade.stages)


def attractor(
    n_heads: int, rank: int | None, learning_rate: float, n_stages: int = 1, beta: float = 5.0
) -> Contender:
    """A cascade of attractor networks, trained by the prediction rule; of full heads if rank is
    None.
    """

    def make(n_sites: int, dim: int, seed: int) -> AttractorNetwork:
        generator = torch.Generator().manual_seed(seed)
        return AttractorNetwork(n_sites, dim, n_heads, rank, beta, generator=generator)

    heads = f"{n_heads} {'full ' if rank is None else ''}head{'s' if n_heads > 1 else ''}"
    label = f"attractor, {heads}" + ("" if rank is None else f" of rank {rank}")
    sizes = {"heads": n_heads, "rank": rank, "shared": False}
    frozen = ("bias",) if rank is None else ()
    rule = prediction_rule
    return Contender(label, "attractor", make, rule, learning_rate, n_stages, frozen, sizes)


def sharing(n_heads: int, rank: int, learning_rate: float, n_stages: int) -> Contender:
    """The same, the factors being two matrices shared by all sites."""

    def make(n_sites: int, dim: int, seed: int) -> AttractorNetwork:
        generator = torch.Generator().manual_seed(seed)
        couplings = SharedFactors.random(n_heads, n_sites, dim, rank, 2, generator)
        return AttractorNetwork(n_sites, dim, beta=5.0, couplings=couplings)

    label = f"attractor, {n_heads} heads of rank {rank}, shared"
    sizes = {"heads": n_heads, "rank": rank, "shared": True}
    rule = prediction_rule
    return Contender(label, "attractor", make, rule, learning_rate, n_stages, sizes=sizes)


def baseline(kind: type, family: str, width: int, learning_rate: float) -> Contender:
    """A model of ``attractor_lib.baselines`` of that width, trained by backpropagation."""

    def make(n_sites: int, dim: int, seed: int) -> nn.Module:
        return kind(n_sites, dim, width, seed=seed)

    return Contender(family, family, make, backpropagation, learning_rate, sizes={"width": width})


def blocks(width: int, n_stages: int = 3) -> Contender:
    """A cascade of transformer blocks, each trained by itself, as ours are."""
    label, family = f"cascade of blocks {width}", "cascade of blocks"
    block = CONTENDERS[f"transformer block {width}"]
    return replace(block, label=label, family=family, n_stages=n_stages)


CONTENDERS = {
    "attractor 2x8": attractor(2, 8, 4e-2, 4),
    "attractor 4x8": attractor(4, 8, 4e-2, 4),
    "attractor 8x16": attractor(8, 16, 2e-2, 4),
    "attractor 16x16": attractor(16, 16, 2e-2, 3),
    "shared 4x16": sharing(4, 16, 4e-2, 4),
    "shared 8x16": sharing(8, 16, 4e-2, 4),
    "shared 8x32": sharing(8, 32, 4e-2, 4),
    **{
        f"bare attention {width}": baseline(BareAttention, "bare attention", width, rate)
        for width, rate in ((32, 2e-2), (64, 1.4e-2), (128, 1e-2), (256, 6e-3))
    },
    **{
        f"transformer block {width}": baseline(TransformerBlock, "transformer block", width, rate)
        for width, rate in ((32, 1e-2), (64, 7e-3), (128, 4e-3), (256, 1e-3))
    },
    "energy transformer 64": baseline(EnergyTransformer, "Energy Transformer", 64, 1.4e-2),
    "Hopfield layer 256": baseline(HopfieldLayer, "modern Hopfield layer", 256, 2e-2),
}
CONTENDERS |= {f"blocks {width}": blocks(width) for width in (32, 64)}


def baselines_and_ours(
    beta_full: float, beta: float, n_heads: int, rank: int, width: int
) -> dict[str, Contender]:
    """The four models of chapters 4 and 5 by label, with the learning rates tuned there.

    Raises:
        ValueError: for a width that the 8 heads of the baselines cannot share.
    """
    if width % 8:
        raise ValueError(f"width must be a multiple of 8, the heads of the baselines, got {width}")
    models = [
        attractor(1, None, 2e-2, beta=beta_full),
        attractor(n_heads, rank, 1e-2, beta=beta),
        baseline(BareAttention, "bare attention", width, 1e-2),
        baseline(TransformerBlock, "transformer block", width, 5e-3),
    ]
    return {model.label: model for model in models}


def described(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with columns family, heads, rank, shared and width of the contender that its column
    `name` names.
    """
    about = {n: {"family": c.family, **c.sizes} for n, c in CONTENDERS.items()}
    return frame.join(pd.DataFrame(about).T.astype({"family": str}), on="name")


def update_of(stage: nn.Module) -> Callable[[Tensor], Tensor]:
    """A step of the dynamics: the update of an attractor network, the prediction of any other
    model.
    """
    return stage.update if isinstance(stage, AttractorNetwork) else stage


def n_parameters(stage: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in stage.parameters())


def best_within(frame: pd.DataFrame, cost: str, limits: list[float]) -> list[float]:
    """The lowest mean error over seeds of the models that cost at most each limit; NaN where there
    is none.

    Args:
        frame: columns `name`, `stages`, `error` and the cost.
        cost: the name of that column.
        limits: of the cost.
    """
    models = frame.groupby(["name", "stages"])[["error", cost]].mean()
    return [models.loc[models[cost] <= limit, "error"].min() for limit in limits]


def at_equal_cost(
    ours: pd.DataFrame, theirs: pd.DataFrame, cost: str, aim: float = 0.9, n: int = 201
) -> dict[str, float]:
    """The best of `ours` against the best of `theirs` within each of n costs.

    The costs go from that of the cheapest of `theirs` to that of the dearest of all; frames are as
    for `best_within`.

    Returns:
        The lowest and highest ratio of errors, the ends of the range of costs, and the factors in
        cost over which the ratio is at most `aim`, and below 1, all parts of the range taken
        together.
    """
    least = theirs[cost].min() * (1 + 1e-9)
    most = max(ours[cost].max(), theirs[cost].max())
    limits = np.geomspace(least, most, n)
    ratio = np.divide(best_within(ours, cost, limits), best_within(theirs, cost, limits))
    return {
        "lowest": np.nanmin(ratio),
        "highest": np.nanmax(ratio),
        "from cost": least,
        "to cost": most,
        f"factor at {aim:.2f}": (most / least) ** (ratio <= aim).mean(),
        "factor ahead": (most / least) ** (ratio < 1).mean(),
    }
