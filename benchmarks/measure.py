"""What the benchmarks share: the ways to compute one step, functions timed in turns, their floor,
medians with their spread, and another checkout of the library beside this one.
"""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import attractor_lib
from attractor_lib import kernels
from attractor_lib.analysis import operations
from attractor_lib.learning import prediction_rule
from attractor_lib.trainer import make_optimizer

RIVALS = "autograd", "fused attention", "batched kernel"


def example(batch, N, d, device, seed=0):
    """Random state and target, and all sites: what the work is does not depend on what the numbers
    are.
    """
    generator = torch.Generator().manual_seed(seed)
    state, target = (
        F.normalize(torch.randn(batch, N, d, generator=generator), dim=-1).to(device)
        for _ in range(2)
    )
    return state, target, torch.ones(batch, N, dtype=torch.bool, device=device)


def training_step(model, rule, batch):
    """A function that takes one step of the training loop: the rule's gradients, then Adam's step
    (of size zero).
    """
    optimizer, parameters = (
        make_optimizer("Adam", model.parameters(), 0.0),
        dict(model.named_parameters()),
    )

    def step():
        _, gradients = rule(model, *batch)
        for name, p in parameters.items():
            p.grad = gradients[name].contiguous()
        optimizer.step()

    return step


def field(network, x):
    return network.field(x)


def fused_field(network, x):
    """The network's field with torch's fused attention between its queries and keys.

    At full rank every query has keys of its own, so there it is attention with one query each.
    """
    q, k = network.couplings.queries(x), network.couplings.keys(x)
    batch, heads, N, r = q.shape
    sets = heads * k.shape[2]
    hears = network.hears.expand(heads, N, N).reshape(sets, -1, N).expand(batch, -1, -1, -1)
    q, k = q.reshape(batch, sets, -1, r), k.flatten(1, 2)
    o = F.scaled_dot_product_attention(q, k, k, attn_mask=hears, scale=network.beta)
    return network.couplings.read_out(o.reshape(batch, heads, N, r)) + network.bias


def by_autograd(network, state, target, sites, field=field):
    """The gradients of the prediction rule's loss, by autograd through the field."""
    network.requires_grad_(True)
    loss = ((field(network, state) - target) * sites[..., None]).square().sum() / (2 * len(state))
    gradients = dict(
        zip(dict(network.named_parameters()), torch.autograd.grad(loss, list(network.parameters())))
    )
    network.requires_grad_(False)
    return loss.detach(), gradients


FIELDS = {
    "closed form": field,
    "batched kernel": kernels.only("batched")(field),
    "equations": kernels.only()(field),
    "fused attention": fused_field,
}
RULES = {
    "closed form": prediction_rule,
    "batched kernel": kernels.only("batched")(prediction_rule),
    "equations": kernels.only()(prediction_rule),
    "autograd": by_autograd,
    "fused attention": partial(by_autograd, field=fused_field),
}


def products(network, batch: int, what: str) -> int:
    """Operations of the matrix products of a "field" or a "rule"; at full rank those with J."""
    if network.couplings.pairwise:
        pairs = 2 * network.n_heads * batch * network.n_sites**2 * network.dim**2
        return pairs if what == "field" else 2 * pairs
    data = example(batch, network.n_sites, network.dim, network.bias.device)
    if what == "field":
        return operations(lambda: network.field(data[0]))
    return operations(lambda: prediction_rule(network, *data))


