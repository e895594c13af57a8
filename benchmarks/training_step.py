"""Time one training step, all in one run: the closed-form rule, autograd on the same model, and a transformer block,
each against the floor, its own matrix operations at the rate of one large matrix product.

Rounds are interleaved, so that a busy machine slows all alike; medians and ratios are written to a JSON file.
"""

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attractor_lib.baselines import TransformerBlock, backpropagation
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.results import save_results
from attractor_lib.trainer import select_device

N, D = 16, 50


def by_autograd(network, state, target, sites):
    """The gradients of the prediction rule's loss, by autograd through `network.field`."""
    network.requires_grad_(True)
    loss = ((network.field(state) - target) * sites[..., None]).square().sum() / (2 * len(state))
    gradients = dict(zip(dict(network.named_parameters()), torch.autograd.grad(loss, list(network.parameters()))))
    network.requires_grad_(False)
    return loss.detach(), gradients


def variants(device):
    """name -> (model, rule)"""
    full, low = AttractorNetwork(N, D), AttractorNetwork(N, D, n_heads=16, rank=16, beta=5.0)
    return {
        "1 full head, closed form": (full.to(device), prediction_rule), "1 full head, autograd": (full, by_autograd),
        "16 heads of rank 16, closed form": (low.to(device), prediction_rule), "16 heads of rank 16, autograd": (low, by_autograd),
        "transformer block, D = 64": (TransformerBlock(N, D).to(device), backpropagation),
    }


def in_place(total, a, b, **_):
    """The operations of total += a @ b, from the shapes (batch, n, k) and (batch, k, m)."""
    return 2 * a[0] * a[1] * a[2] * b[2]


def timed(function, device, repeats=4):
    """Seconds of one call among others of its kind, as in training: the first finds the cache full of other things."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def measure(batch, rounds, device):
    generator = torch.Generator().manual_seed(0)
    state, target = (F.normalize(torch.randn(batch, N, D, generator=generator), dim=-1).to(device) for _ in range(2))
    sites = torch.ones(batch, N, dtype=torch.bool, device=device)
    steps, operations = {}, {}
    for name, (model, rule) in variants(device).items():
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0, foreach=False)

        def step(model=model, rule=rule, optimizer=optimizer):
            _, gradients = rule(model, state, target, sites)
            for key, p in model.named_parameters():
                p.grad = gradients[key]
            optimizer.step()

        # Neither fused attention nor the product in place is counted by default.
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place})
        with counter, sdpa_kernel(SDPBackend.MATH):
            step()
        steps[name], operations[name] = step, counter.get_total_flops()
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    steps["large matrix product"], operations["large matrix product"] = lambda: a @ b, 2 * size**3
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, device))
    rate = operations["large matrix product"] / statistics.median(seconds["large matrix product"])
    rows = []
    for name in steps:
        median = statistics.median(seconds[name])
        rows.append({"batch": batch, "step": name, "ms": 1e3 * median, "fastest ms": 1e3 * min(seconds[name]),
                     "operations (million)": operations[name] / 1e6, "floor ms": 1e3 * operations[name] / rate,
                     "times the floor": median * rate / operations[name], "GFLOP/s": operations[name] / median / 1e9})
    for row in rows:
        other = next((r for r in rows if r["step"] == row["step"].replace("closed form", "autograd") != row["step"]), None)
        row["autograd / this"] = other["ms"] / row["ms"] if other else None
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")
    parser.add_argument("--batches", type=int, nargs="+", default=[250, 500, 2000], help="batch sizes (default: 250 500 2000)")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds (default: 20)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "training_step.json",
                        help="result file (default: benchmarks/results/training_step.json)")
    arguments = parser.parse_args()
    try:
        device = select_device(arguments.device)
    except RuntimeError as error:
        parser.error(str(error))
    began, rows = time.perf_counter(), []
    for batch in arguments.batches:
        print(f"batch {batch}, {arguments.rounds} rounds on {device}, {torch.get_num_threads()} threads", flush=True)
        rows += measure(batch, arguments.rounds, device)
        print(pd.DataFrame(rows[-6:]).drop(columns="batch").round(2).to_string(index=False), flush=True)
    save_results(arguments.output, rows, {"device": str(device), "rounds": arguments.rounds}, time.perf_counter() - began)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
