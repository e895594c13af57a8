import math

import pandas as pd
import pytest
import torch
from conftest import random_states

from attractor_book.contenders import (
    CONTENDERS,
    at_equal_cost,
    attractor,
    baselines_and_ours,
    best_within,
    described,
    n_parameters,
    update_of,
)
from attractor_lib.corruption import HideTokens, mean_token
from attractor_lib.dynamics import run
from attractor_lib.trainer import TrainingConfig


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_learns(name):
    rotations = torch.linalg.qr(torch.randn(5, 9, 9, generator=torch.Generator().manual_seed(0))).Q
    tokens = torch.einsum("iab,mb->mia", rotations, random_states(320, 9, seed=1).float())
    hide = HideTokens(2, mean_token(tokens))
    losses = []

    def report(line):
        losses.append(float(line.split("loss ")[1].split()[0]))

    stages = CONTENDERS[name].fit(
        tokens, hide, TrainingConfig(epochs=3, batch_size=32), report=report
    )
    assert len(stages) == CONTENDERS[name].n_stages and len(losses) == 3 * len(stages)
    assert losses[2] < losses[0]


def test_each_stage_of_a_cascade_learns_from_what_the_ones_before_leave():
    tokens = random_states(64, 5, 9).float()
    hide = HideTokens(2, mean_token(tokens))
    config = TrainingConfig(epochs=1, batch_size=32)
    one, three = (attractor(2, 3, 0.05, n).fit(tokens, hide, config) for n in (1, 3))
    assert torch.equal(
        one[0].couplings.U, three[0].couplings.U
    )  # the stage before is left as it was
    assert not torch.equal(three[1].couplings.U, three[2].couplings.U)
    state, sites = hide(tokens, torch.Generator().manual_seed(0))
    through = run([update_of(stage) for stage in three], state, 3, clamped=~sites)
    assert torch.equal(through.final[~sites], tokens[~sites])


def test_parameters_by_hand():
    N, d, H, r = 5, 9, 2, 3
    assert n_parameters(attractor(H, r, 0.05, 1).make(N, d, 0)) == 2 * H * N * r * d + N * d


def test_the_best_within_a_limit():
    frame = pd.DataFrame(
        [("a", 1, 0.4, 10), ("a", 1, 0.2, 10), ("a", 2, 0.1, 20), ("b", 1, 0.25, 12)],
        columns=["name", "stages", "error", "cost"],
    )
    best = best_within(frame, "cost", [5, 10, 12, 30])
    assert math.isnan(best[0]) and best[1:] == pytest.approx([0.3, 0.25, 0.1])


def test_at_equal_cost_by_hand():
    """Ours over theirs, a decade each: 0.8 / 1, 0.8 / 0.5, 0.4 / 0.5, 0.4 / 0.42: one of four is
    above 1, one between 0.9 and 1.
    """

    def frame(*models):
        return pd.DataFrame(
            [(name, 1, error, cost) for name, error, cost in models],
            columns=["name", "stages", "error", "cost"],
        )

    found = at_equal_cost(
        frame(("a", 0.8, 1), ("b", 0.4, 100)),
        frame(("c", 1.0, 1), ("d", 0.5, 10), ("e", 0.42, 1000), ("f", 0.42, 10000)),
        "cost",
        n=4001,
    )
    assert (found["lowest"], found["highest"]) == pytest.approx((0.8, 1.6))
    assert (found["from cost"], found["to cost"]) == pytest.approx((1, 10000))
    assert (found["factor at 0.90"], found["factor ahead"]) == pytest.approx((100, 1000), rel=0.01)


def test_a_frame_is_described_by_what_its_contenders_are():
    frame = described(
        pd.DataFrame({"name": ["attractor 8x16", "shared 8x16", "blocks 32"], "error": [1, 2, 3]})
    )
    assert frame["family"].tolist() == ["attractor", "attractor", "cascade of blocks"]
    assert frame["rank"].tolist()[:2] == [16, 16] and frame["shared"].tolist()[:2] == [False, True]
    assert frame["width"].tolist()[2] == 32 and frame["error"].tolist() == [1, 2, 3]


def test_the_four_models_of_chapters_4_and_5():
    models = baselines_and_ours(beta_full=1.0, beta=5.0, n_heads=4, rank=3, width=16)
    assert list(models) == [
        "attractor, 1 full head",
        "attractor, 4 heads of rank 3",
        "bare attention",
        "transformer block",
    ]
    full, low = (models[name].make(5, 9, 0) for name in list(models)[:2])
    assert (full.beta, full.n_heads, low.beta, low.n_heads) == (1.0, 1, 5.0, 4)
    assert low.couplings.U.shape == (4, 5, 3, 9) and models["attractor, 1 full head"].frozen == (
        "bias",
    )
    tokens = random_states(64, 5, 9).float()
    hide = HideTokens(2, mean_token(tokens))
    (trained,) = models["attractor, 1 full head"].fit(
        tokens, hide, TrainingConfig(epochs=1, batch_size=32), lr_factor=2.0
    )
    assert (
        not torch.equal(trained.couplings.dense(), full.couplings.dense())
        and not trained.bias.any()
    )
    with pytest.raises(ValueError, match="width must be a multiple of 8"):
        baselines_and_ours(1.0, 5.0, 4, 3, width=12)
