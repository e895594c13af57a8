"""A training step of several processes of one thread each, against one: time and efficiency.

step        what the trainer does: it draws a batch and the tokens to hide, applies the
            rule, sums the gradients over processes, and takes Adam's step
efficiency  the time of one process of one thread over (processes x threads x the time of this)
draw        of the whole batch, in every process
sum         of the gradients and the loss over processes, alone

The first process takes its turns alone while the others wait, so a busy machine slows all alike. On
GPUs a process has one of its own, and threads play no part.
"""

import json
import os
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from measure import example, ratios, spread, training_step

from attractor_lib.corruption import HideTokens, mean_token
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.processes import Processes
from attractor_lib.trainer import select_device

N, D, EXAMPLES = 16, 50, 10_000
MODELS = {"1 full head": (1, None), "16 heads of rank 16": (16, 16)}
PROFILES = {
    "quick": {"counts": [2], "batches": [250, 2000], "rounds": 4, "turn": 0.02},
    "full": {"counts": [2], "batches": [250, 2000], "rounds": 25, "turn": 0.1},
}


def rows(device, counts, batches, rounds, turn):
    for count in counts:
        if device.type == "cuda" and count > torch.cuda.device_count():
            continue
        launch = "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", __file__
        given = {"kind": device.type, "batches": batches, "rounds": rounds, "turn": turn}
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": str(count)}
        done = subprocess.run(
            [sys.executable, "-m", *launch, json.dumps(given)],
            env={**os.environ, **threads},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        yield from map(json.loads, done.stdout.splitlines())


def measured(processes, device, batch, model, rounds, turn):
    """Rows for one process of one thread, one of several, and several processes."""
    tokens = example(EXAMPLES, N, D, device)[0]
    generator = torch.Generator(device).manual_seed(0)
    hide = HideTokens(8, mean_token(tokens), least=1)
    network = AttractorNetwork(N, D, *MODELS[model]).to(device)
    numbers = sum(p.numel() for p in network.parameters()) + 1  # the gradients and the loss
    to_sum = torch.zeros(numbers, device=device)

    def draw():
        order = torch.randint(EXAMPLES, (batch,), generator=generator, device=device)
        return hide(tokens[order], generator)

    def step(rule):
        take = training_step(network, rule, example(batch, N, D, device))
        return lambda: (draw(), take())

    several, alone = processes.count, {("draw", 1): draw, (1, 1): step(prediction_rule)}
    if device.type == "cpu":
        alone[1, several] = step(prediction_rule)
    together = {
        (several, 1): step(processes.averaged(prediction_rule, batch)),
        ("sum", 1): lambda: dist.all_reduce(to_sum),
    }
    ms = in_turns(processes, device, alone, together, rounds, turn)
    for count, threads in (key for key in ms if isinstance(key[0], int)):
        row = {"batch": batch, "model": model, "processes": count, "threads": threads}
        row |= spread("step ms", ms[count, threads])
        on_one = [t / count / threads for t in ms[1, 1]]
        row |= spread("efficiency", ratios(on_one, ms[count, threads]))
        row |= spread("draw ms", ms["draw", 1])
        row["sum KB"] = numbers * to_sum.element_size() / 1e3 if count > 1 else None
        yield row | spread("sum ms", ms["sum", 1] if count > 1 else [])


def in_turns(processes, device, alone, together, rounds, turn):
    """Milliseconds of a call, by (what, threads), for each round; in the first process alone.

    A turn is filled with calls, by the first process or by all together, as many as a first round
    that is not kept tells.
    """
    ms, calls = {key: [] for key in alone | together}, dict.fromkeys(alone | together, 1)
    for kept in (False, *[True] * rounds):
        for key, function in (alone | together).items():
            dist.barrier()
            if processes.first or key in together:
                torch.set_num_threads(key[1])
                spent = timed(function, device, calls[key])
                torch.set_num_threads(1)
                ms[key] += [1e3 * spent] if kept else []
                calls[key] = calls[key] if kept else max(1, round(turn / spent))
        agreed = [calls]
        dist.broadcast_object_list(agreed)
        calls = agreed[0]
    return ms if processes.first else {}


def timed(function, device, calls):
    """Seconds of a call, the mean over some, after one that finds other things in the cache."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls


def main(kind, batches, rounds, turn):
    torch.set_num_threads(1)
    device, processes = select_device(kind), Processes()
    for batch in batches:
        for model in MODELS:
            for row in measured(processes, device, batch, model, rounds, turn):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
