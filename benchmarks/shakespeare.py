"""What the models of letters cost: operations of a letter, and microseconds of training.

All that are trained in `attractor_book.letters`, stage by stage, on pieces of 64 letters. A stage's
training is that of its rule, and of the stages before it.
"""

import numpy as np
import torch
from measure import interleaved, spread, training_step

from attractor_book.letters import ENTRANTS, Blocks, Stages
from attractor_lib.analysis import operations
from attractor_lib.baselines import CausalStack, likelihood
from attractor_lib.causal import CausalCascade, CausalNetwork, StageRule, causal_rule

BATCH, V = 32, 65
PROFILES = {"quick": {"rounds": 5, "context": 64}, "full": {"rounds": 11, "context": 64}}


def rows(device, rounds, context, names=tuple(ENTRANTS)):
    letters = torch.randint(V, (BATCH, context), generator=torch.Generator().manual_seed(0))
    letters, functions, models = letters.to(device), {}, {}
    for name in names:
        for stages, model, step in steps(ENTRANTS[name], letters, device):
            functions[name, stages], models[name, stages] = step, model
    us = interleaved(functions, rounds, device)
    for (name, stages), model in models.items():
        before = [np.array(us[name, s]) for s in range(1, stages + 1)]
        counted = operations(lambda model=model: model.log_conditionals(letters))
        yield {
            **{"name": name, "stages": stages, "context": context},
            "operations": counted / letters.numel(),
            **spread("training µs", 1e6 / letters.numel() * sum(before)),
        }


def steps(entrant, letters, device):
    """(stages, the model so far, a step of the last stage's training), of one that is trained."""
    batch = letters, letters, torch.ones_like(letters, dtype=torch.bool)
    if isinstance(entrant, Blocks):
        sizes = V, letters.shape[1], entrant.width, entrant.n_layers
        model = CausalStack(*sizes, dropout=entrant.dropout).to(device)
        yield 1, model, training_step(model, likelihood, batch)
    if isinstance(entrant, Stages):
        cascade = CausalCascade()
        for t in range(entrant.n_stages):
            sizes = V, letters.shape[1], entrant.n_known, entrant.n_heads, entrant.rank
            stage = CausalNetwork(*sizes, entrant.exact, n_hidden=cascade.n_hidden).to(device)
            rule = StageRule(cascade) if t else causal_rule
            step = training_step(stage, rule, batch)
            cascade = CausalCascade(*cascade.stages, stage)
            yield t + 1, cascade, step
