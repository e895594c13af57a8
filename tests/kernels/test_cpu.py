"""The kernels equal the equations, which are tested against naive loops and autograd, in every size
and precision.
"""

import os
import subprocess
import sys

import numba
import pytest
import torch
from conftest import HEARS
from torch.nn import functional as F

from attractor_lib import kernels
from attractor_lib.couplings import Full, LowRank, SharedFactors
from attractor_lib.dynamics import run
from attractor_lib.kernels import batched, cpu, lanes, serving
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork, Square

# batch, N, d, heads
SIZES = [
    (1, 2, 1, 1),
    (1, 16, 50, 1),
    (3, 2, 3, 2),
    (7, 3, 5, 1),
    (33, 5, 7, 3),
    (64, 4, 13, 2),
    (97, 11, 2, 1),
    (250, 16, 50, 1),
    (31, 17, 4, 5),
]
COUPLINGS = {
    "full": Full.random,
    "rank 1": lambda *sizes: LowRank.random(*sizes, 1),
    "rank 5": lambda *sizes: LowRank.random(*sizes, 5),
    "shared factors": lambda *sizes: SharedFactors.random(*sizes, 4, 3),
}
every_kind = pytest.mark.parametrize("kind", COUPLINGS)


@pytest.fixture(autouse=True)
def few_examples_too(monkeypatch):
    monkeypatch.setattr(cpu, "FEWEST", 1)


def problem(batch, N, d, heads, dtype=torch.float64, seed=0, beta=3.0, kind="full"):
    g = torch.Generator().manual_seed(seed)
    couplings = COUPLINGS[kind](heads, N, d)
    network = AttractorNetwork(N, d, beta=beta, gamma=0.3, couplings=couplings).to(dtype)
    for p in network.parameters():
        p += 0.3 * torch.randn(p.shape, generator=g).to(dtype)
    state = F.normalize(torch.randn(batch, N, d, generator=g, dtype=torch.float64), dim=-1).to(
        dtype
    )
    target = torch.randn(batch, N, d, generator=g, dtype=torch.float64).to(dtype)
    return network, state, target, torch.rand(batch, N, generator=g) < 0.6


def plain_and_fast(function, kernel="cpu"):
    """The result by the equations, then by a kernel."""
    with kernels.only():
        plain = function()
    with kernels.only(kernel):
        return plain, function()


def close(a, b, tolerance):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize("size", SIZES)
@every_kind
def test_rule_and_update_equal_the_plain_ones(kind, size, dtype, tolerance):
    network, state, target, sites = problem(*size, dtype, kind=kind)
    assert serving(network, state) is cpu
    close(*plain_and_fast(lambda: network.update(state)), tolerance)
    (loss, gradients), (fast_loss, fast_gradients) = plain_and_fast(
        lambda: prediction_rule(network, state, target, sites)
    )
    close(loss, fast_loss, tolerance)
    assert gradients.keys() == fast_gradients.keys()
    for name, gradient in gradients.items():
        close(gradient, fast_gradients[name], tolerance)
        assert fast_gradients[name].is_contiguous() or kind == "shared factors"


@every_kind
def test_single_precision_is_as_close_to_double_as_the_plain_path(kind):
    network, state, target, _ = problem(200, 16, 50, 2, kind=kind)
    _, exact = prediction_rule(network, state, target)
    network = network.float()
    (_, plain), (_, quick) = plain_and_fast(
        lambda: prediction_rule(network, state.float(), target.float())
    )
    error = {
        name: [(g[name] - exact[name]).norm() / exact[name].norm() for g in (plain, quick)]
        for name in exact
    }
    for of_plain, of_fast in error.values():
        assert of_fast < 2e-6 and of_fast < 3 * of_plain + 1e-7


@pytest.mark.parametrize("cache, examples", [(1, 64), (2**12, 96), (2**30, 32)])
@every_kind
def test_blocks_that_do_not_divide_the_batch(monkeypatch, kind, cache, examples):
    monkeypatch.setattr(cpu, "CACHE", cache)
    monkeypatch.setattr(cpu, "EXAMPLES", examples)
    monkeypatch.setattr(cpu, "ROWS", 3)
    cpu._workspace.plan = None
    network, state, target, sites = problem(203, 5, 7, 2, kind=kind)
    (_, plain), (_, quick) = plain_and_fast(lambda: prediction_rule(network, state, target, sites))
    for name, gradient in plain.items():
        close(gradient, quick[name], 1e-13)
    close(*plain_and_fast(lambda: network.field(state)), 1e-13)
    cpu._workspace.plan = None


