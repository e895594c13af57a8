"""Every comparison of speed and cost, side by side in one run; each file of results tells the
machine, versions and seeds.

steps      a training step: closed form, autograd, fused attention and transformer blocks, against a
           large matrix product
tokens     many tokens at low rank, beside torch's fused attention: time, and memory as N grows
small      few examples and sites, and the first call, which compiles
epochs     an epoch of the trainer against its bare steps, and the dynamics against bare updates
scaling    time and memory against batch, sites, components and heads
costs      parameters, operations and training time of the models in `attractor_book.contenders`
verdict    the same of the models in `attractor_book.contest`
letters    the causal network of letters: probabilities and rule
shakespeare  what the models of letters cost: operations and training time
processes  a training step of several processes against one

A number is the median over rounds in which all take turns, and in brackets from where to where half
of the rounds lie. A ratio is taken within a round. "autograd / this" above 1: this is faster.
"""

import argparse
import importlib
import itertools
import time
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import torch
from measure import OtherCheckout
from tqdm import tqdm

from attractor_book.results import save_results
from attractor_lib.trainer import select_device

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = [
    "steps",
    "tokens",
    "small",
    "epochs",
    "scaling",
    "costs",
    "verdict",
    "letters",
    "shakespeare",
    "processes",
]
WITH_BEFORE = {"steps", "tokens", "small"}


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
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="another checkout of this repository, such as a worktree of an earlier commit, whose "
        f"closed forms take turns with these in {', '.join(sorted(WITH_BEFORE))}",
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
    if arguments.before and not (arguments.before / "attractor_lib").is_dir():
        parser.error(f"--before must be a checkout of this repository, got {arguments.before}")
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    for name in arguments.only:
        benchmark = importlib.import_module(name)
        profile, began = benchmark.PROFILES[arguments.profile], time.perf_counter()
        print(f"{name}: {benchmark.__doc__.splitlines()[0]}", flush=True)
        with ExitStack() as opened:
            beside = {}
            if arguments.before and name in WITH_BEFORE:
                other = OtherCheckout(arguments.before, name, device)
                beside["before"] = opened.enter_context(other)
            made = benchmark.rows(device, **profile, **beside)
            rows = list(tqdm(made, unit=" rows", disable=None, leave=False))
        parameters = {
            "benchmark": name,
            "profile": arguments.profile,
            "device": str(device),
            "seed": 0,
            **profile,
        }
        save_results(folder / f"{name}.json", rows, parameters, time.perf_counter() - began)
        for _, alike in itertools.groupby(rows, key=tuple):
            print(table(list(alike)), flush=True)
        print(
            f"{name}: {time.perf_counter() - began:.0f} s, written to {folder / name}.json\n",
            flush=True,
        )


def table(rows: list[dict]) -> str:
    """Rows with the same columns as text, each median and its spread in one column."""
    frame = pd.DataFrame(rows).dropna(axis=1, how="all")
    for column in [column for column in frame if f"{column} from" in frame]:
        three = frame[[column, f"{column} from", f"{column} to"]].map("{:.3g}".format)
        spread = three.iloc[:, 0] + " (" + three.iloc[:, 1] + " to " + three.iloc[:, 2] + ")"
        frame[column] = spread.where(frame[column].notna(), "")
        frame = frame.drop(columns=three.columns[1:])
    return frame.round(3).to_string(index=False, na_rep="")


if __name__ == "__main__":
    main()
