"""The update and the prediction rule of full-rank heads near a CPU's limit.

**What sets the pace.** With keys k_ij = J_ij s_j, residual r_i = h_i(s) - x_i and attention a_ij,
the rule needs two matrix products of 2 batch N^2 d^2 operations a head: the keys, and the sum over
examples of dL/dk_ij s_j^T. What lies between them,

::

    a_ij = softmax over the j that i hears of beta s_i . k_ij
    o_i  = sum_j a_ij k_ij
    r_i  = sum_h o_i + b_i - x_i
    z_ij = beta a_ij (r_i . k_ij - r_i . o_i)
    dL/dk_ij = a_ij r_i + z_ij s_i

is of order batch N^2 d only, but it reads and writes the keys, (batch, heads, N, N, d) numbers,
again and again. In operations on whole tensors most of the time goes there, into memory traffic.
Here the keys never leave the processor's cache:

1. Examples lie side by side. Tokens are laid out as (block, N, d, m), the m examples of a block
   last. So the keys that one site j shows come out of a matrix product as (d, m), and every line
   above is a loop over m of the same operation: a vector instruction for many examples, no sum
   across a vector.
2. Each site minds its own business. The energy e_i needs only J_i and the tokens. So a thread takes
   a site i and a block, multiplies J_ij s_j, goes through the equations, overwrites the keys by
   dL/dk_ij, and adds the second product to dL/dJ_ij. No other thread reads what it writes, and the
   keys of one site and one block, (heads, N, d, m), stay in its cache.

So working memory does not grow with the batch: it is the keys of one site and block for each
thread, and the tokens of `EXAMPLES` examples. The loops are compiled by numba, on the first call
(about 20 s) and for all later sessions; the products are BLAS. Low-rank heads stay with
``batched``: their keys, (batch, heads, N, r), are small, and the same treatment gained 5 to 20% at
16 heads of rank 16.
"""

import math
import sys
import threading
from contextlib import contextmanager
from functools import cache

import numba
import numpy as np
import scipy.linalg  # noqa: F401  its BLAS is the one that numba calls: it is loaded before `_blas` looks for it
import torch
from numba import njit, prange, types
from numba.extending import overload
from threadpoolctl import ThreadpoolController
from torch import Tensor

from attractor_lib.states import builds_graph


def _compiled(**options):
    # No flag that assumes finite numbers: an overflow must come out as one.
    options |= {
        "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"},
        "nogil": True,
        "error_model": "numpy",
    }

    def decorate(function):
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # there is nowhere to store it: compiled in each session
            return njit(**options)(function)

    return decorate


COMPUTES = "field", "prediction_rule"
kernel, parallel = _compiled(), _compiled(parallel=True)
LANES = (
    32  # the number of examples side by side is a multiple of this: whole vectors, no remainders
)
CACHE = 2**18  # numbers of one thread's keys that stay in its cache
EXAMPLES = 1024  # examples that are laid out at a time, at most


def serves(network, x: Tensor) -> bool:
    """Full rank and softmax, on a CPU, in single or double precision, no graph to build."""
    return (
        network.couplings.pairwise
        and network.phi.fused
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not builds_graph(network, x)
    )


# The equations for one site i and one head, examples side by side: q, g, o (d, m), k (N, d, m), a,
# z (N, m); heard (N,), the sites j that i hears. The keys of the others are zero.

# exp(x) = 2^n 2^f with a whole n and |f| <= 1/2; 2^f by the polynomial through its Chebyshev
# points, error 2e-8 (float32 has 6e-8).
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = (
    np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5])
    .convert(kind=np.polynomial.Polynomial)
    .coef.astype(np.float32)
)
_LOG2E, _HALF = np.float32(math.log2(math.e)), np.float32(0.5)


@kernel
def _exp_single(x):
    y = max(x * _LOG2E, np.float32(-126))
    n = np.floor(y + _HALF)
    f = y - n
    p = _P0 + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6)))))
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


def _exp(x):
    """e^x for x <= 0, in a form that a vector unit can take."""


@overload(_exp, inline="always")
def _(x):
    return (lambda x: _exp_single(x)) if x == types.float32 else (lambda x: math.exp(x))


@kernel
def _dot(x, y, out):
    """out = sum_c x_c y_c"""
    C, M = x.shape
    for m in range(M):
        out[m] = 0
    for c in range(0, C - 3, 4):
        x0, x1, x2, x3, y0, y1, y2, y3 = (
            x[c],
            x[c + 1],
            x[c + 2],
            x[c + 3],
            y[c],
            y[c + 1],
            y[c + 2],
            y[c + 3],
        )
        for m in range(M):
            out[m] += (x0[m] * y0[m] + x1[m] * y1[m]) + (x2[m] * y2[m] + x3[m] * y3[m])
    for c in range(C - C % 4, C):
        x0, y0 = x[c], y[c]
        for m in range(M):
            out[m] += x0[m] * y0[m]