@pytest.mark.parametrize("threads", [1, 2, 3])
@every_kind
def test_any_number_of_threads_gives_the_same_numbers_and_is_left_as_it_was(kind, threads):
    network, state, target, sites = problem(70, 5, 7, 2, kind=kind)
    _, expected = prediction_rule(network, state, target, sites)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        _, gradients = prediction_rule(network, state, target, sites)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(expected[name], gradients[name]) for name in expected)


def test_one_thread_stays_one_thread():
    """Also where numba could have more: other work beside it would else slow down several times."""
    script = """
import torch
from attractor_lib.model import AttractorNetwork
AttractorNetwork(4, 5).update(torch.nn.functional.normalize(torch.randn(40, 4, 5), dim=-1))
print(torch.get_num_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"


@pytest.mark.parametrize("given", [None, "7"])
def test_threads_that_wait_sleep_soon_unless_the_user_says_otherwise(given):
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    environment |= {} if given is None else {"GOMP_SPINCOUNT": given}
    script = "import sys, os, attractor_lib; print(os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == (given or "1000")


def test_strides_do_not_matter():
    network, state, target, sites = problem(40, 5, 7, 2)
    _, expected = prediction_rule(network, state, target, sites)
    spread = torch.zeros(80, 7, 5, dtype=state.dtype)[::2].transpose(1, 2)
    spread.copy_(state)
    reversed_sites = sites.flip(1).flip(1)
    assert not spread.is_contiguous()
    _, gradients = prediction_rule(
        network, spread, target.transpose(0, 1).contiguous().transpose(0, 1), reversed_sites
    )
    assert torch.equal(expected["couplings.J"], gradients["couplings.J"])
    assert torch.equal(network.update(state), network.update(spread))
    turned = AttractorNetwork(5, 7, 2, beta=3.0, gamma=0.3).double()
    turned.couplings.J.data = network.couplings.J.mT.contiguous().mT
    turned.bias.data = network.bias
    assert torch.equal(network.update(state), turned.update(state))


@every_kind
def test_large_scores_saturate_and_overflow_shows(kind):
    network, state, target, sites = problem(9, 4, 5, 1, torch.float32, beta=1e4, kind=kind)
    a, b = plain_and_fast(lambda: network.field(state))
    close(a, b, 1e-4)
    next(network.couplings.parameters()).fill_(torch.inf)
    assert not network.field(state).isfinite().any()


@every_kind
def test_what_was_calculated_before_leaves_no_trace(kind):
    network, state, target, sites = problem(40, 4, 5, 2, kind=kind)
    expected = network.field(state), prediction_rule(network, state, target, sites)[1]
    broken, *_ = problem(40, 4, 5, 2, kind=kind)
    for p in broken.parameters():
        p.fill_(torch.nan)
    assert not broken.field(state).isfinite().any()
    prediction_rule(broken, state, target, sites)
    assert torch.equal(network.field(state), expected[0])
    for name, gradient in prediction_rule(network, state, target, sites)[1].items():
        assert torch.equal(gradient, expected[1][name])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 4e-16), (torch.float32, 2e-7)])
def test_the_exponential(dtype, tolerance):
    n = lanes.n_lanes(torch.zeros(0, dtype=dtype).numpy().dtype)

    @numba.njit
    def each(x, out):
        for i in range(len(x)):
            lanes.store(out, i, 0, lanes.exp(lanes.load(x, i, 0)))

    x = -torch.logspace(-9, 1.9, 100 * n, dtype=torch.float64).to(dtype).view(-1, 1, n)
    x[0, 0, :3] = torch.tensor([0, -1e30, -torch.inf])
    out = torch.empty_like(x)
    each(x.numpy(), out.numpy())
    exact = x.double().exp()
    tiny = torch.finfo(dtype).tiny
    assert ((out - exact).abs() <= tolerance * exact + 2 * tiny).all()
    assert out[0, 0, 0] == 1 and (out >= tiny / 2).all()


def test_empty_and_half_precision():
    network, state, target, sites = problem(4, 3, 5, 2)
    assert network.update(state[:0]).shape == (0, 3, 5)
    with pytest.raises(ValueError, match="at least one example, got an empty batch"):
        prediction_rule(network, state[:0], target[:0])
    half = AttractorNetwork(3, 5, 2).half()
    assert serving(half, state.half()) is batched
    assert half.update(state.half()).dtype == torch.float16
    assert (
        prediction_rule(half, state.half(), target.half())[1]["couplings.J"].dtype == torch.float16
    )
    with pytest.raises(ValueError, match="must be torch.float64"):
        network.update(state.half())


def test_which_kernel_serves():
    network, state, _, _ = problem(4, 3, 5, 2)
    assert serving(network, state.clone().requires_grad_()) is batched
    with torch.no_grad():
        assert serving(network, state.clone().requires_grad_()) is cpu
    assert torch.func.jacrev(lambda x: network.update(x[None])[0])(state[0]).shape == (3, 5, 3, 5)
    assert serving(AttractorNetwork(3, 5, rank=2).double(), state) is cpu
    assert serving(AttractorNetwork(3, 5, potential=Square()).double(), state) is batched
    assert serving(network, state, "energy_rule") is batched
    with kernels.only("batched"):
        assert serving(network, state) is batched
        with kernels.only():
            assert serving(network, state) is None
        assert serving(network, state) is batched
    assert serving(network, state) is cpu
    with (
        pytest.raises(ValueError, match="kernels are cuda and cpu and batched here, got numba"),
        kernels.only("numba"),
    ):
        pass


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize("hears", ["those before", "itself too", "some"])
@pytest.mark.parametrize("size", [(3, 2, 3, 2), (33, 5, 7, 3), (31, 17, 4, 5), (5, 65, 3, 2)])
@every_kind
def test_whoever_hears_whom(kind, size, hears, dtype, tolerance):
    network, state, target, sites = problem(*size, dtype, kind=kind)
    network.hears = HEARS[hears](size[1])
    assert serving(network, state) is cpu
    for kernel in ("cpu", "batched"):
        close(*plain_and_fast(lambda: network.update(state), kernel), tolerance)
        plain, fast = plain_and_fast(lambda: prediction_rule(network, state, target, sites), kernel)
        close(plain[0], fast[0], tolerance)
        for name, gradient in plain[1].items():
            close(gradient, fast[1][name], tolerance)


def test_what_a_site_does_not_hear_may_be_anything():
    network, state, target, sites = problem(9, 4, 5, 2)
    expected = prediction_rule(network, state, target, sites)[1]["couplings.J"]
    network.couplings.J[:, range(4), range(4)] = torch.nan
    assert torch.equal(prediction_rule(network, state, target, sites)[1]["couplings.J"], expected)


def test_the_caller_may_use_several_threads_of_its_own():
    from concurrent.futures import ThreadPoolExecutor

    problems = [problem(40 + n, 5, 7, 2, seed=n) for n in range(4)]
    expected = [prediction_rule(*p)[1]["couplings.J"] for p in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for e, (_, g) in zip(expected, pool.map(lambda p: prediction_rule(*p), problems)):
                assert torch.equal(e, g["couplings.J"])


def test_dynamics_with_clamped_sites_take_it():
    network, state, _, sites = problem(37, 5, 7, 1)
    plain, quick = plain_and_fast(lambda: run(network.update, state, 4, clamped=sites))
    close(plain.states, quick.states, 1e-12)
    assert torch.equal(quick.final[sites], state[sites])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("rank", [None, 16])
def test_a_large_batch_takes_little_memory(rank):
    """Plain messages of 8,192 examples would be 6.7 GB; the whole process stays below 1 GB."""
    script = f"""
import torch
from attractor_lib.learning import prediction_rule
from attractor_lib.kernels import batched, cpu, lanes, serving
from attractor_lib.model import AttractorNetwork, Square
network = AttractorNetwork(16, 50, n_heads=16 if {rank} else 1, rank={rank})
state = torch.nn.functional.normalize(torch.randn(8192, 16, 50), dim=-1)
prediction_rule(network, state, state)
network.update(state)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 1e9


def test_works_where_nothing_can_be_stored():
    names = {}
    exec(
        "def successor(x): return x + 1", names
    )  # of no file, so numba has nowhere to put what it compiles
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(names["successor"])
    assert cpu.kernel(names["successor"])(1) == 2
