"""The field and the prediction rule near a CPU's limit: softmax attention, full or low rank.

**What sets the pace.** The rule is a few large matrix products, and between them ::

    a_ij = softmax over the j that i hears of beta q_i . k_ij
    o_i  = sum_j a_ij k_ij
    r_i  = read-out of o_i + b_i - x_i ,     g_i = query of r_i
    z_ij = beta a_ij (g_i . k_ij - g_i . o_i)
    dL/dk_ij = a_ij g_i + z_ij q_i ,     dL/dq_i = sum_j z_ij k_ij

That is fewer operations, but they read and write keys and scores again and again: as operations on
whole tensors they take most of the time. Here examples lie side by side, last, so that every line
is one of vectors of examples (`kernels.lanes`) and no sum runs across a vector; and few examples at
a time go through all lines, while their keys are in the processor's cache.

*Full rank*: k_ij = J_ij s_j, one for each pair. The energy e_i needs only J_i and the tokens. So a
thread takes a site i and a block of examples, makes the keys of the site, goes through the
equations, overwrites the keys by dL/dk_ij, and adds dL/dk_ij s_j^T to dL/dJ_ij.

*Low rank*: q_i = U_i s_i, k_j = V_j s_j, the same for all i. A thread takes one vector of examples,
makes queries and keys of all sites and heads, and leaves o, dL/dq, dL/dk and r. Then a thread takes
a site and sums dL/dU_i = o_i r_i^T + dL/dq_i s_i^T and dL/dV_i = dL/dk_i s_i^T over examples.
Scores are made for `ROWS` sites i at a time, and once more for the response, as in flash attention:
memory grows with N, not with N^2.

Two threads never add to the same number, so results do not depend on how many threads there are.
Memory does not grow with the batch beyond `EXAMPLES`.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, lru_cache

import numba
import numpy as np
import torch
from numba import prange
from threadpoolctl import ThreadpoolController
from torch import Tensor

from attractor_lib.kernels import batched
from attractor_lib.kernels.lanes import (
    compiled,
    everywhere,
    exp,
    gemm,
    kernel,
    load,
    maximum,
    n_lanes,
    product,
    store,
)
from attractor_lib.states import builds_graph

COMPUTES = "field", "pooled", "prediction_rule"
FEWEST = 16  # examples; of fewer, the batched products are as fast
EXAMPLES = 1024  # that are laid out at a time, at most
CACHE = 2**18  # numbers of one thread's keys at full rank, or of all that low rank leaves in o
VECTORS = 5  # of examples in a block, at most, at full rank
ROWS = 16  # sites whose scores are held at a time, at low rank


def serves(network, x: Tensor) -> bool:
    """Softmax, on a CPU, in single or double precision, not few examples, no graph to build.

    At full rank, nothing may be known beside the spins.
    """
    return (
        network.phi.fused
        and not (network.couplings.pairwise and network.n_known)
        and len(x) >= FEWEST
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not builds_graph(network, x)
    )


def _parallel(function):
    return compiled(function, parallel=True)


# Attention of some sites i, for one head and one vector of examples: q, g, o (rows, r, lanes),
# k (N, r, lanes), a, z (rows, N, lanes), heard (rows, N).


@kernel
def _attend(q, k, heard, beta, a):
    """a_ij = softmax over the j that are heard of beta q_i . k_j"""
    product(q, k.transpose(1, 0, 2), a, False)
    zero = everywhere(a, 0)
    for i in range(len(a)):
        top, total = zero - np.inf, zero
        for j in range(len(k)):
            if heard[i, j]:
                top = maximum(load(a, i, j), top)
        for j in range(len(k)):
            e = zero
            if heard[i, j]:
                e = exp(beta * (load(a, i, j) - top))
                total = total + e
            store(a, i, j, e)
        total = 1 / total
        for j in range(len(k)):
            if heard[i, j]:
                store(a, i, j, load(a, i, j) * total)


@kernel
def _respond(g, k, o, heard, beta, a, z):
    """z_ij = beta a_ij (g_i . k_j - g_i . o_i)"""
    product(g, k.transpose(1, 0, 2), z, False)
    for i in range(len(a)):
        mean = everywhere(a, 0)
        for c in range(g.shape[1]):
            mean = mean + load(g, i, c) * load(o, i, c)
        for j in range(len(k)):
            if heard[i, j]:
                store(z, i, j, beta * load(a, i, j) * (load(z, i, j) - mean))
            else:
                store(z, i, j, load(a, i, j))


@kernel
def _copy(x, y, lanes):
    for c in range(len(x)):
        for m in range(0, x.shape[1], lanes):
            store(y, c, m, load(x, c, m))


@kernel
def _add(bias, f, lanes):
    """f_c += b_c"""
    for c in range(len(f)):
        for m in range(0, f.shape[1], lanes):
            store(f, c, m, load(f, c, m) + bias[c])


@kernel
def _residual(f, bias, x, weight, loss):
    """In place of o's read-out f (d, examples): r = weight (f + bias - x). Adds to loss."""
    for m in range(0, f.shape[1], loss.shape[1]):
        w, total = load(weight, 0, m), everywhere(f, 0)
        for c in range(len(f)):
            e = load(f, c, m) + bias[c] - load(x, c, m)
            r = w * e
            store(f, c, m, r)
            total = total + r * e
        store(loss, 0, 0, load(loss, 0, 0) + total / 2)