@kernel
def _attend(q, k, heard, beta, a, o):
    """a_j = softmax over the j that are heard of beta q . k_j,  o = sum_j a_j k_j"""
    J, C, M = k.shape
    top, total, first = np.empty(M, q.dtype), np.zeros(M, q.dtype), True
    for j in range(J):
        t = a[j]
        if heard[j]:
            _dot(q, k[j], t)
            for m in range(M):
                t[m] *= beta
            if first:
                for m in range(M):
                    top[m] = t[m]
            else:
                for m in range(M):
                    top[m] = t[m] if t[m] > top[m] else top[m]
            first = False
    for j in range(J):
        t = a[j]
        if heard[j]:
            for m in range(M):
                t[m] = _exp(t[m] - top[m])
                total[m] += t[m]
        else:
            for m in range(M):
                t[m] = 0
    if first:  # none is heard, all a_j are zero
        for m in range(M):
            total[m] = 1
    for m in range(M):
        total[m] = 1 / total[m]
    for j in range(J):
        t = a[j]
        for m in range(M):
            t[m] *= total[m]
    for c in range(C):
        oc = o[c]
        for m in range(M):
            oc[m] = 0
        for j in range(0, J - 1, 2):
            a0, a1, k0, k1 = a[j], a[j + 1], k[j, c], k[j + 1, c]
            for m in range(M):
                oc[m] += a0[m] * k0[m] + a1[m] * k1[m]
        if J % 2:
            a0, k0 = a[J - 1], k[J - 1, c]
            for m in range(M):
                oc[m] += a0[m] * k0[m]


@kernel
def _respond(q, g, heard, a, o, beta, k, z):
    """z_j = beta a_j (g . k_j - g . o); in place of k_j, if heard: dL/dk_j = a_j g + z_j q"""
    J, C, M = k.shape
    mean = np.empty(M, g.dtype)
    _dot(g, o, mean)
    for j in range(J):
        if heard[j]:
            aj, zj = a[j], z[j]
            _dot(g, k[j], zj)
            for m in range(M):
                zj[m] = beta * aj[m] * (zj[m] - mean[m])
            for c in range(C):
                kc, gc, qc = k[j, c], g[c], q[c]
                for m in range(M):
                    kc[m] = aj[m] * gc[m] + zj[m] * qc[m]


@kernel
def _site_field(s, i, J, bias, beta, hears, K, A, O, f):
    """f = h_i = sum_h o^h_i + b_i"""
    for h in range(len(J)):
        for j in range(len(s)):
            if hears[i, j]:
                np.dot(J[h, i, j], s[j], K[h, j])
            else:
                K[h, j] = 0
        _attend(s[i], K[h], hears[i], beta, A[h], O[h])
    for c in range(len(f)):
        fc, b = f[c], bias[i, c]
        for m in range(len(fc)):
            fc[m] = b
        for h in range(len(O)):
            oc = O[h, c]
            for m in range(len(fc)):
                fc[m] += oc[m]


@kernel
def _residual(f, x, w, db):
    """In place of the field f: w (f - x), added to db too. Returns w/2 |f - x|^2."""
    loss = 0.0
    for c in range(len(f)):
        fc, xc, one, two = f[c], x[c], db[c] * 0, db[c] * 0
        for m in range(len(fc)):
            e = fc[m] - xc[m]
            two += w[m] * e * e
            fc[m] = w[m] * e
            one += fc[m]
        db[c] += one
        loss += two / 2
    return loss


@kernel
def _add(product, total):
    for a in range(len(total)):
        t, p = total[a], product[a]
        for b in range(len(t)):
            t[b] += p[b]


@parallel
def _field(s, J, bias, beta, hears, K, A, O, f):
    B, N, threads = len(s), s.shape[1], len(K)
    for t in prange(threads):
        for b in range(B):
            for i in range(t, N, threads):
                _site_field(s[b], i, J, bias, beta, hears, K[t], A[t], O[t], f[b, i])


@parallel
def _rule(s, transposed, x, weight, J, bias, beta, hears, K, A, O, Z, r, product, dJ, db):
    B, N, threads = len(s), s.shape[1], len(K)
    loss = np.zeros(threads)
    for t in prange(threads):
        for b in range(B):
            for i in range(t, N, threads):
                _site_field(s[b], i, J, bias, beta, hears, K[t], A[t], O[t], r[t])
                loss[t] += _residual(r[t], x[b, i], weight[b, i, 0], db[i])
                for h in range(len(J)):
                    _respond(s[b, i], r[t], hears[i], A[t, h], O[t, h], beta, K[t, h], Z[t])
                    for j in range(N):
                        if hears[i, j]:
                            np.dot(K[t, h, j], transposed[b, j], product[t])
                            _add(product[t], dJ[h, i, j])
    return loss.sum()


# Between tensors and these.


@parallel
def _side_by_side(x, out):
    """(batch, N, d) as (blocks, N, d, lanes); examples that fill up the last block are zero."""
    B, N, D, M = out.shape
    for b in prange(B):
        n = max(0, min(M, len(x) - b * M))
        for i in range(N):
            for c in range(D):
                o = out[b, i, c]
                for m in range(n):
                    o[m] = x[b * M + m, i, c]
                for m in range(n, M):
                    o[m] = 0


