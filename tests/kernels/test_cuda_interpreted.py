"""The GPU path, without a GPU: its kernels run by triton's interpreter against the equations, and
are compiled for GPUs.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

EQUAL = """
import itertools
import torch
from torch.nn import functional as F
from attractor_lib import kernels
from attractor_lib.couplings import Full, LowRank, SharedFactors
from attractor_lib.kernels import cuda
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork

g = torch.Generator().manual_seed(0)
others = lambda n: ~torch.eye(n, dtype=torch.bool)
everybody = lambda n: torch.ones(n, n, dtype=torch.bool)
before = lambda n: everybody(n).tril(-1)  # the first hears none
some = lambda n: torch.rand(n, n, generator=g) < 0.4

def problem(couplings, batch, hears=others, beta=3.0):
    N, d = couplings.n_sites, couplings.dim
    for p in couplings.parameters():
        p += 0.5 * torch.randn(p.shape, generator=g) / p.shape[-2] ** 0.5
    network = AttractorNetwork(N, d, couplings=couplings, beta=beta, hears=hears(N))
    network.bias += 0.3 * torch.randn(N, d, generator=g)
    state = F.normalize(torch.randn(batch, N, d, generator=g), dim=-1)
    spread = torch.zeros(batch, d, N).mT
    spread.copy_(state)
    target, sites = torch.randn(batch, N, d, generator=g), torch.rand(batch, N, generator=g) < 0.6
    return network, spread, target, sites

def computed(network, state, target, sites):
    loss, of_couplings, db = cuda.prediction_rule(network, state, target, sites)
    of_couplings = {f"couplings.{name}": d for name, d in of_couplings.items()}
    return {"field": cuda.field(network, state), "loss": loss, "bias": db} | of_couplings

def written(network, state, target, sites):
    with kernels.only():
        loss, gradients = prediction_rule(network, state, target, sites)
        return {"field": network.field(state), "loss": loss} | gradients

def equal(*given, tolerance=2e-6, **options):
    this = problem(*given, **options)
    got, expected = computed(*this), written(*this)
    assert got.keys() == expected.keys()
    for name, a in expected.items():
        b = got[name]
        error = (a - b).abs().max() / a.abs().max().clamp(min=1e-2)
        assert a.shape == b.shape and a.dtype == b.dtype, (this[0], name)
        assert error <= tolerance, (this[0], name, len(this[1]), error)
"""

FULL_RANK = """
sizes = [(1, 2, 1, 1), (5, 3, 5, 2), (64, 2, 3, 1), (70, 4, 17, 1), (130, 3, 7, 3)]
for (batch, N, d, heads), hears in itertools.product(sizes, [others, everybody, before]):
    equal(Full.random(heads, N, d, g), batch, hears)
cuda.NUMBERS = 25 * 2 * 3 * 5  # blocks of 25 examples
equal(Full.random(2, 3, 5, g), 57, some)
network, state, _, _ = problem(Full.random(2, 3, 5, g), 1)
assert cuda.field(network, state[:0]).shape == (0, 3, 5)
"""

LOW_RANK = """
# N <= T / 2: several examples and heads a tile, the last tile not full; N <= T; several tiles
sizes = [(1, 2, 1, 1, 1), (5, 3, 7, 2, 5), (1, 16, 5, 2, 16), (2, 20, 3, 1, 33), (1, 65, 3, 2, 3)]
sizes += [(1, 130, 2, 1, 17)]
for (batch, N, d, heads, rank), hears in itertools.product(sizes, [others, before, some]):
    equal(LowRank.random(heads, N, d, rank, g), batch, hears)
equal(LowRank.random(1, 40, 3, 70, g), 1, some)
equal(LowRank.random(1, 18, 70, 128, g), 1, everybody)
equal(SharedFactors.random(2, 5, 7, 3, 2, g), 4, some)
for batch in (1, 1000, 8192):  # the last is summed in parts
    v, s = torch.randn(2, batch, 5, generator=g), torch.randn(2, batch, 3, generator=g)
    torch.testing.assert_close(cuda._outer(v, s), v.mT @ s, atol=1e-3, rtol=0)
