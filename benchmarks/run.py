"""Every comparison of speed and cost, side by side in one run; each file of results tells the
machine, versions and seeds.

steps    a training step: closed form, autograd and transformer blocks, against a large matrix
    product
epochs   an epoch of the trainer against its bare steps, and the dynamics against bare updates
scaling  time and memory against batch, sites, components and heads
costs    parameters, operations and training time of the models in `attractor_book.contenders`
"""

import argparse
import importlib
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from attractor_book.results import save_results
from attractor_lib.trainer import select_device

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ["steps", "epochs", "scaling", "costs"]


def main():
    parser = argparse.ArgumentParser(
        prog="python benchmarks/run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--profile",
        choices=["quick", "full"],
        default="full",
        help="quick: 3 minutes on 2 cores; full: about 18 (default)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=BENCHMARKS,
        default=BENCHMARKS,
        help="some of them (default: all)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="on the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="where the JSON files go (default: notebooks/results/benchmarks for the "
        "full profile, which the book shows; _build/benchmarks for the quick one)",
    )
    arguments = parser.parse_args()
    folder = arguments.output_dir or ROOT / (
        "notebooks/results/benchmarks" if arguments.profile == "full" else "_build/benchmarks"
    )
    try:
        device = select_device(arguments.device)
    except RuntimeError as error:
        parser.error(str(error))
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    for name in arguments.only:
        benchmark = importlib.import_module(name)
        profile, began = benchmark.PROFILES[arguments.profile], time.perf_counter()
        print(f"{name}: {benchmark.__doc__.splitlines()[0]}", flush=True)
        rows = list(
            tqdm(benchmark.rows(device, **profile), unit=" rows", disable=None, leave=False)
        )
        parameters = {
            "benchmark": name,
            "profile": arguments.profile,
            "device": str(device),
            "seed": 0,
            **profile,
        }
        save_results(folder / f"{name}.json", rows, parameters, time.perf_counter() - began)
        print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)
        print(
            f"{name}: {time.perf_counter() - began:.0f} s, written to {folder / name}.json\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