@kernel
def _sum(r, aside, total):
    """total_c += sum of r_c over examples."""
    for c in range(len(r)):
        some = everywhere(r, 0)
        for m in range(0, r.shape[1], aside.shape[1]):
            some = some + load(r, c, m)
        store(aside, 0, 0, some)
        for m in range(aside.shape[1]):
            total[c] += aside[0, m]


# Full rank: for a site i and a block of examples, s (N, d, block), k (heads, N, d, block),
# az (heads, 2, N, block), o (heads, d, block), f (d, block).


@kernel
def _attend_at_site(s, i, J, beta, hears, lanes, k, az, o, f):
    heard = hears[i : i + 1]
    for h in range(len(J)):
        for j in range(len(s)):
            if heard[0, j]:
                gemm(J[h, i, j], s[j], k[h, j], False)
        for m in range(0, s.shape[2], lanes):
            to = m + lanes
            a, keys = az[h, :1, :, m:to], k[h, :, :, m:to]
            _attend(s[i : i + 1, :, m:to], keys, heard, beta, a)
            product(a, keys, o[h : h + 1, :, m:to], False)
    for c in range(len(f)):
        for m in range(0, s.shape[2], lanes):
            total = load(o[0], c, m)
            for h in range(1, len(J)):
                total = total + load(o[h], c, m)
            store(f, c, m, total)


@kernel
def _respond_at_site(s, i, beta, hears, lanes, k, az, o, gq, dJ):
    heard = hears[i : i + 1]
    for h in range(len(dJ)):
        for m in range(0, s.shape[2], lanes):
            to = m + lanes
            g, keys = gq[:1, :, m:to], k[h, :, :, m:to]
            a, z = az[h, :1, :, m:to], az[h, 1:, :, m:to]
            _respond(g, keys, o[h : h + 1, :, m:to], heard, beta, a, z)
            # dL/dk_j = a_j g + z_j q, in place of k_j
            product(az[h, :, :, m:to].transpose(1, 0, 2), gq[:, :, m:to], keys, False)
        for j in range(len(s)):
            if heard[0, j]:
                gemm(k[h, j], s[j].T, dJ[h, i, j], True)


@_parallel
def _full_field(s, J, bias, beta, hears, k, az, o, gq, loss, f):
    for t in prange(len(k)):
        for i in range(t, len(s), len(k)):
            for m in range(0, s.shape[2], k.shape[4]):
                to = m + k.shape[4]
                block, f_i = s[:, :, m:to], f[i, :, m:to]
                _attend_at_site(block, i, J, beta, hears, loss.shape[1], k[t], az[t], o[t], f_i)
                _add(bias[i], f_i, loss.shape[1])


@_parallel
def _full_rule(s, x, weight, J, bias, beta, hears, k, az, o, gq, loss, dJ, db):
    lanes = loss.shape[1]
    for t in prange(len(k)):
        for i in range(t, len(s), len(k)):
            for m in range(0, s.shape[2], k.shape[4]):
                to = m + k.shape[4]
                block, r = s[:, :, m:to], gq[t, 0]
                _copy(block[i], gq[t, 1], lanes)
                _attend_at_site(block, i, J, beta, hears, lanes, k[t], az[t], o[t], r)
                _residual(r, bias[i], x[i, :, m:to], weight[i, :, m:to], loss[i : i + 1])
                _respond_at_site(block, i, beta, hears, lanes, k[t], az[t], o[t], gq[t], dJ)
                _sum(r, az[t, 0, 0, :1, :lanes], db[i])


