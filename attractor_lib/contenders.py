"""The models that are compared at equal cost: how each is made and trained (notebook 14_accuracy_for_its_cost)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attractor_lib.baselines import BareAttention, EnergyTransformer, HopfieldLayer, TransformerBlock, backpropagation
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.own_trajectory import AfterStages
from attractor_lib.shared_factors import SharedFactors
from attractor_lib.trainer import Rule, TrainingConfig, train


@dataclass(frozen=True)
class Contender:
    """A model to compare, and how it is trained.

    family: what it is called.
    make: (n_sites, dim, seed) -> a stage.
    rule: of its training.
    learning_rate: of Adam at the start, tuned.
    n_stages: a cascade has as many networks, one for each update; each is trained after the one before.
    """

    family: str
    make: Callable[[int, int, int], nn.Module]
    rule: Rule
    learning_rate: float
    n_stages: int = 1

    def fit(self, tokens: Tensor, corrupt: Callable, config: TrainingConfig, report: Callable | None = None) -> list[nn.Module]:
        """Its stages, trained one after the other on clean tokens (n, N, d); `config` with its own learning rate."""
        stages = []
        for t in range(self.n_stages):
            seed = config.seed + 1000 * t
            stage = self.make(*tokens.shape[1:], seed).to(tokens.device)
            after = AfterStages(tuple(map(update_of, stages)), corrupt)
            train(stage, self.rule, tokens, after, replace(config, learning_rate=config.learning_rate * self.learning_rate, seed=seed),
                  report=report)
            stages.append(stage)
        return stages


def attractor(n_heads: int, rank: int, learning_rate: float, n_stages: int) -> Contender:
    """A cascade of attractor networks, trained by the prediction rule."""
    def make(n_sites: int, dim: int, seed: int) -> AttractorNetwork:
        return AttractorNetwork(n_sites, dim, n_heads, rank, beta=5.0, generator=torch.Generator().manual_seed(seed))

    return Contender(f"attractor, {n_heads} heads of rank {rank}", make, prediction_rule, learning_rate, n_stages)


def sharing(n_heads: int, rank: int, learning_rate: float, n_stages: int) -> Contender:
    """The same, the factors being two matrices shared by all sites."""
    def make(n_sites: int, dim: int, seed: int) -> SharedFactors:
        return SharedFactors(n_sites, dim, n_heads, rank, 2, beta=5.0, generator=torch.Generator().manual_seed(seed))

    return Contender(f"attractor, {n_heads} heads of rank {rank}, shared", make, prediction_rule, learning_rate, n_stages)


def baseline(kind: type, family: str, size: int, learning_rate: float) -> Contender:
    """A model of ``attractor_lib.baselines`` of that size, trained by backpropagation."""
    return Contender(family, lambda n_sites, dim, seed: kind(n_sites, dim, size, seed=seed), backpropagation, learning_rate)


CONTENDERS = {
    "attractor 2x8": attractor(2, 8, 4e-2, 4), "attractor 4x8": attractor(4, 8, 4e-2, 4),
    "attractor 8x16": attractor(8, 16, 2e-2, 4), "attractor 16x16": attractor(16, 16, 2e-2, 3),
    "shared 4x16": sharing(4, 16, 4e-2, 4), "shared 8x16": sharing(8, 16, 4e-2, 4), "shared 8x32": sharing(8, 32, 4e-2, 4),
    **{f"bare attention {width}": baseline(BareAttention, "bare attention", width, rate)
       for width, rate in ((32, 2e-2), (64, 1.4e-2), (128, 1e-2), (256, 6e-3))},
    **{f"transformer block {width}": baseline(TransformerBlock, "transformer block", width, rate)
       for width, rate in ((32, 1e-2), (64, 7e-3), (128, 4e-3), (256, 1e-3))},
    "energy transformer 64": baseline(EnergyTransformer, "Energy Transformer", 64, 1.4e-2),
    "Hopfield layer 256": baseline(HopfieldLayer, "modern Hopfield layer", 256, 2e-2),
}
# Blocks as stages, each trained by itself, as ours are.
CONTENDERS |= {f"blocks {width}": replace(CONTENDERS[f"transformer block {width}"], family=f"cascade of blocks {width}", n_stages=3)
               for width in (32, 64)}


def update_of(stage: nn.Module) -> Callable[[Tensor], Tensor]:
    """A step of the dynamics: the update of an attractor network, the prediction of any other model."""
    return stage.update if isinstance(stage, AttractorNetwork) else stage


def n_parameters(stage: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in stage.parameters())


def best_within(frame: pd.DataFrame, cost: str, limits: list[float]) -> list[float]:
    """The lowest mean error over seeds of the models in a frame that cost at most each limit; NaN where there is none.

    frame: columns `name`, `stages`, `error` and the cost.
    """
    models = frame.groupby(["name", "stages"])[["error", cost]].mean()
    return [models.loc[models[cost] <= limit, "error"].min() for limit in limits]


def at_equal_cost(ours: pd.DataFrame, theirs: pd.DataFrame, cost: str, aim: float = 0.9, n: int = 201) -> dict[str, float]:
    """The best of `ours` against the best of `theirs` within each of n costs, from that of the cheapest of `theirs` to that of
    the dearest of all.

    Frames as for `best_within`. Returns the lowest and highest ratio of errors, the ends of the range of costs, and the factors
    in cost over which the ratio is at most `aim`, and below 1, all parts of the range taken together.
    """
    least, most = theirs[cost].min() * (1 + 1e-9), max(ours[cost].max(), theirs[cost].max())
    limits = np.geomspace(least, most, n)
    ratio = np.divide(best_within(ours, cost, limits), best_within(theirs, cost, limits))
    return {"lowest": np.nanmin(ratio), "highest": np.nanmax(ratio), "from cost": least, "to cost": most,
            f"factor at {aim:.2f}": (most / least) ** (ratio <= aim).mean(), "factor ahead": (most / least) ** (ratio < 1).mean()}
