r"""The update and the prediction rule on a GPU: no attention in memory.

A program goes through the sites j that a site i hears. Of their scores t_ij = beta q_i . k_ij and
keys it keeps the running maximum, sum and mean of an online softmax (as flash attention does, here
with keys for values)::

    top   <- max(top, t_ij)
    total <- total e^(old - top) + e^(t_ij - top)
    o_i   <- o_i e^(old - top) + e^(t_ij - top) k_ij

It leaves o_i / total and log total + top = log sum_j e^t_ij. The field h_i is read out of o_i, and
the residual r_i = h_i - x_i sent back to the heads: g_i = U_i r_i (r_i itself at full rank). A
second program makes the scores again, which is cheaper than to read them, and has at once ::

    a_ij = e^(t_ij - log sum) ,     z_ij = beta a_ij (g_i . k_ij - g_i . o_i)
    dL/dk_ij = a_ij g_i + z_ij q_i ,     dL/dq_i = sum_j z_ij k_ij

**Full rank.** The keys k_ij = J_ij s_j are made in registers, by both programs. The first takes a
site i, a head and a tile of examples; the second a pair (i, j) and a head, goes through the
examples and sums dL/dk_ij s_j^T in registers: three matrix products in place of the two of the
floor, and no message in memory.

**Low rank.** Queries U_i s_i, keys V_j s_j, the field, g and the gradients o_i r_i^T +
dL/dq_i s_i^T and dL/dk_j s_j^T are matrix products over examples, one for all heads of a site:
torch has them near the limit. What they make and take lies as (N, batch, heads, r), so that none
needs a copy. Between them a program takes a tile of queries of one example and head, or all those
of several where N is small, and goes through the keys tile by tile.

So memory is linear in N, and in the batch up to a block; no sum depends on the order in which
programs run. The kernels are written in triton, which CUDA builds of torch bring along. Their
products have the error of single precision, each by three products in tf32 (Ootomo and Yokota 2022,
arXiv 2203.03341), or that of tf32 where ``torch.set_float32_matmul_precision`` allows it.
"""

import math

import torch
from torch import Tensor

from attractor_lib.states import builds_graph

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without it
    triton = None

COMPUTES = "field", "prediction_rule"
# The largest number of components at full rank, and rank: with the tiles below they fit the
# registers, and the 99 KB of shared memory of every GPU since 2020.
LARGEST_DIM, LARGEST_RANK = 64, 128
EXAMPLES = 64  # examples of a tile at full rank
NUMBERS = 2**26  # numbers of a block of examples in one tensor (q, k, o, ...), at most


def serves(network, x: Tensor) -> bool:
    """Softmax, up to `LARGEST_DIM` components at full rank or `LARGEST_RANK` at low rank, nothing
    known beside the spins, on a CUDA device, in single precision, no graph to build.
    """
    c = network.couplings
    return (
        triton is not None
        and network.phi.fused
        and not network.n_known
        and (network.dim <= LARGEST_DIM if c.pairwise else c.rank <= LARGEST_RANK)
        and x.is_cuda
        and x.dtype == torch.float32
        and not builds_graph(network, x)
    )


