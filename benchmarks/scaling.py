"""Time and memory of the prediction rule against batch, N, d and heads, one varied at a time, with
the exponents of the time.

Each curve has a process of its own and goes from small to large: the peak of its memory belongs to
the largest size so far.
"""

import json
import math
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from measure import by_autograd, example, interleaved

from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork

BASE = {"batch": 250, "N": 16, "d": 50, "heads": 1}
SIZES = {
    "batch": [64, 256, 1024, 4096, 8192],
    "N": [4, 8, 16, 32, 64],
    "d": [8, 16, 32, 64, 128],
    "heads": [1, 2, 4, 8, 16],
}
MODELS = {
    "full rank": (None, prediction_rule),
    "rank 16": (16, prediction_rule),
    "full rank, autograd": (None, by_autograd),
}
PROFILES = {"quick": {"largest": 4, "rounds": 3}, "full": {"largest": 5, "rounds": 7}}


def rows(device, largest, rounds):
    for name in MODELS:
        for axis, sizes in SIZES.items():
            if name.endswith("autograd") and axis != "batch":
                continue
            sizes = sizes[:largest] if not name.endswith("autograd") else sizes[: largest - 1]
            command = [
                sys.executable,
                __file__,
                name,
                axis,
                str(rounds),
                str(device),
                *map(str, sizes),
            ]
            points = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
            for point, smaller in zip(points, [None, *points]):
                point["exponent"] = (
                    None
                    if smaller is None
                    else (
                        math.log(point["ms"] / smaller["ms"])
                        / math.log(point["size"] / smaller["size"])
                    )
                )
            yield from points


def curve(name, axis, rounds, device, sizes):
    rank, rule = MODELS[name]

    def problem(size):
        at = {**BASE, "heads": 16 if rank else 1, axis: size}
        network = AttractorNetwork(at["N"], at["d"], at["heads"], rank).to(device)
        data = example(at["batch"], at["N"], at["d"], device)
        return at, lambda: rule(network, *data)

    problem(sizes[0])[1]()  # code and libraries are loaded before the memory is looked at
    points, before = [], peak(device)
    for size in sizes:
        at, call = problem(size)
        seconds = interleaved({"rule": call}, rounds, device, repeats=1)["rule"]
        points.append(
            {
                "model": name,
                "axis": axis,
                "size": size,
                **at,
                "ms": 1e3 * statistics.median(seconds),
                "MB": (peak(device) - before) / 1e6,
            }
        )
    return points


def peak(device) -> float:
    """Peak memory so far, in bytes: of the device, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # getrusage would start with the peak of the parent
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    name, axis, rounds, device, *sizes = sys.argv[1:]
    print(
        json.dumps(
            curve(name, axis, int(rounds), torch.device(device), [int(size) for size in sizes])
        )
    )
