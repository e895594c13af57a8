"""Random networks and inputs: every kernel that serves equals the equations as they are written.

One seed is one configuration: couplings, potential, sizes, precision, beta, who hears whom, what is
predicted, how tensors lie in memory, threads, whether autograd watches. A failure names its seed;
to run it alone::

    python tests/kernels/test_random.py --first SEED --seeds 1

**What is allowed.** The reference is the equations in double precision, at the numbers given. In
the precision tested these numbers, the scores and the attention are known to its rounding unit u
only, so no algorithm can be blamed for what a change of each of them by u, up or down at random,
does to a result, nor for u times the largest number of the result. And a sum of n terms is rounded
n times: random signs make that sqrt(n). Allowed is ``SAFETY sqrt(n)`` times the sum of the two, n
the examples, or what one site hears of all heads, if that is more. The equations in the precision
tested are held to the same.
"""

import argparse
import copy
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib import kernels
from attractor_lib.couplings import Full, LowRank, SharedFactors, Tied, by_offset, shared, symmetric
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.model import AttractorNetwork, LogSumExp, Mean, Square
from attractor_lib.states import Flat, Sphere, builds_graph

SAFETY = 3
MOST_COUPLINGS, MOST_KEYS, RARELY = 2**20, 2**17, 2**21  # numbers: what is larger is made smaller