cuda.NUMBERS = 4 * 2 * 5 * 3  # blocks of 4 examples
equal(LowRank.random(2, 5, 7, 3, g), 11, some)
network, state, _, _ = problem(LowRank.random(2, 5, 7, 3), 1)
assert cuda.field(network, state[:0]).shape == (0, 5, 7)
"""

ONE_PROGRAM = """
network = problem(LowRank.random(2, 5, 7, 3, g), 4)[0]
form = cuda._LowRank(network)
q, k = torch.randn(2, 5, 4, 6, generator=g)  # (N, batch, heads r)
o, log_sum = torch.full_like(q, torch.nan), torch.full((8, 5), torch.nan)
given = q, k, form.hears, o, log_sum, 3.0, 8, 3
cuda._attend_low[1, 1](*given, **form.constants)
written = ~o.view(5, 8, 3).isnan()
assert written[:, :3].all() and not written[:, 3:].any()  # 3 pairs have 15 of 16 rows
assert not log_sum[:3].isnan().any() and log_sum[3:].isnan().all()
"""

EXTREMES = """
forms = [Full.random(2, 3, 5, g), LowRank.random(2, 3, 5, 4, g), LowRank.random(1, 17, 5, 4, g)]
for couplings, hears in itertools.product(forms, [others, before]):
    equal(couplings, 3, hears, beta=1e4, tolerance=2e-3)  # scores of 1e4 are known to 1e-3
for couplings in forms:
    network, state, _, _ = problem(couplings, 3, before)
    hears_none = cuda.field(network, state)[:, 0]
    assert torch.equal(hears_none, network.bias[0].expand_as(hears_none))
    for large in (1e30, torch.inf):
        for p in couplings.parameters():
            p.fill_(large)
        with kernels.only():
            expected = network.field(state)[:, 1:].isfinite()
        assert torch.equal(cuda.field(network, state)[:, 1:].isfinite(), expected)
    assert not expected.any()
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from attractor_lib.couplings import Full, LowRank
from attractor_lib.kernels import cuda
from attractor_lib.model import AttractorNetwork

pointers = {
    "_attend_full": "s J hears o log_sum",
    "_respond_full": "s J hears log_sum r r_dot_o dJ",
    "_attend_low": "q k hears o log_sum",
    "_respond_low": "q k hears o log_sum g dq dk",
}

def compiled(name, couplings, capability):
    network = AttractorNetwork(couplings.n_sites, couplings.dim, couplings=couplings)
    form = (cuda._FullRank if couplings.pairwise else cuda._LowRank)(network)
    options = {k: v for k, v in form.constants.items() if k.islower() and k != "precision"}
    constants = {k: v for k, v in form.constants.items() if k not in options}
    types = {p: "*i8" if p == "hears" else "*fp32" for p in pointers[name].split()}
    types |= {p: "i32" for p in getattr(cuda, name).arg_names} | types | {"beta": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    types = {p: types[p] for p in getattr(cuda, name).arg_names}
    source = ASTSource(getattr(cuda, name), types, constexprs=constants)
    done = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert "cubin" in done.asm and "mma" in done.asm["ptx"]
    assert done.metadata.shared <= 99 * 1024, (name, couplings, capability, done.metadata.shared)
    return done.asm["ptx"]
"""


def run(*script, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join([*script, "print('all done')"])],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "all done\n"


@pytest.mark.parametrize("cases", [FULL_RANK, LOW_RANK, EXTREMES], ids=["full", "low", "extremes"])
def test_the_kernels_equal_the_equations_in_the_interpreter(cases):
    run(EQUAL, cases, TRITON_INTERPRET="1")


@pytest.mark.parametrize("capability, precision", [(80, "high"), (90, "highest")])
def test_the_largest_tiles_use_tensor_cores_and_fit_shared_memory(capability, precision):
    cases = f"""
import torch
torch.set_float32_matmul_precision("{precision}")
for kind in ("attend", "respond"):
    compiled(f"_{{kind}}_full", Full.random(1, 2, cuda.LARGEST_DIM), {capability})
    for N, rank in [(65, 32), (17, cuda.LARGEST_RANK)]:
        compiled(f"_{{kind}}_low", LowRank.random(1, N, 1, rank), {capability})
"""
    run(COMPILED, cases, TRITON_INTERPRET="0")


def test_a_program_writes_its_own_rows_alone():
    run(EQUAL, ONE_PROGRAM, TRITON_INTERPRET="1")


def test_one_tile_is_answered_once():
    """With one tile, the scores of sites that act and of sites that are heard are the same: five
    products of 16 x 16 x 16, each of four instructions of 16 x 8 x 8.
    """
    cases = """
import torch
torch.set_float32_matmul_precision("high")
ptx = compiled("_respond_low", LowRank.random(1, 16, 1, 16), 80)
assert ptx.count("mma.sync") == 5 * 4, ptx.count("mma.sync")
"""
    run(COMPILED, cases, TRITON_INTERPRET="0")