def large_product(device):
    """A function that multiplies two large matrices, and its operations."""
    size = 1024 if device.type == "cpu" else 8192
    a, b, c = (torch.randn(size, size, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=c), 2 * size**3


def interleaved(
    functions: dict, rounds: int, device, turn: float = 0.01, timers: dict | None = None
) -> dict:
    """Seconds of a call, for each function and round: they take turns, so a busy machine slows all
    alike.

    Args:
        functions: by name.
        turn: seconds that a turn lasts, where a call does not take longer.
        timers: by name, functions turn -> seconds of a call, of what runs elsewhere.
    """
    here = {name: partial(timed, function, device) for name, function in functions.items()}
    timers = here | (timers or {})
    for timer in timers.values():  # what is done once only, is done in a round that is not kept
        timer(0)
    seconds, order, names = {name: [] for name in timers}, random.Random(0), list(timers)
    for _ in range(rounds):
        order.shuffle(names)  # who comes after whom matters: caches, clock rates
        for name in names:
            seconds[name].append(timers[name](turn))
    return seconds


def timed(function: Callable, device, turn: float) -> float:
    """Seconds of a call: of one that takes the whole turn, or the mean over as many as fit into it.

    Then one more goes ahead, for it finds the cache full of other things.
    """

    def seconds(calls):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    first = seconds(1)
    if first >= turn:
        return first
    calls = round(turn / first)
    return seconds(calls) / calls


def ratios(of: list[float], to: list[float]) -> list[float]:
    """The ratio of two times, round by round."""
    return [a / b for a, b in zip(of, to, strict=True)]


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Columns: the median over rounds, and from where to where half of the rounds lie."""
    found = np.quantile(values, [0.5, 0.25, 0.75]).tolist() if len(values) else 3 * [None]
    return dict(zip((name, f"{name} from", f"{name} to"), found))


def compared(
    case: dict, functions: dict, work: dict, rounds: int, device, turn=0.01, before=None
) -> Iterator[dict]:
    """A row for each function: its time, how often the floor's, and its rivals' time over its own.

    The floor of a function is its matrix products at the rate of one large matrix product.

    Args:
        case: the columns that the rows share.
        functions: by (by, what).
        work: operations of the matrix products, by what.
        before: an `OtherCheckout` whose closed forms take turns with the functions.
    """
    large, operations_of_large = large_product(device)
    seconds = interleaved(
        {**functions, "large product": large},
        rounds,
        device,
        turn,
        before.timers(case, functions) if before else None,
    )
    at_rate_of = seconds.pop("large product")
    for (by, what), own in seconds.items():
        row = case | {"by": by, "what": what} | spread("ms", [1e3 * s for s in own])
        row["operations (million)"] = work[what] / 1e6
        floor = [s * work[what] / operations_of_large for s in at_rate_of]
        row |= spread("times the floor", ratios(own, floor))
        for rival in (*RIVALS, *(["before"] if before else [])):
            rivals = seconds.get((rival, what))
            row |= spread(f"{rival} / this", ratios(rivals, own) if rivals else [])
        yield row


class OtherCheckout:
    """The closed forms of a benchmark as another checkout of the library computes them: "before".

    They run in a process of their own, which times one whenever it is its turn, and waits
    otherwise. The other checkout must have the names that the benchmark imports.

    Args:
        folder: the other checkout.
        benchmark: a module with problem(device, **case) -> functions by (by, what), operations.

    Raises:
        ValueError: for a folder without the library.
    """

    def __init__(self, folder: Path, benchmark: str, device):
        threads = str(torch.get_num_threads())
        self.process = subprocess.Popen(
            [sys.executable, __file__, benchmark, str(device), threads],
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        library = Path(self._answer())
        if library != folder.resolve() / "attractor_lib":
            self.__exit__()
            raise ValueError(f"expected a checkout with attractor_lib in {folder}, got {library}")

    def __enter__(self) -> "OtherCheckout":
        return self

    def __exit__(self, *_) -> None:
        with self.process:  # its input is closed, and it ends
            pass

    def timers(self, case: dict, functions: dict) -> dict:
        """Functions turn -> seconds of a call, for each closed form among the functions."""
        closed = [what for by, what in functions if by == "closed form"]
        return {("before", what): partial(self._seconds, case, what) for what in closed}

    def _seconds(self, case: dict, what: str, turn: float) -> float:
        print(json.dumps([case, what, turn]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        if not (line := self.process.stdout.readline()):
            raise RuntimeError("the process of the other checkout has ended: see above")
        return json.loads(line)


def answer(benchmark: str, device: torch.device, threads: int) -> None:
    """What the process of an `OtherCheckout` does until its input ends."""
    torch.set_num_threads(threads)
    problem = importlib.import_module(benchmark).problem
    functions = lru_cache(1)(lambda case: problem(device, **json.loads(case))[0])
    print(json.dumps(str(Path(attractor_lib.__file__).parent)), flush=True)
    for line in sys.stdin:
        case, what, turn = json.loads(line)
        function = functions(json.dumps(case))["closed form", what]
        print(json.dumps(timed(function, device, turn)), flush=True)


if __name__ == "__main__":
    answer(sys.argv[1], torch.device(sys.argv[2]), int(sys.argv[3]))