# Low rank: for one vector of examples, s (N, d, lanes), r (N, d - n_known, lanes), q, k, g, o, dq,
# dk (N, heads r, lanes); a, z (ROWS, N, lanes).


@kernel
def _span(heard):
    """The sites j from first to last, among which are all that are heard by any of these i."""
    first, last = heard.shape[1], 0
    for i in range(len(heard)):
        for j in range(heard.shape[1]):
            if heard[i, j]:
                first, last = min(first, j), max(last, j + 1)
    return min(first, last), last


@kernel
def _attend_in_block(s, U, V, beta, hears, rank, q, k, a, o):
    for i in range(len(s)):
        gemm(U[i], s[i], q[i], False)
        gemm(V[i], s[i], k[i], False)
    for i in range(0, len(s), len(a)):
        rows = slice(i, min(i + len(a), len(s)))
        first, last = _span(hears[rows])
        heard, a_i = hears[rows, first:last], a[: rows.stop - i, : last - first]
        for h in range(0, U.shape[1], rank):
            head = slice(h, h + rank)
            keys = k[first:last, head]
            _attend(q[rows, head], keys, heard, beta, a_i)
            product(a_i, keys, o[rows, head], False)


@kernel
def _respond_in_block(r, U, beta, hears, rank, q, k, g, a, z, o, dq, dk):
    for i in range(len(r)):
        gemm(U[i, :, : r.shape[1]], r[i], g[i], False)
        for c in range(dk.shape[1]):
            store(dk, i, c, everywhere(dk, 0))
    for i in range(0, len(r), len(a)):
        rows = slice(i, min(i + len(a), len(r)))
        first, last = _span(hears[rows])
        heard, n = hears[rows, first:last], last - first
        a_i, z_i = a[: rows.stop - i, :n], z[: rows.stop - i, :n]
        for h in range(0, U.shape[1], rank):
            head = slice(h, h + rank)
            q_i, g_i, keys, dkeys = (
                q[rows, head],
                g[rows, head],
                k[first:last, head],
                dk[first:last, head],
            )
            _attend(q_i, keys, heard, beta, a_i)
            _respond(g_i, keys, o[rows, head], heard, beta, a_i, z_i)
            product(z_i, keys, dq[rows, head], False)
            product(a_i.transpose(1, 0, 2), g_i, dkeys, True)
            product(z_i.transpose(1, 0, 2), q_i, dkeys, True)


@_parallel
def _low_pooled(s, W, U, V, bias, beta, hears, rank, q, k, g, a, z, o, dq, dk, loss, f):
    lanes = loss.shape[1]
    for t in prange(len(q)):
        for m in range(t * lanes, s.shape[2], len(q) * lanes):
            _attend_in_block(
                s[:, :, m : m + lanes], U, V, beta, hears, rank, q[t], k[t], a[t], g[t]
            )
            for i in range(len(s)):
                if W.shape[1]:
                    gemm(W[i], g[t, i], f[i, :, m : m + lanes], False)
                else:
                    _copy(g[t, i], f[i, :, m : m + lanes], lanes)