if triton is not None:

    @triton.jit
    def _start(T: tl.constexpr, R: tl.constexpr):
        """Before any site is heard: top (finite, so that top - top is 0), total, mean, number."""
        zero = tl.zeros((T,), tl.float32)
        return zero - 3e38, zero, tl.zeros((T, R), tl.float32), tl.zeros((T,), tl.int32)

    @triton.jit
    def _finish(top, total, mean, number):
        """o and log sum_j e^t_j; both zero where no site is heard."""
        o = tl.where((number > 0)[:, None], mean / total[:, None], 0.0)
        return o, tl.where(number > 0, top + tl.log(total), 0.0)

    @triton.jit
    def _answer(t, log_sum, g_dot_k, g_dot_o, beta):
        """a and z."""
        a = tl.exp(t - log_sum)
        return a, beta * a * (g_dot_k - g_dot_o)

    # Full rank: rows are the examples m of a tile.

    @triton.jit
    def _keys(s, J, m, i, j, h, batch, N, d, D: tl.constexpr, precision: tl.constexpr):
        """s_j and k_ij = J_ij s_j (examples, D); zero beyond the batch and beyond d."""
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
    def _attend_full(
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
        m, c = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
        i, h = tl.program_id(1), tl.program_id(2).to(tl.int64)  # J may have 2^31 numbers and more
        inside = (m[:, None] < batch) & (c[None, :] < d)
        q = tl.load(s + (m[:, None] * N + i) * d + c[None, :], mask=inside, other=0.0)
        top, total, mean, number = _start(M, D)
        for j in range(N):
            if tl.load(hears + i * N + j) != 0:
                _, k = _keys(s, J, m, i, j, h, batch, N, d, D, precision)
                t = beta * tl.sum(q * k, 1)
                higher = tl.maximum(top, t)
                old, a = tl.exp(top - higher), tl.exp(t - higher)
                top, total, number = higher, total * old + a, number + 1
                mean = mean * old[:, None] + a[:, None] * k
        o_i, log_sum_i = _finish(top, total, mean, number)
        tl.store(o + ((h * batch + m[:, None]) * N + i) * d + c[None, :], o_i, mask=inside)
        tl.store(log_sum + (h * batch + m) * N + i, log_sum_i, mask=m < batch)

    @triton.jit
    def _respond_full(
        s,
        J,
        hears,
        log_sum,
        r,
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
        i, j, h = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
        c, product = tl.arange(0, D), tl.zeros((D, D), tl.float32)
        if tl.load(hears + i * N + j) != 0:
            for first in range(0, batch, M):
                m = first + tl.arange(0, M)
                inside = (m[:, None] < batch) & (c[None, :] < d)
                q = tl.load(s + (m[:, None] * N + i) * d + c[None, :], mask=inside, other=0.0)
                g = tl.load(r + (m[:, None] * N + i) * d + c[None, :], mask=inside, other=0.0)
                s_j, k = _keys(s, J, m, i, j, h, batch, N, d, D, precision)
                of_site = (h * batch + m) * N + i
                a, z = _answer(
                    beta * tl.sum(q * k, 1),
                    tl.load(log_sum + of_site, mask=m < batch, other=float("inf")),
                    tl.sum(g * k, 1),
                    tl.load(r_dot_o + of_site, mask=m < batch, other=0.0),
                    beta,
                )
                dk = a[:, None] * g + z[:, None] * q
                product += tl.dot(tl.trans(dk), s_j, input_precision=precision)
        tl.store(
            dJ + ((h * N + i) * N + j) * d * d + c[:, None] * d + c[None, :],
            product,
            mask=(c[:, None] < d) & (c[None, :] < d),
        )

    # Low rank: rows are sites i of pairs p of an example and a head. There are P pairs.

    @triton.jit
    def _rows(tile, P, N: tl.constexpr, T: tl.constexpr):
        """p and i of the T rows of a tile of this program, and whether there is such a row."""
        pairs: tl.constexpr = T // N if N < T else 1
        first = tl.program_id(0) * pairs
        row = first * N + tile * T + tl.arange(0, T)
        return row // N, row % N, row < tl.minimum(first + pairs, P) * N

    @triton.jit
    def _numbers(rows, P, r, R: tl.constexpr):
        """Where the numbers (T, R) of rows lie in (N, P, r), and whether there are such."""
        p, i, there = rows
        c = tl.arange(0, R)
        return (i[:, None] * P + p[:, None]) * r + c[None, :], there[:, None] & (c[None, :] < r)

    @triton.jit
    def _load(w, rows, P, r, R: tl.constexpr):
        at, there = _numbers(rows, P, r, R)
        return tl.load(w + at, mask=there, other=0.0)

    @triton.jit
    def _store(w, rows, value, P, r, R: tl.constexpr):
        at, there = _numbers(rows, P, r, R)
        tl.store(w + at, value, mask=there)

    @triton.jit
    def _scores(q, k, rows, of_k, hears, beta, N: tl.constexpr, precision: tl.constexpr):
        """t_ij of rows and of rows of keys, -inf where i does not hear j; and whether it does."""
        p, i, there = rows
        p_j, j, _ = of_k
        same = there[:, None] & (p[:, None] == p_j[None, :])
        heard = tl.load(hears + i[:, None] * N + j[None, :], mask=same, other=0) != 0
        t = beta * tl.dot(q, tl.trans(k), input_precision=precision)
        return tl.where(heard, t, -float("inf")), heard

    @triton.jit
    def _attend_low(
        q,
        k,
        hears,
        o,
        log_sum,
        beta,
        P,
        r,
        N: tl.constexpr,
        T: tl.constexpr,
        R: tl.constexpr,
        precision: tl.constexpr,
    ):
        tiles: tl.constexpr = (N + T - 1) // T
        rows = _rows(0 if tiles == 1 else tl.program_id(1), P, N, T)
        q_i = _load(q, rows, P, r, R)
        top, total, mean, number = _start(T, R)
        for tile in range(tiles):
            others = _rows(tile, P, N, T)
            k_j = _load(k, others, P, r, R)
            t, heard = _scores(q_i, k_j, rows, others, hears, beta, N, precision)
            higher = tl.maximum(top, tl.max(t, 1))
            old, a = tl.exp(top - higher), tl.exp(t - higher[:, None])
            top, total = higher, total * old + tl.sum(a, 1)
            number += tl.sum(heard.to(tl.int32), 1)
            mean = mean * old[:, None] + tl.dot(a, k_j, input_precision=precision)
        o_i, log_sum_i = _finish(top, total, mean, number)
        _store(o, rows, o_i, P, r, R)
        tl.store(log_sum + rows[0] * N + rows[1], log_sum_i, mask=rows[2])

    @triton.jit
    def _acting(q, g, o, log_sum, rows, P, r, N: tl.constexpr, R: tl.constexpr):
        """q_i, g_i, log sum_j e^t_ij and g_i . o_i of rows."""
        p, i, there = rows
        g_i = _load(g, rows, P, r, R)
        log_sum_i = tl.load(log_sum + p * N + i, mask=there, other=0.0)
        g_dot_o = tl.sum(g_i * _load(o, rows, P, r, R), 1)
        return _load(q, rows, P, r, R), g_i, log_sum_i[:, None], g_dot_o[:, None]

    @triton.jit
    def _answers(acting, k, rows, of_k, hears, beta, N: tl.constexpr, precision: tl.constexpr):
        """a and z of rows that act and rows of keys."""
        q, g, log_sum, g_dot_o = acting
        t, _ = _scores(q, k, rows, of_k, hears, beta, N, precision)
        g_dot_k = tl.dot(g, tl.trans(k), input_precision=precision)
        return _answer(t, log_sum, g_dot_k, g_dot_o, beta)

    @triton.jit
    def _respond_low(
        q,
        k,
        hears,
        o,
        log_sum,
        g,
        dq,
        dk,
        beta,
        P,
        r,
        N: tl.constexpr,
        T: tl.constexpr,
        R: tl.constexpr,
        precision: tl.constexpr,
    ):
        """The program's rows are first the sites i that act, then the sites j that are heard. Where
        there is one tile, both have the same a and z, and the compiler makes them once.
        """
        tiles: tl.constexpr = (N + T - 1) // T
        rows = _rows(0 if tiles == 1 else tl.program_id(1), P, N, T)
        acting, dq_i = _acting(q, g, o, log_sum, rows, P, r, N, R), tl.zeros((T, R), tl.float32)
        for tile in range(tiles):
            others = _rows(tile, P, N, T)
            k_j = _load(k, others, P, r, R)
            _, z = _answers(acting, k_j, rows, others, hears, beta, N, precision)
            dq_i += tl.dot(z, k_j, input_precision=precision)
        k_j, dk_j = _load(k, rows, P, r, R), tl.zeros((T, R), tl.float32)
        for tile in range(tiles):
            others = _rows(tile, P, N, T)
            acting = _acting(q, g, o, log_sum, others, P, r, N, R)
            a, z = _answers(acting, k_j, others, rows, hears, beta, N, precision)
            dk_j += tl.dot(tl.trans(a), acting[1], input_precision=precision)
            dk_j += tl.dot(tl.trans(z), acting[0], input_precision=precision)
        _store(dq, rows, dq_i, P, r, R)
        _store(dk, rows, dk_j, P, r, R)


class _Form:
    """One form of couplings, ready for kernels whose tiles have so many rows and columns.

    ``attend(s)`` gives the field h (batch, N, d) and what ``respond(r, ...)`` needs to turn
    residuals into gradients of J, or of U and V, summed over examples. `numbers` are those of an
    example in o.
    """

    def __init__(self, network, rows: int, columns: int):
        self.beta, self.bias = network.beta, network.bias.detach()
        self.hears = network.hears.to(torch.int8)
        self.constants = {
            "precision": "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            "num_warps": max(1, rows * columns // 512),  # 16 numbers of a tile a thread
            "num_stages": 1,  # tiles that are loaded ahead would need more registers than there are
            "enable_fp_fusion": True,
        }

    def blocks(self, *states: Tensor) -> zip:
        """The states in blocks of examples: memory does not grow beyond one."""
        examples = max(1, NUMBERS // self.numbers)
        return zip(*(s.detach().split(examples) for s in states), strict=True)


class _FullRank(_Form):
    def __init__(self, network):
        D = max(16, triton.next_power_of_2(network.dim))
        super().__init__(network, EXAMPLES, D)
        self.constants |= {"D": D, "M": EXAMPLES}
        self.J = network.couplings.J.detach().contiguous()
        self.numbers = len(self.J) * network.bias.numel()

    def attend(self, s: Tensor) -> tuple[Tensor, tuple]:
        s, heads = s.contiguous(), len(self.J)
        o, log_sum = s.new_empty(heads, *s.shape), s.new_empty(heads, *s.shape[:2])
        _attend_full[triton.cdiv(len(s), EXAMPLES), s.shape[1], heads](
            s, self.J, self.hears, o, log_sum, self.beta, *s.shape, **self.constants
        )
        return o.sum(0) + self.bias, (s, o, log_sum)

    def respond(self, r: Tensor, s: Tensor, o: Tensor, log_sum: Tensor) -> dict[str, Tensor]:
        r, dJ = r.contiguous(), torch.empty_like(self.J)
        r_dot_o = torch.linalg.vecdot(r, o).contiguous()
        _respond_full[s.shape[1], s.shape[1], len(dJ)](
            s, self.J, self.hears, log_sum, r, r_dot_o, dJ, self.beta, *s.shape, **self.constants
        )
        return {"J": dJ}


class _LowRank(_Form):
    def __init__(self, network):
        c = network.couplings
        R = max(16, triton.next_power_of_2(c.rank))
        T = max(16, min(triton.next_power_of_2(c.n_sites), 64, 2048 // R))
        super().__init__(network, T, max(T, R))
        self.constants |= {"N": c.n_sites, "T": T, "R": R}
        self.heads, self.rank, self.numbers = c.n_heads, c.rank, c.n_heads * c.n_sites * c.rank
        # (N, heads r, d): one product for all heads of a site
        self.U, self.V = (w.detach().transpose(0, 1).flatten(1, 2) for w in (c.U, c.V))

    def _launch(self, kernel, q: Tensor, k: Tensor, *others: Tensor) -> None:
        P, N, T = q.shape[1] * self.heads, self.constants["N"], self.constants["T"]
        kernel[triton.cdiv(P, max(1, T // N)), triton.cdiv(N, T)](
            q, k, self.hears, *others, self.beta, P, self.rank, **self.constants
        )

    def attend(self, s: Tensor) -> tuple[Tensor, tuple]:
        s = s.transpose(0, 1).contiguous()
        q, k = torch.bmm(s, self.U.mT), torch.bmm(s, self.V.mT)
        o, log_sum = torch.empty_like(q), q.new_empty(q.numel() // self.rank)
        self._launch(_attend_low, q, k, o, log_sum)
        h = torch.baddbmm(self.bias[:, None], o, self.U).transpose(0, 1)
        return h, (s, q, k, o, log_sum)

    def respond(
        self, r: Tensor, s: Tensor, q: Tensor, k: Tensor, o: Tensor, log_sum: Tensor
    ) -> dict[str, Tensor]:
        r = r.transpose(0, 1).contiguous()
        g, dq, dk = torch.bmm(r, self.U.mT), torch.empty_like(q), torch.empty_like(k)
        self._launch(_respond_low, q, k, o, log_sum, g, dq, dk)
        dU, dV = _outer(o, r) + _outer(dq, s), _outer(dk, s)
        return {"U": self._as_factors(dU), "V": self._as_factors(dV)}

    def _as_factors(self, w: Tensor) -> Tensor:
        """(N, heads r, d) as (heads, N, r, d)."""
        return w.unflatten(1, (self.heads, self.rank)).transpose(0, 1).contiguous()


def _outer(v: Tensor, s: Tensor) -> Tensor:
    """Sum over examples of v_i s_i^T (N, heads r, d); v (N, batch, heads r), s (N, batch, d).

    It is of many examples and has few numbers: cut into parts, it keeps all processors busy.
    """
    batch = s.shape[1]
    parts = math.gcd(batch, max(1, min(16, batch // 512)))
    v, s = (w.unflatten(1, (parts, -1)).flatten(0, 1) for w in (v, s))
    return torch.bmm(v.mT, s).unflatten(0, (-1, parts)).sum(1)


def _form(network) -> _Form:
    return _FullRank(network) if network.couplings.pairwise else _LowRank(network)


def field(network, x: Tensor) -> Tensor:
    """`AttractorNetwork.field` of a valid state x (batch, N, d)."""
    if len(x) == 0:
        return torch.empty_like(x)
    with torch.cuda.device_of(x):
        form = _form(network)
        return torch.cat([form.attend(s)[0] for (s,) in form.blocks(x)])


def prediction_rule(
    network, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, dict, Tensor]:
    """`prediction_rule` of a valid example: loss, gradients of the couplings, of the bias."""
    loss, gradients, db = state.new_zeros(()), {}, torch.zeros_like(network.bias)
    with torch.cuda.device_of(state):
        form = _form(network)
        for s, x, chosen in form.blocks(state, target, sites):
            h, kept = form.attend(s)
            r = (h - x) * chosen[..., None]
            loss += r.square().sum() / 2
            r /= len(state)
            db += r.sum(0)
            for name, d in form.respond(r, *kept).items():
                gradients[name] = gradients[name].add_(d) if name in gradients else d
    return loss / len(state), network.couplings.chain_rule(**gradients), db
