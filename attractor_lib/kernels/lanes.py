"""Numbers that are one for each of several examples: the vectors of the kernels for a CPU.

Examples lie side by side, last: an array (..., lanes) holds a number for each. What an equation
says of one example, a vector instruction does for all lanes: `load`, calculate, `store`. Such a
number has the type `Lanes` in compiled code, + - * / with others and with scalars, `maximum` and
`exp`. `product` is the product of two small matrices of them, `gemm` that of two matrices of
scalars (BLAS).

These are vectors of LLVM, not loops that a compiler may turn into vectors: with 16 steps a loop
took three to five times as long, since a compiler must first make sure that arrays do not overlap.
"""

import math
import operator
from decimal import Decimal
from hashlib import sha256
from pathlib import Path

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  the BLAS that numba_xxgemm calls
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, overload

_SOURCE = sha256(Path(__file__).read_bytes()).digest()
_has = binding.get_host_cpu_features()
# Bytes of a vector, and the side of the square of accumulators that its registers hold.
BYTES, TILE = (64, 4) if _has.get("avx512f") else (32, 3) if _has.get("avx2") else (16, 3)
_CONTRACT = ("contract",)  # a product and a sum may become one operation; nothing else may change


def compiled(function, **options):
    """Compiled by the first call and stored, where there is a place to, for all later sessions."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        done = njit(cache=True, **options)(function)
    except RuntimeError:  # there is nowhere to store it: compiled in each session
        return njit(**options)(function)
    # What is stored is out of date when this file changes, too.
    done._cache._cache_file._source_stamp += _SOURCE
    return done


kernel = compiled


def n_lanes(dtype) -> int:
    """How many examples lie side by side in a vector of this dtype of numpy."""
    return BYTES // np.dtype(dtype).itemsize


class Lanes(types.Type):
    """A number of this dtype for each of BYTES / its size examples."""

    def __init__(self, dtype):
        self.dtype, self.n = dtype, 8 * BYTES // dtype.bitwidth
        super().__init__(f"Lanes({dtype}, {self.n})")


@register_default(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        scalar = manager.lookup(kind.dtype).get_value_type()
        super().__init__(manager, kind, ir.VectorType(scalar, kind.n))


def _everywhere(vector: ir.VectorType, value) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


class _Array:
    """Where the vectors of an array (rows, columns, lanes) lie; its lanes have stride 1."""

    def __init__(self, context, builder, kind, value):
        array = context.make_array(kind)(context, builder, value)
        self.builder, self.align = builder, kind.dtype.bitwidth // 8
        self.vector = context.get_value_type(Lanes(kind.dtype))
        self.data = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self.strides = cgutils.unpack_tuple(builder, array.strides, kind.ndim)
        self.shape = cgutils.unpack_tuple(builder, array.shape, kind.ndim)

    def at(self, row, column):
        b = self.builder
        offset = b.add(b.mul(row, self.strides[0]), b.mul(column, self.strides[1]))
        return b.bitcast(b.gep(self.data, [offset]), self.vector.as_pointer())

    def load(self, row, column):
        return self.builder.load(self.at(row, column), align=self.align)

    def store(self, value, row, column):
        self.builder.store(value, self.at(row, column), align=self.align)


@intrinsic
def everywhere(typing, x, value):
    """The same value for all examples, in the dtype of the array x."""

    def emit(context, builder, signature, given):
        return _spread(builder, context.get_value_type(signature.return_type), given[1])

    return Lanes(x.dtype)(x, x.dtype), emit


def _spread(builder, vector: ir.VectorType, value):
    undefined = ir.Constant(vector, ir.Undefined)
    first = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    alone = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(alone, undefined, first)


@intrinsic
def load(typing, x, row, column):
    """x[row, column] of (rows, columns, lanes); of (rows, examples), those from column on."""

    def emit(context, builder, signature, given):
        return _Array(context, builder, signature.args[0], given[0]).load(*given[1:])

    return Lanes(x.dtype)(x, types.intp, types.intp), emit


@intrinsic
def store(typing, x, row, column, value):
    """The reverse of `load`."""

    def emit(context, builder, signature, given):
        _Array(context, builder, signature.args[0], given[0]).store(given[3], *given[1:3])
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, value), emit


def maximum(x, y):
    """The larger of two; y where x is no number."""


def _between(function, of_vectors) -> None:
    """Give a function of two arguments its meaning where one of them, or both, are `Lanes`."""

    @intrinsic
    def apply(typing, x, y):
        kind = x if isinstance(x, Lanes) else y

        def emit(context, builder, signature, given):
            vector = context.get_value_type(kind)
            both = [
                value if isinstance(of, Lanes) else _spread(builder, vector, value)
                for of, value in zip(signature.args, given, strict=True)
            ]
            return of_vectors(builder, *both)

        return kind(*(a if isinstance(a, Lanes) else kind.dtype for a in (x, y))), emit

    @overload(function, inline="always")
    def _(x, y):
        if isinstance(x, Lanes) or isinstance(y, Lanes):
            return lambda x, y: apply(x, y)


_between(operator.add, lambda b, x, y: b.fadd(x, y, flags=_CONTRACT))
_between(operator.sub, lambda b, x, y: b.fsub(x, y, flags=_CONTRACT))
_between(operator.mul, lambda b, x, y: b.fmul(x, y, flags=_CONTRACT))
_between(operator.truediv, lambda b, x, y: b.fdiv(x, y))
_between(maximum, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


# By bits of a number: those of its mantissa; the degree of the series of e^f, |f| <= ln 2 / 2, with
# an error below the last bit; and of ln 2 so much that a whole number times it is exact.
_FORMATS = {32: (23, 7, 355 / 512), 64: (52, 13, 2977044471 / 2**32)}


@intrinsic
def exp(typing, x):
    """e^x for x <= 0, which is 2^n e^f with a whole n; never below the smallest normal number."""
    if not isinstance(x, Lanes):
        return None

    def emit(context, builder, signature, given):
        vector, bits = context.get_value_type(x), x.dtype.bitwidth
        mantissa, degree, ln2 = _FORMATS[bits]
        whole = ir.VectorType(ir.IntType(bits), x.n)

        def plus(y, a, c):
            return builder.fadd(builder.fmul(y, a, flags=_CONTRACT), c, flags=_CONTRACT)

        least = _everywhere(vector, float(np.log(2) * (2 - 2.0 ** (bits - mantissa - 2))))
        y = builder.select(builder.fcmp_ordered("<", given[0], least), least, given[0])
        # Adding 1.5 * 2^mantissa leaves the whole part of a number in its last bits.
        magic = _everywhere(vector, 1.5 * 2.0**mantissa)
        shifted = plus(y, _everywhere(vector, float(np.log2(np.e))), magic)
        n = builder.fsub(shifted, magic)
        f = plus(
            n,
            _everywhere(vector, float(Decimal(ln2) - Decimal(2).ln())),
            plus(n, _everywhere(vector, -ln2), y),
        )
        value = _everywhere(vector, 1 / math.factorial(degree))
        for k in reversed(range(degree)):
            value = plus(value, f, _everywhere(vector, 1 / math.factorial(k)))
        n = builder.shl(builder.bitcast(shifted, whole), _everywhere(whole, mantissa))
        return builder.bitcast(builder.add(builder.bitcast(value, whole), n), vector)

    return x(x), emit


def _tile(n_rows: int, n_columns: int):
    """An intrinsic for so many rows and columns of a product: sums stay in registers."""

    @intrinsic
    def tile(typing, a, b, c, row, column, more):
        def emit(context, builder, signature, given):
            of = [
                _Array(context, builder, kind, value)
                for kind, value in zip(signature.args[:3], given[:3], strict=True)
            ]
            number = of[0].shape[0].type
            rows = [builder.add(given[3], number(n)) for n in range(n_rows)]
            columns = [builder.add(given[4], number(n)) for n in range(n_columns)]
            cells = [(i, j) for i in rows for j in columns]
            sums = [cgutils.alloca_once(builder, of[2].vector) for _ in cells]
            with builder.if_else(given[5]) as (go_on, start):
                with go_on:
                    for s, cell in zip(sums, cells, strict=True):
                        builder.store(of[2].load(*cell), s)
                with start:
                    for s in sums:
                        builder.store(ir.Constant(of[2].vector, None), s)
            with cgutils.for_range(builder, of[0].shape[1]) as loop:
                left = {i: of[0].load(i, loop.index) for i in rows}
                right = {j: of[1].load(loop.index, j) for j in columns}
                for s, (i, j) in zip(sums, cells, strict=True):
                    term = builder.fmul(left[i], right[j], flags=_CONTRACT)
                    builder.store(builder.fadd(builder.load(s), term, flags=_CONTRACT), s)
            for s, cell in zip(sums, cells, strict=True):
                of[2].store(builder.load(s), *cell)
            return context.get_dummy_value()

        return types.void(a, b, c, types.intp, types.intp, types.boolean), emit

    return tile


_square, _column, _row, _cell = (_tile(n, m) for n in (TILE, 1) for m in (TILE, 1))


@kernel
def product(a, b, c, more):
    """c_pq = sum_s a_ps b_sq, each (rows, columns, lanes); added to c if there is `more`."""
    P, Q = c.shape[0], c.shape[1]
    p_end, q_end = P - P % TILE, Q - Q % TILE
    for p in range(0, p_end, TILE):
        for q in range(0, q_end, TILE):
            _square(a, b, c, p, q, more)
        for q in range(q_end, Q):
            _column(a, b, c, p, q, more)
    for p in range(p_end, P):
        for q in range(0, q_end, TILE):
            _row(a, b, c, p, q, more)
        for q in range(q_end, Q):
            _cell(a, b, c, p, q, more)


@intrinsic
def gemm(typing, a, b, c, more):
    """c = a b, or c + a b if there is `more`: matrices of scalars, each with a stride of 1."""

    def emit(context, builder, signature, given):
        size, byte, number = ir.IntType(64), ir.IntType(8), ir.IntType(32)
        width = a.dtype.bitwidth // 8
        pointer = byte.as_pointer()
        scalar = context.get_value_type(a.dtype)
        one = cgutils.alloca_once_value(builder, ir.Constant(scalar, 1.0))
        factor = builder.select(given[3], ir.Constant(scalar, 1.0), ir.Constant(scalar, 0.0))
        factor = cgutils.alloca_once_value(builder, factor)
        data, turned, leading, shapes = [], [], [], []
        for kind, value in zip(signature.args[:3], given[:3], strict=True):
            array = context.make_array(kind)(context, builder, value)
            s = cgutils.unpack_tuple(builder, array.strides, 2)
            shapes.append(cgutils.unpack_tuple(builder, array.shape, 2))
            by_rows = builder.icmp_signed("==", s[1], size(width))
            step = builder.sdiv(builder.select(by_rows, s[0], s[1]), size(width))
            least = builder.select(by_rows, shapes[-1][1], shapes[-1][0])
            step = builder.select(builder.icmp_signed("<", step, least), least, step)  # one row
            data.append(builder.bitcast(array.data, pointer))
            turned.append(builder.select(by_rows, byte(ord("n")), byte(ord("t"))))
            leading.append(step)
        # BLAS reads columns first: c^T = b^T a^T.
        arguments = [
            byte(ord({4: "s", 8: "d"}[width])), turned[1], turned[0],
            shapes[2][1], shapes[2][0], shapes[0][1],
            builder.bitcast(one, pointer), data[1], leading[1], data[0], leading[0],
            builder.bitcast(factor, pointer), data[2], leading[2],
        ]  # fmt: skip
        kinds = ir.FunctionType(number, [x.type for x in arguments])
        blas = cgutils.get_or_insert_function(builder.module, kinds, "numba_xxgemm")
        builder.call(blas, arguments)
        return context.get_dummy_value()

    return types.void(a, b, c, types.boolean), emit
