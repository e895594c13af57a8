"""Time and memory of the prediction rule as batch, N, d or heads grow, one at a time.

With the exponents of both between neighbouring sizes. Each curve has a process of its own and goes
from small to large: the peak of its memory, above what it held before the first size, belongs to
the largest size so far.
"""

import json
import math
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch
from measure import RULES, example, interleaved, spread

from attractor_lib.model import AttractorNetwork

BASE = {"batch": 250, "N": 16, "d": 50}
SIZES = {
    "batch": [64, 256, 1024, 4096, 8192],
    "N": [4, 8, 16, 32, 64],
    "d": [8, 16, 32, 64, 128],
    "heads": [1, 2, 4, 8, 16],
}
MODELS = {  # heads where they do not vary, rank, and how
    "full rank": (1, None, "closed form"),
    "rank 16": (16, 16, "closed form"),
    "full rank, autograd": (1, None, "autograd"),
    "rank 16, autograd": (16, 16, "autograd"),
    "rank 16, fused attention": (16, 16, "fused attention"),
}
PROFILES = {"quick": {"largest": 4, "rounds": 3}, "full": {"largest": 5, "rounds": 7}}


def rows(device, largest, rounds):
    for name in ("full rank", "rank 16"):
        for axis, sizes in SIZES.items():
            yield from curve(name, axis, sizes[:largest], rounds, device)
    yield from curve("full rank, autograd", "batch", SIZES["batch"][: largest - 1], rounds, device)


def curve(name, axis, sizes, rounds, device, base=BASE):
    """Points of increasing size, each with the exponents between it and the one before."""
    given = {"name": name, "axis": axis, "sizes": sizes, "rounds": rounds, "base": base}
    given |= {"device": str(device), "threads": torch.get_num_threads()}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(given)], check=True, stdout=subprocess.PIPE
    )
    points = json.loads(done.stdout)
    for point, smaller in zip(points, [None, *points]):
        for column, of in (("exponent", "ms"), ("exponent of MB", "MB")):
            # below 1 MB memory is what the process happens to have left over
            known = smaller and (of == "ms" or smaller[of] >= 1)
            grown = point[of] / smaller[of] if known else None
            steps = known and math.log(point["size"] / smaller["size"])
            point[column] = math.log(grown) / steps if known else None
    return points


def measured(name, axis, sizes, rounds, device, base, threads):
    """The points of a curve, in a process that has done nothing else."""
    device = torch.device(device)
    torch.set_num_threads(threads)
    heads, rank, by = MODELS[name]

    def problem(**sizes):
        at = {"heads": heads, **base, **sizes}
        network = AttractorNetwork(at["N"], at["d"], at["heads"], rank).to(device)
        data = example(at["batch"], at["N"], at["d"], device)
        return at, lambda: RULES[by](network, *data)

    problem(**{axis: sizes[0]})[1]()  # code and libraries are loaded before memory is looked at
    points, before = [], memory(device)[0]
    for size in sizes:
        at, call = problem(**{axis: size})
        seconds = interleaved({"rule": call}, rounds, device, turn=0)["rule"]
        point = {"model": name, "axis": axis, "size": size, **at}
        point |= spread("ms", [1e3 * s for s in seconds])
        points.append(point | {"MB": (memory(device)[1] - before) / 1e6})
    return points


def memory(device) -> tuple[float, float]:
    """Bytes held now, and at most so far: by the device, or by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # getrusage would start with the peak of the parent
        status = Path("/proc/self/status").read_text()
        now, most = (re.search(rf"{name}:\s*(\d+) kB", status)[1] for name in ("VmRSS", "VmHWM"))
        return 1024 * int(now), 1024 * int(most)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,) * 2


if __name__ == "__main__":
    print(json.dumps(measured(**json.loads(sys.argv[1]))))
