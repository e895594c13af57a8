"""The GPU path, without a GPU: its kernels run by triton's interpreter against the plain path, and
are compiled for GPUs.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

INTERPRETED = """
import itertools
import torch
from torch.nn import functional as F
from attractor_lib import kernels
from attractor_lib.kernels import cuda
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork

g = torch.Generator().manual_seed(0)
sizes = [(1, 2, 1, 1), (5, 3, 5, 2), (64, 2, 3, 1), (70, 4, 17, 1), (130, 3, 7, 3)]
everybody = lambda n: torch.ones(n, n, dtype=torch.bool)
masks = [None, everybody, lambda n: everybody(n).tril(-1)]
for (batch, N, d, heads), mask in itertools.product(sizes, masks):
    network = AttractorNetwork(N, d, heads, beta=3.0, generator=g, hears=mask and mask(N))
    for p in network.parameters():
        p += 0.3 * torch.randn(p.shape, generator=g)
    state = F.normalize(torch.randn(batch, N, d, generator=g), dim=-1)
    target, sites = torch.randn(batch, N, d, generator=g), torch.rand(batch, N, generator=g) < 0.6
    with kernels.only():
        loss, gradients = prediction_rule(network, state, target, sites)
        field = network.field(state)
    spread = torch.zeros(batch, d, N).mT
    spread.copy_(state)
    got_loss, of_couplings, db = cuda.prediction_rule(network, spread, target, sites)
    pairs = [(loss, got_loss), (field, cuda.field(network, spread)), (gradients["bias"], db)]
    for a, b in [*pairs, (gradients["couplings.J"], of_couplings["J"])]:
        near = (a - b).abs().max() <= 1e-6 * a.abs().max().clamp(min=1)
        assert a.shape == b.shape and near, (batch, N, d, heads)
assert cuda.field(network, state[:0]).shape == (0, 3, 7)
print("all equal")
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from attractor_lib.kernels import cuda

given = ["s", "J", "hears"]
pointers = {"_attend": [*given, "o", "log_sum"]}
pointers["_respond"] = [*given, "r", "log_sum", "r_dot_o", "dJ"]
for capability in (80, 90):
    for precision in ("tf32", "ieee"):
        for name, names in pointers.items():
            types = {p: "*i8" if p == "hears" else "*fp32" for p in names}
            types |= {"beta": "fp32"} | {n: "i32" for n in ("batch", "N", "d")}
            constants = {"D": cuda.LARGEST, "M": cuda.EXAMPLES, "precision": precision}
            types |= dict.fromkeys(constants, "constexpr")
            source = ASTSource(getattr(cuda, name), types, constexprs=constants)
            target = GPUTarget("cuda", capability, 32)
            done = compile(source, target=target, options={"num_stages": 2})
            shared = done.metadata.shared
            assert "cubin" in done.asm and shared <= 99 * 1024, (name, capability, shared)
            assert ("mma" in done.asm["ptx"]) == (precision == "tf32")
print("all compiled")
"""


def run(script, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_kernels_equal_the_plain_path_in_the_interpreter():
    assert run(INTERPRETED, TRITON_INTERPRET="1") == "all equal\n"


def test_the_kernels_compile_for_gpus_with_tensor_cores_and_fit_their_shared_memory():
    assert run(COMPILED, TRITON_INTERPRET="0") == "all compiled\n"
