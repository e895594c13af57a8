"""What every entrant of the verdict costs: operations and microseconds of training of one image.

All models of `attractor_book.contest`, stage by stage. A stage's training is that of its rule, the
hiding of tokens or the noise, and the stages before it. Stages after the first are alike, as they
have the same sizes, and are measured once. A recurrent network's training is that of all its
stages, as it comes to the state of each equally often.
"""

from dataclasses import replace

import numpy as np
import torch
from measure import example, interleaved, spread, training_step

from attractor_book.contest import ENTRANTS, Layered, priced_as
from attractor_lib.analysis import operations
from attractor_lib.baselines import backpropagation
from attractor_lib.corruption import HideTokens, mean_token
from attractor_lib.learning import prediction_rule

BATCH = 250
PROFILES = {
    "quick": {"rounds": 5, "tasks": [("hidden", 16, 33)]},
    "full": {"rounds": 11, "tasks": [("hidden", 16, 33), ("noise", 16, 50)]},
}


COSTED = tuple(name for name in ENTRANTS if priced_as(name) == name)


def rows(device, rounds, tasks, names=COSTED):
    for task, n_sites, dim in tasks:
        yield from costs(device, rounds, task, n_sites, dim, names)


def costs(device, rounds, task, n_sites, dim, names):
    tokens, _, everywhere = example(BATCH, n_sites, dim, device)
    hide = HideTokens(n_sites // 2, mean_token(tokens), least=1)
    draw = torch.Generator(device).manual_seed(0)
    functions, predict = {"hide": lambda: hide(tokens, draw)}, {}
    for name in names:
        entrant = ENTRANTS[name]
        if isinstance(entrant, Layered):
            two = replace(entrant, n_stages=2)  # the first, and one of those that follow
            cascade = two.untrained(n_sites, dim, task == "noise", 0, device)
            states = list(cascade.states(tokens, everywhere))
            for t, stage in enumerate(cascade.stages):
                given = states[t], tokens, everywhere
                functions[name, "step", t] = training_step(stage, prediction_rule, given)
            for t in (1, 2):
                whole = lambda c=cascade, t=t: c(tokens, everywhere, t)  # noqa: E731
                functions[name, "pass", t] = predict[name, t] = whole
        else:
            model = entrant.make(n_sites, dim, seed=0).to(device)
            given = tokens, tokens, everywhere
            functions[name, "step", 0] = training_step(model, backpropagation, given)
            predict[name, 1] = lambda model=model: model(tokens)
    of = interleaved(functions, rounds, device).items()
    us = {key: 1e6 / BATCH * np.array(seconds) for key, seconds in of}
    for name in names:
        entrant = ENTRANTS[name]
        n_stages = entrant.n_stages if isinstance(entrant, Layered) else 1
        first = operations(predict[name, 1]) / BATCH
        more = operations(predict[name, 2]) / BATCH - first if n_stages > 1 else 0
        training, before, totals = 0.0, 0.0, []
        for stages in range(1, n_stages + 1):
            training = training + us["hide"] + us[name, "step", min(stages - 1, 1)] + before
            if n_stages > 1:
                one = us[name, "pass", 1]
                another = np.maximum(us[name, "pass", 2] - one, 0)  # below 0 is noise
                before = before + (one if stages == 1 else another)
            totals.append(training)
        if getattr(entrant, "recurrent", False):  # all are trained, however few are used
            totals = [training] * n_stages
        for stages, training in enumerate(totals, 1):
            yield {
                **{"name": name, "task": task, "stages": stages, "n_sites": n_sites, "dim": dim},
                "operations": first + (stages - 1) * more,
                **spread("training µs", training),
            }