@parallel
def _transpose(s, out):
    """(blocks, N, d, lanes) as (blocks, N, lanes, d)."""
    for b in prange(len(s)):
        for i in range(s.shape[1]):
            for m in range(s.shape[3]):
                for c in range(s.shape[2]):
                    out[b, i, m, c] = s[b, i, c, m]


class _Workspace:
    """Arrays kept from call to call: fresh memory costs as much as a pass. One caller at a time."""

    plan, lock = None, threading.Lock()

    @contextmanager
    def ready_for(self, network, batch: int):
        """With arrays for that batch; threads share the sites, each with a BLAS of one thread.

        Afterwards torch and numba have as many threads as before.
        """
        of_torch, of_numba = torch.get_num_threads(), numba.get_num_threads()
        threads = min(of_torch, numba.config.NUMBA_NUM_THREADS, network.n_sites)
        try:
            with self.lock, _blas().limit(limits=1, user_api="blas"):
                self._prepare(network, batch, threads)
                numba.set_num_threads(len(self.K))
                try:
                    yield self
                finally:
                    numba.set_num_threads(of_numba)
        finally:  # last: where both use the same OpenMP, numba sets torch's, and so does the limit
            torch.set_num_threads(of_torch)

    def _prepare(self, network, batch: int, threads: int) -> None:
        H, N, D, dtype = (
            network.n_heads,
            network.n_sites,
            network.dim,
            network.bias.detach().numpy().dtype,
        )
        most = min(4, max(1, CACHE // (H * N * D) // LANES)) * LANES
        at_once = max(1, min(batch, EXAMPLES))
        lanes = -(-at_once // -(-at_once // most) // LANES) * LANES
        blocks = -(-at_once // lanes)
        if self.plan == (plan := (H, N, D, dtype, lanes, blocks, threads)):
            return
        self.plan, self.examples = plan, blocks * lanes
        self.s, self.x, self.f = (np.empty((blocks, N, D, lanes), dtype) for _ in range(3))
        self.transposed, self.weight = (
            np.empty((blocks, N, lanes, D), dtype),
            np.empty((blocks, N, 1, lanes), dtype),
        )
        self.K, self.A, self.O, self.Z, self.r, self.product = (
            np.empty((threads, *shape), dtype)
            for shape in [
                (H, N, D, lanes),
                (H, N, lanes),
                (H, D, lanes),
                (N, lanes),
                (D, lanes),
                (D, D),
            ]
        )


_workspace = _Workspace()


def field(network, x: Tensor) -> Tensor:
    """`AttractorNetwork.field` of a valid state x (batch, N, d)."""
    out = torch.empty(x.shape, dtype=x.dtype)
    with _workspace.ready_for(network, len(x)) as work, _told_of_compilation(_field):
        for part, f in zip(x.split(work.examples), out.split(work.examples)):
            _side_by_side(part.detach().contiguous().numpy(), work.s)
            _field(work.s, *_parameters(network), work.K, work.A, work.O, work.f)
            f.copy_(torch.from_numpy(work.f).movedim(-1, 1).flatten(0, 1)[: len(f)])
    return out


def prediction_rule(
    network, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, dict, Tensor]:
    """`prediction_rule` of a valid example: loss, gradients of the couplings, of the bias."""
    J, bias = network.couplings.J, network.bias
    loss, dJ, db = (
        0.0,
        torch.zeros(J.shape, dtype=J.dtype),
        torch.zeros(bias.shape, dtype=bias.dtype),
    )
    weight = sites.to(state.dtype)[..., None] / len(state)
    with _workspace.ready_for(network, len(state)) as work, _told_of_compilation(_rule):
        for parts in zip(*(t.split(work.examples) for t in (state, target, weight)), strict=True):
            for part, out in zip(parts, (work.s, work.x, work.weight), strict=True):
                _side_by_side(part.detach().contiguous().numpy(), out)
            _transpose(work.s, work.transposed)
            given = work.s, work.transposed, work.x, work.weight, *_parameters(network)
            aside = work.K, work.A, work.O, work.Z, work.r, work.product
            loss += _rule(*given, *aside, dJ.numpy(), db.numpy())
    return state.new_tensor(loss), network.couplings.chain_rule(J=dJ), db


def _parameters(network) -> tuple:
    """J, bias, beta and who hears whom."""
    bias = network.bias.detach().numpy()
    J = network.couplings.J.detach().contiguous().numpy()
    return J, bias, bias.dtype.type(network.beta), network.hears.numpy()


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _told_of_compilation(function):
    """On a terminal, says what is going on if the first call of a compiled function takes long."""
    notice = threading.Timer(
        2,
        print,
        [
            "attractor_lib: compiling the kernels of attractor_lib.kernels.cpu, once for this "
            "machine (about 20 s)"
        ],
        {"file": sys.stderr, "flush": True},
    )
    if sys.stderr.isatty() and not function.signatures:
        notice.start()
    try:
        yield
    finally:
        notice.cancel()
