"""What every contender costs: parameters, and operations and microseconds of training of one image.

All models that `attractor_book.contenders` compares, stage by stage. A stage's training is that of
its rule, the hiding of tokens, and the updates of the stages before it.
"""

import numpy as np
import torch
from measure import example, interleaved, spread, training_step

from attractor_book.contenders import CONTENDERS, n_parameters, update_of
from attractor_lib.analysis import operations
from attractor_lib.cascade import AfterStages, Cascade
from attractor_lib.corruption import HideTokens, mean_token

BATCH = 250
PROFILES = {
    "quick": {"rounds": 5, "sizes": [(16, 33)]},
    "full": {"rounds": 11, "sizes": [(16, 33), (16, 50), (49, 17)]},
}


def rows(device, rounds, sizes):
    for n_sites, dim in sizes:
        yield from costs(device, rounds, n_sites, dim)


def costs(device, rounds, n_sites, dim):
    tokens = example(BATCH, n_sites, dim, device)[0]
    hide, generator = (
        HideTokens(n_sites // 2, mean_token(tokens), least=1),
        torch.Generator(device).manual_seed(0),
    )
    functions, models, (state, sites) = {}, {}, hide(tokens, generator)
    for contender in (
        CONTENDERS.values()
    ):  # a cascade of blocks is made of the blocks that are there already: measured once
        model = models.setdefault(contender.make, contender.make(n_sites, dim, 0).to(device))
        functions[contender.make, "step"] = training_step(
            model, contender.rule, (state, tokens, sites)
        )
        if contender.n_stages > 1:
            functions[contender.make, "update"] = lambda model=model: AfterStages(
                Cascade().add(model), hide
            )(tokens, generator)
    functions["hide"] = lambda: hide(tokens, generator)
    of = interleaved(functions, rounds, device).items()
    microseconds = {key: 1e6 / BATCH * np.array(seconds) for key, seconds in of}
    for name, contender in CONTENDERS.items():
        model, step = models[contender.make], microseconds[contender.make, "step"]
        hiding = microseconds["hide"]
        update = microseconds.get((contender.make, "update"), hiding) - hiding
        for stages in range(1, contender.n_stages + 1):
            training = stages * (step + hiding) + stages * (stages - 1) // 2 * update
            yield {
                "name": name,
                "model": contender.label,
                "stages": stages,
                "n_sites": n_sites,
                "dim": dim,
                "parameters": stages * n_parameters(model),
                "operations": stages * operations(lambda: update_of(model)(tokens)) / BATCH,
                **spread("training µs", training),
            }
