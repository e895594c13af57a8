"""An epoch of the trainer against its bare steps, and the dynamics against bare updates.

The epoch hides tokens besides; the steps are the rule's and Adam's on one batch. In the dynamics
half of the sites are clamped.
"""

import torch
from measure import example, interleaved, ratios, spread, training_step

from attractor_lib.corruption import HideTokens, mean_token
from attractor_lib.dynamics import run
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train

N, D = 16, 50
PROFILES = {"quick": {"n_steps": 10, "rounds": 3}, "full": {"n_steps": 100, "rounds": 8}}


def rows(device, n_steps, rounds):
    for batch in (250, 1000):
        tokens = example(n_steps * batch, N, D, device)[0]
        hide = HideTokens(8, mean_token(tokens), least=1)
        data = example(batch, N, D, device)
        clamped = torch.rand(batch, N, generator=torch.Generator().manual_seed(0)).to(device) < 0.5
        for heads, rank in ((1, None), (16, 16)):
            network = AttractorNetwork(N, D, heads, rank).to(device)
            step = training_step(network, prediction_rule, data)
            config = TrainingConfig(epochs=1, batch_size=batch, learning_rate=1e-9)
            seconds = interleaved(
                {
                    "epoch": lambda network=network, config=config: train(
                        network, prediction_rule, tokens, hide, config, report=None
                    ),
                    "steps": lambda step=step: [step() for _ in range(n_steps)],
                    "run": lambda network=network: run(
                        network.update, data[0], n_steps, clamped=clamped, observe=lambda x: x[:0]
                    ),
                    "updates": lambda network=network: [
                        network.update(data[0]) for _ in range(n_steps)
                    ],
                },
                rounds,
                device,
                turn=0,
            )
            yield {
                "batch": batch,
                "model": "1 full head" if rank is None else f"{heads} heads of rank {rank}",
                "steps": n_steps,
                **spread("epoch s", seconds["epoch"]),
                **spread("epoch / its steps", ratios(seconds["epoch"], seconds["steps"])),
                **spread("run / its updates", ratios(seconds["run"], seconds["updates"])),
            }
