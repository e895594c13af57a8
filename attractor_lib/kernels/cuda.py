r"""The update and the prediction rule of full-rank heads on a GPU: keys stay in registers.

The derivation is that of ``attractor_lib.kernels.cpu``. In the first kernel a program takes a site
i, a head and a block of examples, goes through the sites j that i hears, makes the keys k_ij = J_ij
s_j of its block in registers, and keeps of them only the running maximum, sum and mean of an online
softmax (as flash attention does)::

    top   <- max(top, t_j)
    total <- total e^(old - top) + e^(t_j - top)
    o     <- o e^(old - top) + e^(t_j - top) k_j

with t_j = beta s_i . k_ij. It leaves o_i / total and log total + top = log sum_j e^t_j. In the
second kernel a program takes a pair (i, j) and a head, goes through the examples, makes the keys
again (cheaper than to read them), has a_ij = e^(t_j - log sum) at once, and sums dL/dk_ij s_j^T in
registers: three matrix products in place of the two of the floor, no message in memory, no atomics.

The kernels are written in triton, which CUDA builds of torch bring along. The products are in full
single precision, or in tf32 where ``torch.set_float32_matmul_precision`` allows it.
"""

import torch
from torch import Tensor

from attractor_lib.states import builds_graph

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without it
    triton = None

COMPUTES = "field", "prediction_rule"
EXAMPLES = 64  # examples of a block
# Components of a token: a program's tiles then fit the 99 KB of shared memory of every GPU since
# 2020.
LARGEST = 64


def serves(network, x: Tensor) -> bool:
    """Full rank and softmax, on a CUDA device, in single precision, no graph to build."""
    return (
        triton is not None
        and network.couplings.pairwise
        and network.phi.fused
        and x.is_cuda
        and x.dtype == torch.float32
        and network.dim <= LARGEST
        and not builds_graph(network, x)
    )


if triton is not None:

    @triton.jit
    def _keys(s, J, m, i, j, h, batch, N, d, D: tl.constexpr, precision: tl.constexpr):
        """s_j (examples, D), and k_ij = J_ij s_j (examples, D); zero beyond the batch and beyond
        d.
        """
        c = tl.arange(0, D)
        s_j = tl.load(
            s + (m[:, None] * N + j) * d + c[None, :],
            mask=(m[:, None] < batch) & (c[None, :] < d),
            other=0.0,
        )
        J_ij = tl.load(
            J + ((h * N + i) * N + j) * d * d + c[None, :] * d + c[:, None],  # (b, a): transposed
            mask=(c[None, :] < d) & (c[:, None] < d),
            other=0.0,
        )
        return s_j, tl.dot(s_j, J_ij, input_precision=precision)

    @triton.jit
    def _attend(
        s,
        J,
        hears,
        o,
        log_sum,
        beta,
        batch,
        N,
        d,
        D: tl.constexpr,
        M: tl.constexpr,
        precision: tl.constexpr,
    ):
        m, i, h = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1), tl.program_id(2)
        c = tl.arange(0, D)
        inside = (m[:, None] < batch) & (c[None, :] < d)
        q = tl.load(s + (m[:, None] * N + i) * d + c[None, :], mask=inside, other=0.0)
        top, total, mean = (
            tl.full((M,), -float("inf"), tl.float32),
            tl.zeros((M,), tl.float32),
            tl.zeros((M, D), tl.float32),
        )
        for j in range(N):
            if tl.load(hears + i * N + j) != 0:
                _, k = _keys(s, J, m, i, j, h, batch, N, d, D, precision)
                t = beta * tl.sum(q * k, 1)
                higher = tl.maximum(top, t)
                old, new = tl.exp(top - higher), tl.exp(t - higher)
                top, total, mean = higher, total * old + new, mean * old[:, None] + new[:, None] * k
        mean = tl.where(total[:, None] > 0, mean / total[:, None], mean)  # zero where none is heard
        tl.store(o + ((h * batch + m[:, None]) * N + i) * d + c[None, :], mean, mask=inside)
        tl.store(log_sum + (h * batch + m) * N + i, top + tl.log(total), mask=m < batch)

    @triton.jit
    def _respond(
        s,
        J,
        hears,
        r,
        log_sum,
        r_dot_o,
        dJ,
        beta,
        batch,
        N,
        d,
        D: tl.constexpr,
        M: tl.constexpr,
        precision: tl.constexpr,
    ):
        i, j, h = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        c, product = tl.arange(0, D), tl.zeros((D, D), tl.float32)
        if tl.load(hears + i * N + j) != 0:
            for first in range(0, batch, M):
                m = first + tl.arange(0, M)
                inside = (m[:, None] < batch) & (c[None, :] < d)
                q = tl.load(s + (m[:, None] * N + i) * d + c[None, :], mask=inside, other=0.0)
                g = tl.load(r + (m[:, None] * N + i) * d + c[None, :], mask=inside, other=0.0)
                of_site = (h * batch + m) * N + i
                s_j, k = _keys(s, J, m, i, j, h, batch, N, d, D, precision)
                a = tl.exp(
                    beta * tl.sum(q * k, 1)
                    - tl.load(log_sum + of_site, mask=m < batch, other=float("inf"))
                )
                z = (
                    beta
                    * a
                    * (tl.sum(g * k, 1) - tl.load(r_dot_o + of_site, mask=m < batch, other=0.0))
                )
                product += tl.dot(
                    tl.trans(a[:, None] * g + z[:, None] * q), s_j, input_precision=precision
                )
        tl.store(
            dJ + ((h * N + i) * N + j) * d * d + c[:, None] * d + c[None, :],
            product,
            mask=(c[:, None] < d) & (c[None, :] < d),
        )


def _attended(network, x: Tensor) -> tuple[Tensor, Tensor, tuple, dict]:
    """o (heads, batch, N, d), log-sum-exps (heads, batch, N), and what kernels are called with."""
    batch, N, d = x.shape
    J, hears = network.couplings.J.detach().contiguous(), network.hears.to(torch.int8).contiguous()
    sizes = (network.beta, batch, N, d)
    constants = {
        "D": max(16, triton.next_power_of_2(d)),
        "M": EXAMPLES,
        "precision": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        "num_stages": 2,
    }
    o, log_sum = x.new_empty(len(J), batch, N, d), x.new_empty(len(J), batch, N)
    if batch:
        _attend[triton.cdiv(batch, EXAMPLES), N, len(J)](
            x, J, hears, o, log_sum, *sizes, **constants
        )
    return o, log_sum, (J, hears, sizes), constants


def field(network, x: Tensor) -> Tensor:
    """`AttractorNetwork.field` of a valid state x (batch, N, d)."""
    return _attended(network, x.detach().contiguous())[0].sum(0) + network.bias.detach()


def prediction_rule(
    network, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, dict, Tensor]:
    """`prediction_rule` of a valid example: loss, gradients of the couplings, of the bias."""
    state = state.detach().contiguous()
    o, log_sum, (J, hears, sizes), constants = _attended(network, state)
    r = (o.sum(0) + network.bias.detach() - target) * sites[..., None]
    loss = r.square().sum() / (2 * len(state))
    r = (r / len(state)).contiguous()
    r_dot_o, dJ = torch.linalg.vecdot(r, o).contiguous(), torch.empty_like(J)
    _respond[J.shape[1], J.shape[1], len(J)](
        state, J, hears, r, log_sum, r_dot_o, dJ, *sizes, **constants
    )
    return loss, network.couplings.chain_rule(J=dJ), r.sum(0)
