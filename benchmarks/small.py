"""Small networks and batches: the kernel that serves beside the batched one; and the first call.

First the field and the rule of N = 2, 4, 8 sites for 1 to 32 examples, by the kernel that serves:
"batched kernel / this" below 1 would mean that it should not. Then seconds of the first field and
rule of a new process, of full and of low rank, imports left out: with an empty cache of compiled
code, so that the kernels are compiled, and with one that has them (not in the quick profile).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import product

import torch
from measure import FIELDS, RULES, compared, example, products, spread

from attractor_lib.model import AttractorNetwork

D = 50
MODELS = {"1 full head": (1, None), "4 heads of rank 8": (4, 8)}
PROFILES = {"quick": {"rounds": 7, "starts": 0}, "full": {"rounds": 51, "starts": 3}}


def rows(device, rounds, starts, before=None):
    for batch, n_sites, model in product((1, 4, 16, 32), (2, 4, 8), MODELS):
        case = {"batch": batch, "n_sites": n_sites, "dim": D, "model": model}
        made = compared(case, *problem(device, **case), rounds, device, 0.005, before)
        yield from (row for row in made if row["by"] != "batched kernel")
    yield from first_calls(device, starts)


def problem(device, batch, n_sites, dim, model):
    """What is timed, by (by, what), and its operations, by what."""
    network = AttractorNetwork(n_sites, dim, *MODELS[model]).to(device)
    data = example(batch, n_sites, dim, device)
    functions = {}
    for by in ("closed form", "batched kernel"):
        functions[by, "field"] = partial(FIELDS[by], network, data[0])
        functions[by, "rule"] = partial(RULES[by], network, *data)
    return functions, {what: products(network, batch, what) for what in ("field", "rule")}


def first_calls(device, starts):
    """Seconds of a process's first calls, without and with a cache of compiled code."""
    seconds = {"empty": [], "filled": []}
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            for cache in seconds:
                command = [sys.executable, __file__, str(device), str(torch.get_num_threads())]
                environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
                seconds[cache].append(json.loads(done.stdout))
    for cache, of in seconds.items():
        if of:
            yield {"what": "first calls", "cache": cache, **spread("s", of)}


def first_call(device):
    """Seconds of a field and a rule of each model, for the first time in this process."""
    functions = [f for model in MODELS for f in problem(device, 32, 4, D, model)[0].values()]
    began = time.perf_counter()
    for function in functions:
        function()
    return time.perf_counter() - began


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(first_call(torch.device(sys.argv[1])))