def named(loss: Tensor, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": loss, **gradients}


EQUATIONS = {
    "field": lambda network, state, target, sites: {"field": network.field(state)},
    "pooled": lambda network, state, target, sites: {"pooled": network.pooled(state)},
    "prediction_rule": lambda *example: named(*prediction_rule(*example)),
    "energy_rule": lambda *example: named(*energy_rule(*example)),
}


@dataclass
class Changed:
    """A potential whose scores and attention are changed as rounding changes them."""

    phi: LogSumExp | Square | Mean
    rounded: Callable[[Tensor], Tensor]

    def value(self, t: Tensor) -> Tensor:
        return self.phi.value(self.rounded(t))

    def gradient(self, t: Tensor) -> Tensor:
        return self.rounded(self.phi.gradient(self.rounded(t)))

    def response(self, t: Tensor, a: Tensor, u: Tensor) -> Tensor:
        return self.phi.response(t, a, u)


@dataclass
class Problem:
    """A network and an example, and the setting in which they are computed."""

    network: AttractorNetwork
    state: Tensor
    target: Tensor | None
    sites: Tensor | None
    threads: int = 1
    gradients: bool = False  # whether autograd is on
    layouts: dict[str, str] | None = None

    def __str__(self) -> str:
        of_target = "the state" if self.target is None else f"up to {self.target.abs().max():.3g}"
        of_sites = "all" if self.sites is None else f"{self.sites.float().mean():.0%}"
        return (
            f"{self.network}\nbatch {len(self.state)}, {self.state.dtype}, target {of_target}, "
            f"{of_sites} predicted, layouts {self.layouts}, threads {self.threads}, autograd "
            f"{'on' if self.gradients else 'off'}"
        )

    def results(self, equation: str) -> dict[str, Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.set_grad_enabled(self.gradients):
                example = self.network, self.state, self.target, self.sites
                found = EQUATIONS[equation](*example)
                watched = equation in ("field", "pooled") and builds_graph(self.network, self.state)
            assert all(result.requires_grad == watched for result in found.values())
            return {name: result.detach() for name, result in found.items()}
        finally:
            assert torch.get_num_threads() == self.threads
            torch.set_num_threads(before)

    def in_double(self, u: float = 0.0, seed: int = 0) -> "Problem":
        """The same in double precision, every number times 1 + u or 1 - u at random."""
        generator = torch.Generator().manual_seed(seed)

        def rounded(x):
            shape = [n if step else 1 for n, step in zip(x.shape, x.stride())]  # once in memory
            sign = 2 * torch.randint(2, shape, generator=generator) - 1
            return x.detach().double() * (1 + u * sign.to(x.device).double())

        network = copy.deepcopy(self.network).double()
        for p, given in zip(network.parameters(), self.network.parameters(), strict=True):
            p.data = rounded(given)
        network.phi = Changed(network.phi, rounded)
        target = None if self.target is None else rounded(self.target)
        return Problem(network, rounded(self.state), target, self.sites)


COUPLINGS = {
    "full": lambda heads, N, d, rank, n: Full.random(heads, N, d),
    "low rank": lambda heads, N, d, rank, n: LowRank.random(heads, N, d, rank),
    "shared factors": lambda heads, N, d, rank, n: SharedFactors.random(heads, N, d, rank, n),
    "symmetric": lambda heads, N, d, rank, n: Tied(Full.random(heads, N, d).J, symmetric),
    "one for all": lambda heads, N, d, rank, n: Tied(Full.random(heads, N, d).J, shared),
    "by offset": lambda heads, N, d, rank, n: Tied(Full.random(heads, N, d).J, by_offset),
}
HEARS = {  # of random numbers (N, N)
    "others": lambda r: ~torch.eye(len(r), dtype=torch.bool),
    "all": lambda r: r < 2,
    "those before": lambda r: torch.ones(r.shape, dtype=torch.bool).tril(-1),
    "half": lambda r: r < 0.5,
    "few": lambda r: r < 1 / len(r),  # a third of the sites hear none
    "none": lambda r: r < 0,
}


def beside(x, dim, first, last):
    """x as a part of a larger tensor, which is NaN elsewhere."""
    ends = [torch.full_like(x.narrow(dim, 0, 1), math.nan)] * (first + last)
    parts = [*ends[:first], x, *ends[first:]]
    return torch.cat(parts, dim).narrow(dim, first, x.shape[dim])


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LAYOUTS = {
    "contiguous": lambda x: x,
    "first axes swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "last axis first": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "every second": lambda x: torch.stack([x, torch.full_like(x, math.nan)], 1)[:, 0],
    "a part": lambda x: beside(beside(x, -1, 1, 2), 0, 2, 1),
    "all the same": lambda x: x[:1].expand_as(x),
}


def problem(seed: int, device: str = "cpu") -> Problem:
    """The configuration of a seed."""
    choose, numbers = random.Random(seed), torch.Generator().manual_seed(seed)

    def between(low, high):  # as many from 1 to 2 as from 10 to 20
        return math.exp(choose.uniform(math.log(low), math.log(high)))

    def normal(*shape):
        return torch.randn(shape, generator=numbers, dtype=torch.float64)

    (kind,) = choose.choices(list(COUPLINGS), [4, 4, 2, 1, 1, 1])
    N, d, heads = (round(between(*ends)) for ends in ((2, 40), (1, 70), (1, 20)))
    N = math.isqrt(max(4, N)) ** 2 if kind == "by offset" else N
    if kind not in ("low rank", "shared factors"):
        d = min(d, math.isqrt(MOST_COUPLINGS // N**2))
        heads = min(heads, MOST_COUPLINGS // (N * d) ** 2)
    couplings = COUPLINGS[kind](heads, N, d, round(between(1, 70)), choose.randint(1, 4))
    batch, most = choose.choices([(300, MOST_KEYS), (3000, RARELY)], [24, 1])[0]
    batch = max(1, min(round(between(1, batch)), most // couplings.numbers_per_example))

    hears = HEARS[choose.choice(list(HEARS))](torch.rand(N, N, generator=numbers))
    (phi,) = choose.choices([LogSumExp(), Square(), Mean()], [6, 1, 1])
    (space,) = choose.choices([Sphere(), Flat()], [4, 1])
    n_known = max(0, random.Random(f"{seed}").randint(-d, d - 1))  # in every second network
    form = {"couplings": couplings, "potential": phi, "hears": hears, "space": space}
    form["n_known"] = n_known
    network = AttractorNetwork(N, d, beta=between(0.01, 1e3), **form).double()
    strength = between(0.1, 3)
    for p in couplings.parameters():
        p.copy_(strength * normal(*p.shape) / math.sqrt(p.shape[-1]))
    if isinstance(couplings, Tied):
        couplings.J.copy_(couplings.tie(couplings.J))
    network.bias.copy_(choose.randint(0, 1) * normal(N, d)[:, n_known:])

    state = F.normalize(normal(batch, N, d), dim=-1)
    state = state if space.unit else state * normal(batch, N, 1)
    spins = F.normalize(state[..., : d - n_known], dim=-1) if n_known and space.unit else state
    state = network.with_known(spins[..., : d - n_known], state)
    target = normal(batch, N, d)[..., n_known:] * between(1e-3, 1e3)
    sites = torch.rand(batch, N, generator=numbers) < choose.choice([0, 0.1, 0.6, 1])

    dtype = choose.choice([torch.float32, torch.float64])
    layouts = {name: choose.choice(list(LAYOUTS)) for name in ("J", "bias", "s", "x", "sites")}
    network = network.to(device, dtype)
    for name, p in network.named_parameters():
        p.data = LAYOUTS[layouts["bias" if name == "bias" else "J"]](p.data)
    state, target = state.to(device, dtype), target.to(device, dtype)
    state, target = LAYOUTS[layouts["s"]](state), LAYOUTS[layouts["x"]](target)
    sites = LAYOUTS[layouts["sites"]](sites.to(device))
    of_whom = choose.choice(["nobody", "nobody", "state", "parameters"])
    network.requires_grad_(of_whom == "parameters")
    return Problem(
        network,
        state.requires_grad_(of_whom == "state"),
        choose.choice([None, target, target, target]),
        choose.choice([None, sites[0], sites, sites]),
        threads=choose.randint(1, 3),
        gradients=choose.random() < 0.5,
        layouts=layouts,
    )


@contextmanager
def few_examples_too():
    """The kernel for a CPU serves batches of any size."""
    with patch.object(kernels.cpu, "FEWEST", 1):
        yield


def served(given: Problem, equation: str) -> list[str]:
    """The kernels that compute this equation for the problem."""
    with torch.set_grad_enabled(
        given.gradients and equation in ("field", "pooled")
    ):  # rules switch it off
        return [
            name
            for name, kernel in kernels.KERNELS.items()
            if equation in kernel.COMPUTES and kernel.serves(given.network, given.state)
        ]


def errors(given: Problem) -> Iterator[tuple[str, float]]:
    """What by whom, and its largest error in units of what is allowed."""
    u = torch.finfo(given.state.dtype).eps
    factor = SAFETY * math.sqrt(
        max(len(given.state), given.network.n_heads * given.network.n_sites)
    )
    for equation in EQUATIONS:
        with kernels.only():
            exact = given.in_double().results(equation)
            changed = [given.in_double(u, seed).results(equation) for seed in range(3)]
        for names in ([], *([name] for name in served(given, equation))):
            with kernels.only(*names):
                found = given.results(equation)
            assert found.keys() == exact.keys()
            for name, result in found.items():
                assert result.dtype == given.state.dtype and result.shape == exact[name].shape
                change = max((c[name] - exact[name]).abs().max() for c in changed)
                allowed = factor * (change + u * exact[name].abs().max())
                error = (result.double() - exact[name]).abs().max()
                by = names[0] if names else "equations"
                yield f"{name} of {equation} by {by}", (error / allowed).item() if error else 0.0


@few_examples_too()
def failures(seeds: Iterable[int], device: str = "cpu") -> list[str]:
    """What is off, seed by seed."""
    found = []
    for seed in seeds:
        given = problem(seed, device)
        try:
            off = {what: size for what, size in errors(given) if not size <= 1}
        except Exception as error:
            error.add_note(f"seed {seed}:\n{given}")
            raise
        if off:
            found.append(f"seed {seed}: times what is allowed: {off}\n{given}")
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_kernels_equal_the_equations(device):
    assert not (found := failures(range(40), device)), "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_kernels_equal_the_equations_a_thousand_times(device):
    assert not (found := failures(range(40, 1040), device)), "\n".join(found)


def test_several_threads_of_numba_too():
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "3"}
    command = [sys.executable, __file__, "--first", "2000", "--seeds", "15"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "15 of 15 seeds are right\n"), done.stderr


@few_examples_too()
def test_the_first_seeds_meet_all_there_is():
    given = [problem(seed) for seed in range(40)]
    met = {(e, name, g.state.dtype) for g in given for e in EQUATIONS for name in served(g, e)}
    for name, kernel in kernels.KERNELS.items():
        if name != "cuda":
            for equation in kernel.COMPUTES:
                assert {(equation, name, t) for t in (torch.float32, torch.float64)} <= met
    assert {type(g.network.couplings) for g in given} == {Full, LowRank, SharedFactors, Tied}
    assert {g.network.n_known > 0 for g in given} == {True, False}
    assert {type(g.network.phi) for g in given} == {LogSumExp, Square, Mean}
    for axis in ("J", "bias", "s", "x", "sites"):
        assert {g.layouts[axis] for g in given} == set(LAYOUTS)
    assert {g.threads for g in given} == {1, 2, 3}


# What must be refused, or right, by whichever kernel serves.

KERNELS = [[], *([name] for name in kernels.KERNELS)]  # where one does not serve, the equations do
FORMS = {"full": (2, None), "low rank": (3, 4)}


@pytest.fixture(params=KERNELS, ids=["equations", *kernels.KERNELS])
def kernel(request):
    with few_examples_too(), kernels.only(*request.param):
        yield


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def example(request, kernel):
    """A network of 5 sites of 7 components, 6 states and targets."""
    numbers = torch.Generator().manual_seed(0)
    network = AttractorNetwork(5, 7, *request.param, beta=3.0)
    for p in network.parameters():
        p += 0.3 * torch.randn(p.shape, generator=numbers)
    state = F.normalize(torch.randn(6, 5, 7, generator=numbers), dim=-1)
    return network, state, torch.randn(6, 5, 7, generator=numbers)


RULES = [prediction_rule, energy_rule]
WRONG = {  # state, target or sites, of a valid state and target
    "a shape": lambda s, x: (s[..., :-1], x, None),
    "no batch": lambda s, x: (s[0], x[0], None),
    "another precision": lambda s, x: (s.double(), x.double(), None),
    "half precision": lambda s, x: (s.half(), x.half(), None),
    "whole numbers": lambda s, x: (s.round().long(), x, None),
    "another device": lambda s, x: (s.to("meta"), x, None),
    "a norm": lambda s, x: (2 * s, x, None),
    "NaN": lambda s, x: (s.index_fill(1, torch.tensor(2), torch.nan), x, None),
    "no example": lambda s, x: (s[:0], x[:0], None),
    "fewer targets": lambda s, x: (s, x[:-1], None),
    "targets of another precision": lambda s, x: (s, x.double(), None),
    "targets of another device": lambda s, x: (s, x.to("meta"), None),
    "an infinite target": lambda s, x: (s, x.index_fill(0, torch.tensor(3), torch.inf), None),
    "sites that are numbers": lambda s, x: (s, x, torch.ones(s.shape[:2])),
    "sites of fewer examples": lambda s, x: (s, x, torch.ones(5, 5, dtype=torch.bool)),
    "sites of another device": lambda s, x: (s, x, torch.ones(5, dtype=torch.bool, device="meta")),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused(example, wrong):
    network, *right = example
    state, target, sites = wrong(*right)
    for rule in RULES:
        with pytest.raises(ValueError, match="got"):
            rule(network, state, target, sites)
    if state is not right[0] and len(state):
        with pytest.raises(ValueError, match="got"):
            network.field(state)


def test_the_field_of_no_state_is_none(example):
    network, state, _ = example
    assert network.field(state[:0]).shape == (0, 5, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_right_to_its_rounding(example, dtype):
    network, state, target = example
    network.space = Flat()  # rounded tokens are off the sphere
    given = Problem(network.to(dtype), state.to(dtype), target.to(dtype), None)
    assert {what: size for what, size in errors(given) if not size <= 1} == {}


def check_or_overflow(found: Tensor, exact: Tensor, must_be_finite: bool) -> None:
    """What is finite is right; what is beyond the largest number is not finite."""
    largest = torch.finfo(found.dtype).max
    finite = found.isfinite()
    assert not (finite & (exact.abs() > largest)).any()
    assert finite.all() or not must_be_finite
    scale = exact[exact.abs() <= largest].abs()
    assert ((found - exact)[finite].abs() <= 1e-5 * scale.max()).all() if finite.any() else True


@pytest.mark.parametrize("size", [1e15, 1e25, 3e38])
@pytest.mark.parametrize("rule", RULES)
def test_a_huge_target_is_right_or_overflows(example, rule, size):
    network, state, target = example
    target = size * target.clamp(-1, 1)
    loss, gradients = rule(network, state, target)
    exact_loss, exact = rule(copy.deepcopy(network).double(), state.double(), target.double())
    check_or_overflow(loss, exact_loss, size == 1e15)
    for name, gradient in gradients.items():
        check_or_overflow(gradient, exact[name], size < 3e38)


@pytest.mark.parametrize("size", [1e15, 1e30, 3e38])
def test_huge_couplings_are_right_or_overflow(example, size):
    network, state, target = example
    p = next(network.couplings.parameters())
    p.copy_(size * p.clamp(-1, 1))
    exact = copy.deepcopy(network).double()
    check_or_overflow(network.field(state), exact.field(state.double()), size < 3e38)
    loss, gradients = prediction_rule(network, state, target)
    exact_loss, of = prediction_rule(exact, state.double(), target.double())
    check_or_overflow(loss, exact_loss, size == 1e15)
    for name, gradient in gradients.items():
        check_or_overflow(gradient, of[name], size == 1e15)


def test_a_huge_target_does_not_matter_where_nothing_is_predicted(example):
    network, state, target = example
    sites = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    huge = torch.where(sites[..., None], target, 3e38)
    (loss, gradients), (same, also) = (
        prediction_rule(network, state, x, sites) for x in (target, huge)
    )
    assert torch.equal(loss, same) and all(torch.equal(gradients[n], also[n]) for n in also)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, default=40, help="how many (default: 40)")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    found = failures(seeds, arguments.device)
    print(*found, f"{len(seeds) - len(found)} of {len(seeds)} seeds are right", sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
