"""The rule and the whole training step: closed forms by the fastest kernel, by the batched one, and
as the equations are written; autograd on the same model, transformer blocks.

Each against its floor: its own matrix operations at the rate of one large matrix product.
"""

import statistics

from measure import (
    by_autograd,
    example,
    interleaved,
    large_product,
    median_ratio,
    rule_products,
    training_step,
)

from attractor_lib import kernels
from attractor_lib.analysis import operations
from attractor_lib.baselines import TransformerBlock, backpropagation
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork

N, D = 16, 50
PROFILES = {
    "quick": {"batches": [250, 2000], "rounds": 3},
    "full": {"batches": [250, 1000, 4000], "rounds": 11},
}


def plain(network, *batch):
    with kernels.only("batched"):
        return prediction_rule(network, *batch)


def equations(network, *batch):
    with kernels.only():
        return prediction_rule(network, *batch)


RULES = (
    ("closed form", prediction_rule),
    ("plain closed form", plain),
    ("equations", equations),
    ("autograd", by_autograd),
)


def rows(device, batches, rounds):
    for batch in batches:
        data, functions, floors = example(batch, N, D, device), {}, {}
        for heads, rank in ((1, None), (4, None), (16, 16)):
            network = AttractorNetwork(N, D, heads, rank).to(device)
            name = (
                f"{heads} full head{'s' * (heads > 1)}"
                if rank is None
                else f"{heads} heads of rank {rank}"
            )
            for how, rule in RULES:
                if not (how == "plain closed form" and rank) and not (
                    how == "autograd" and batch * heads > 8192
                ):
                    functions[name, how, "rule"] = lambda network=network, rule=rule, data=data: (
                        rule(network, *data)
                    )
                    functions[name, how, "step"] = training_step(network, rule, data)
                    floors[name, how, "rule"] = floors[name, how, "step"] = rule_products(
                        network, batch
                    )
        for width in (64, 256):
            model = TransformerBlock(N, D, width).to(device)
            step = training_step(model, backpropagation, data)
            key = f"transformer block {width}", "autograd", "step"
            functions[key], floors[key] = step, operations(step)
        functions["large product"], large = large_product(device)
        seconds = interleaved(functions, rounds, device, repeats=2 if batch > 1000 else 4)
        for key, floor in floors.items():
            to_large = median_ratio(seconds[key], seconds["large product"])
            other = seconds.get((key[0], "autograd", key[2]))
            yield {
                "batch": batch,
                "model": key[0],
                "by": key[1],
                "what": key[2],
                "ms": 1e3 * statistics.median(seconds[key]),
                "fastest ms": 1e3 * min(seconds[key]),
                "operations (million)": floor / 1e6,
                "times the floor": to_large * large / floor,
                "autograd / this": median_ratio(other, seconds[key]) if other else None,
            }