@_parallel
def _low_rule(
    s, x, weight, U, V, bias, beta, hears, rank, q, k, g, a, z, o, dq, dk, loss, r, dU, dV, db
):
    lanes = loss.shape[1]
    for t in prange(len(q)):
        for m in range(t * lanes, s.shape[2], len(q) * lanes):
            now = slice(m, m + lanes)
            s_m, r_m, o_m = s[:, :, now], r[:, :, now], o[:, :, now]
            _attend_in_block(s_m, U, V, beta, hears, rank, q[t], k[t], a[t], o_m)
            for i in range(len(s)):
                gemm(U[i, :, : r.shape[1]].T, o_m[i], r_m[i], False)
                loss_m = loss[m // lanes : m // lanes + 1]
                _residual(r_m[i], bias[i], x[i, :, now], weight[i, :, now], loss_m)
            _respond_in_block(
                r_m,
                U,
                beta,
                hears,
                rank,
                q[t],
                k[t],
                g[t],
                a[t],
                z[t],
                o_m,
                dq[:, :, now],
                dk[:, :, now],
            )
    for t in prange(len(q)):
        for i in range(t, len(s), len(q)):
            gemm(o[i], r[i].T, dU[i, :, : r.shape[1]], True)
            gemm(dq[i], s[i].T, dU[i], True)
            gemm(dk[i], s[i].T, dV[i], True)
            _sum(r[i], a[t, 0, :1], db[i])


# Between tensors and these.


@_parallel
def _by_site(x, out):
    """(batch, N, d) as (N, d, examples); what fills up the last block is zero."""
    for i in prange(len(out)):
        for m in range(len(x)):
            for c in range(x.shape[2]):
                out[i, c, m] = x[m, i, c]
        for c in range(x.shape[2]):
            for m in range(len(x), out.shape[2]):
                out[i, c, m] = 0


class _Workspace:
    """Arrays for networks and batches of one size."""

    def __init__(self, heads, n_sites, dim, n_free, rank, dtype, batch, threads):
        lanes = n_lanes(dtype)
        make = _full_arrays if rank is None else _low_arrays
        self.examples, self.threads, self.size, shapes = make(
            batch, heads, n_sites, dim, rank, lanes, threads
        )
        # no power of two, else what lies side by side falls on the same lines of the cache
        self.wide = self.examples + lanes * (self.examples // lanes % 2 == 0)
        self.n_sites, self.dtype = n_sites, dtype
        self.s, self.x, self.f, self.weight = map(self.by_site, (dim, n_free, n_free, 1))
        self.fields = {}
        aside = (np.empty(shape, dtype) for shape in shapes)
        self.aside = tuple(
            x[..., : self.examples] if x.shape[-1] == self.wide else x for x in aside
        )
        self.loss = self.aside[-1]

    def by_site(self, n: int) -> np.ndarray:
        """A new array (N, n, examples)."""
        return np.empty((self.n_sites, n, self.wide), self.dtype)[..., : self.examples]

    def field(self, n: int) -> np.ndarray:
        """An array (N, n, examples), the same one for the same n."""
        if n not in self.fields:
            self.fields[n] = self.by_site(n)
        return self.fields[n]


_workspace = lru_cache(maxsize=4)(_Workspace)  # fresh memory costs as much as a pass
_lock = threading.Lock()  # one caller at a time


@contextmanager
def _ready_for(network, batch: int):
    """With arrays for that batch; threads share the work, each with a BLAS of one thread.

    Afterwards torch and numba have as many threads as before.
    """
    of_torch, of_numba = torch.get_num_threads(), numba.get_num_threads()
    c, threads = network.couplings, min(of_torch, numba.config.NUMBA_NUM_THREADS)
    try:
        with _lock, _blas().limit(limits=1, user_api="blas"):
            work = _workspace(
                *(c.n_heads, c.n_sites, c.dim, network.n_free, None if c.pairwise else c.rank),
                *(network.bias.detach().numpy().dtype, batch, threads),
            )
            if c.pairwise:
                work.aside[0].fill(0)  # the keys of sites that are not heard
            numba.set_num_threads(work.threads)
            try:
                yield work
            finally:
                numba.set_num_threads(of_numba)
    finally:  # last: where both use the same OpenMP, numba sets torch's, and so does the limit
        torch.set_num_threads(of_torch)


def _whole(n: int, of: int) -> int:
    """n, rounded up to a multiple."""
    return -(-n // of) * of


def _full_arrays(batch, H, N, D, rank, lanes, threads):
    most = min(VECTORS, max(1, CACHE // (H * N * D) // lanes)) * lanes
    at_once = max(1, min(batch, EXAMPLES))
    size = _whole(-(-at_once // -(-at_once // most)), lanes)
    threads = min(threads, N)
    shapes = [(H, N, D, size), (H, 2, N, size), (H, D, size), (2, D, size)]
    return _whole(at_once, size), threads, size, [(threads, *s) for s in shapes] + [(N, lanes)]


def _low_arrays(batch, H, N, D, rank, lanes, threads):
    C = H * rank
    most = min(EXAMPLES, _whole(max(1, CACHE // (N * C)), lanes * threads))
    examples = _whole(-(-batch // max(1, -(-batch // most))), lanes) or lanes
    threads = min(threads, examples // lanes)
    wide = examples + lanes * (examples // lanes % 2 == 0)
    own = [(N, C, lanes)] * 3 + [(min(ROWS, N), N, lanes)] * 2
    shapes = [(threads, *s) for s in own] + [(N, C, wide)] * 3 + [(examples // lanes, lanes)]
    return examples, threads, lanes, shapes


def field(network, x: Tensor) -> Tensor:
    """`AttractorNetwork.field` of a valid state x (batch, N, d)."""
    c = network.couplings
    if c.pairwise:
        return _by_examples(_full_field, network, x, network.n_free, _parameters(network))
    read_out = network.spins(c.U.detach()).permute(1, 3, 0, 2).flatten(2)
    return _read(network, x, read_out) + network.bias


def pooled(network, x: Tensor) -> Tensor:
    """`AttractorNetwork.pooled` of a valid state x (batch, N, d)."""
    c = network.couplings
    if c.pairwise:
        return batched.pooled(network, x)
    return _read(network, x, x.new_empty(c.n_sites, 0, c.n_heads * c.rank)).unflatten(
        2, (c.n_heads, c.rank)
    )


def _read(network, x: Tensor, W: Tensor) -> Tensor:
    """W_i o_i (batch, N, n) for matrices W (N, n, heads r); o_i itself if they have no rows."""
    given = W.contiguous().numpy(), *_parameters(network)
    return _by_examples(_low_pooled, network, x, W.shape[1] or W.shape[2], given)


def _by_examples(run: Callable, network, x: Tensor, n: int, given: tuple) -> Tensor:
    """What a compiled function makes of x: (batch, N, n)."""
    out = torch.empty((*x.shape[:2], n), dtype=x.dtype)
    with _ready_for(network, len(x)) as work, _told_of_compilation(run):
        f = work.field(n)
        for part, to in zip(x.split(work.examples), out.split(work.examples)):
            _by_site(part.detach().contiguous().numpy(), work.s)
            run(work.s, *given, *work.aside, f)
            to.copy_(torch.from_numpy(f).movedim(-1, 0)[: len(to)])
    return out


def prediction_rule(
    network, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, dict, Tensor]:
    """`prediction_rule` of a valid example: loss, gradients of the couplings, of the bias."""
    c, loss = network.couplings, 0.0
    given, db = _parameters(network), torch.zeros_like(network.bias)
    sums = [torch.zeros(w.shape, dtype=db.dtype) for w in given[: 1 if c.pairwise else 2]]
    weight = sites.to(state.dtype)[..., None] / len(state)
    run = _full_rule if c.pairwise else _low_rule
    with _ready_for(network, len(state)) as work, _told_of_compilation(run):
        for parts in zip(*(t.split(work.examples) for t in (state, target, weight)), strict=True):
            for part, out in zip(parts, (work.s, work.x, work.weight), strict=True):
                _by_site(part.detach().contiguous().numpy(), out)
            work.loss.fill(0)
            left = [] if c.pairwise else [work.f]
            results = *left, *(g.numpy() for g in sums), db.numpy()
            run(work.s, work.x, work.weight, *given, *work.aside, *results)
            loss += work.loss.sum()
    if not c.pairwise:
        sums = [w.unflatten(1, (c.n_heads, c.rank)).transpose(0, 1).contiguous() for w in sums]
    return state.new_tensor(loss), c.chain_rule(*sums), db


def _parameters(network) -> tuple:
    """J, or U and V (N, heads r, d); bias, beta and who hears whom; the rank, if it is low."""
    c, bias = network.couplings, network.bias.detach().numpy()
    rest = bias, bias.dtype.type(network.beta), network.hears.numpy()
    if c.pairwise:
        return c.J.detach().contiguous().numpy(), *rest
    U, V = (w.detach().transpose(0, 1).flatten(1, 2).contiguous().numpy() for w in (c.U, c.V))
    return U, V, *rest, c.rank


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
            "machine (about 40 s)"
        ],
        {"file": sys.stderr, "flush": True},
    )
    if sys.stderr.isatty() and not function.signatures:
        notice.start()
    try:
        yield
    finally:
        notice.cancel()
