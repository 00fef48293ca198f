"""Compiled arithmetic on weights as they are stored: widened in registers, summed in float64.

A chunk is one buffer of bytes that holds the base and every expert. Blocks of it small enough for
the first cache are widened to float64, worked on, and rounded once to the type of the output. All
kernels release the interpreter lock and use one thread: chunks run beside one another.

Sums over elements go row by row in segments of `SEGMENT` columns, eight lanes side by side, so
their order depends on the shape of a tensor alone: not on chunks, not on threads.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from awd_core.compiled import inlined, kernel
from awd_core.lanes import LANES, LANES_TYPE, multiply_add, pick_less, size, splat, store

FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2, 3
# A tensor that an expert does not change has no bytes in a chunk.
NOTHING = -1

# Columns that are summed in one go, and elements that are worked on in one go. (K + 1) blocks of
# float64 are 36 kB at K = 8, so they stay in the first cache.
SEGMENT = 512


def _code(function: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`, whose result takes one argument less than `function`."""
    return intrinsic(function)


# Vectors of LLVM: what a register holds while eight numbers are on their way.
_DOUBLES, _SINGLES, _WORDS, _HALVES, _SHORTS = (
    ir.VectorType(kind, LANES)
    for kind in (ir.DoubleType(), ir.FloatType(), ir.IntType(32), ir.HalfType(), ir.IntType(16))
)


def _splat(kind: ir.VectorType, number: int) -> ir.Constant:
    return ir.Constant(kind, [number] * LANES)


def _place(context: Any, builder: Any, signature: Any, arguments: Any, kind: Any) -> Any:
    """Address of element `arguments[1]` of an array of bytes that holds numbers of LANES `kind`."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    first = builder.bitcast(array.data, kind.element.as_pointer())
    return builder.bitcast(builder.gep(first, [arguments[1]]), kind.as_pointer())


def _loader(kind: ir.VectorType, convert: Callable[[Any, Any], Any]) -> Any:
    """Code that reads eight stored numbers, from any position on, as eight lanes."""

    def load(typing: Any, data: Any, position: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = _place(context, builder, signature, arguments, kind)
            return convert(builder, builder.load(address, align=1))

        return LANES_TYPE(data, types.intp), build

    return _code(load)


def _storer(kind: ir.VectorType, convert: Callable[[Any, Any], Any]) -> Any:
    """Code that writes eight lanes as eight numbers, to any position on."""

    def save(typing: Any, data: Any, position: Any, lanes: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = _place(context, builder, signature, arguments, kind)
            builder.store(convert(builder, arguments[2]), address, align=1)
            return context.get_dummy_value()

        return types.void(data, types.intp, lanes), build

    return _code(save)


def _from_bfloat16(builder: Any, shorts: Any) -> Any:
    words = builder.shl(builder.zext(shorts, _WORDS), _splat(_WORDS, 16))
    return builder.fpext(builder.bitcast(words, _SINGLES), _DOUBLES)


def _to_bfloat16(builder: Any, doubles: Any) -> Any:
    words = builder.bitcast(builder.fptrunc(doubles, _SINGLES), _WORDS)
    odd = builder.and_(builder.lshr(words, _splat(_WORDS, 16)), _splat(_WORDS, 1))
    words = builder.add(words, builder.add(odd, _splat(_WORDS, 0x7FFF)))
    return builder.trunc(builder.lshr(words, _splat(_WORDS, 16)), _SHORTS)


def _from_float16(builder: Any, halves: Any) -> Any:
    return builder.fpext(builder.fpext(halves, _SINGLES), _DOUBLES)


def _to_float16(builder: Any, doubles: Any) -> Any:
    return builder.fptrunc(builder.fptrunc(doubles, _SINGLES), _HALVES)


load_lanes = _loader(_DOUBLES, lambda builder, doubles: doubles)
_load_float32 = _loader(_SINGLES, lambda builder, singles: builder.fpext(singles, _DOUBLES))
_load_bfloat16 = _loader(_SHORTS, _from_bfloat16)
_load_float16 = _loader(_HALVES, _from_float16)
store_lanes = _storer(_DOUBLES, lambda builder, doubles: doubles)
_store_float32 = _storer(_SINGLES, lambda builder, doubles: builder.fptrunc(doubles, _SINGLES))
_store_bfloat16 = _storer(_SHORTS, _to_bfloat16)
_store_float16 = _storer(_HALVES, _to_float16)


@_code
def _added(typing: Any, base: Any, update: Any) -> Any:
    """`base + update`, and the base with its bits where nothing is added."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, update = arguments
        zero = builder.fcmp_ordered("==", update, ir.Constant(_DOUBLES, [0.0] * LANES))
        return builder.select(zero, base, builder.fadd(base, update))

    return LANES_TYPE(base, update), build


@inlined
def load_stored(data: np.ndarray, offset: int, code: int, position: int) -> Any:
    """Eight numbers of stored bytes, from `position` on."""
    if code == BFLOAT16:
        return _load_bfloat16(data, offset // 2 + position)
    if code == FLOAT32:
        return _load_float32(data, offset // 4 + position)
    if code == FLOAT16:
        return _load_float16(data, offset // 2 + position)
    return load_lanes(data, offset // 8 + position)


@inlined
def _store(data: np.ndarray, code: int, position: int, lanes: Any) -> None:
    """Round eight numbers once and write them; by way of float32, ties to even, as torch rounds."""
    if code == BFLOAT16:
        _store_bfloat16(data, position, lanes)
    elif code == FLOAT32:
        _store_float32(data, position, lanes)
    elif code == FLOAT16:
        _store_float16(data, position, lanes)
    else:
        store_lanes(data, position, lanes)


@inlined
def _widen(
    code: int, data: np.ndarray, offset: int, start: int, n: int, less: Any, out: np.ndarray
) -> None:
    """Elements `start:start + n` of one tensor, less those of the base where there is one."""
    for j in range(0, n, LANES):
        own = load_stored(data, offset, code, start + j)
        store_lanes(out, j, own if less is None else own - load_lanes(less, j))


@kernel
def _widen_any(
    code: int, data: np.ndarray, offset: int, start: int, n: int, less: Any, out: np.ndarray
) -> None:
    # A loop for each type: with the choice inside of one it takes twice as long.
    if code == BFLOAT16:
        _widen(BFLOAT16, data, offset, start, n, less, out)
    elif code == FLOAT32:
        _widen(FLOAT32, data, offset, start, n, less, out)
    elif code == FLOAT16:
        _widen(FLOAT16, data, offset, start, n, less, out)
    else:
        _widen(FLOAT64, data, offset, start, n, less, out)


@kernel
def widen_block(
    data: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    is_vector: np.ndarray,
    start: int,
    n: int,
    base: np.ndarray,
    task_vectors: np.ndarray,
) -> None:
    """Base and task vectors of elements `start:start + n` of a chunk, in whole groups of lanes."""
    _widen_any(codes[0], data, offsets[0], start, n, None, base)
    for k in range(len(task_vectors)):
        vector, offset, code = task_vectors[k], offsets[k + 1], codes[k + 1]
        if code == NOTHING:
            vector[:n] = 0.0
        elif is_vector[k + 1]:
            _widen_any(code, data, offset, start, n, None, vector)
        else:
            _widen_any(code, data, offset, start, n, base, vector)


@kernel
def task_vectors(
    data: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    is_vector: np.ndarray,
    base: np.ndarray,
    out: np.ndarray,
) -> bool:
    """theta_0, (n,), and tau_k, (K, n), of a whole chunk, float64; n a multiple of LANES.

    Returns:
        Whether every number is finite.
    """
    n = len(base)
    # x - x is 0 for a finite number, and NaN for the others.
    strange = splat(0.0)
    lanes = np.empty((1, LANES))
    for start in range(0, n, SEGMENT):
        size = min(SEGMENT, n - start)
        stop = start + size
        widen_block(
            data, offsets, codes, is_vector, start, size, base[start:stop], out[:, start:stop]
        )
        for j in range(start, stop, LANES):
            number = load_lanes(base, j)
            strange = strange + (number - number)
            for k in range(len(out)):
                number = load_lanes(out[k], j)
                strange = strange + (number - number)
    store(lanes, 0, strange)
    return bool(np.all(lanes == 0.0))


@inlined
def _sum_alike(
    code: int,
    data: np.ndarray,
    offsets: np.ndarray,
    start: int,
    n: int,
    weights: np.ndarray,
    base: np.ndarray,
    total: np.ndarray,
) -> None:
    """theta_0 and `sum_k w_k tau_k` where all are stored alike; tau_k never leaves registers."""
    for j in range(0, n, LANES):
        origin, update = load_stored(data, offsets[0], code, start + j), splat(0.0)
        for k in range(len(weights)):
            own = load_stored(data, offsets[k + 1], code, start + j) - origin
            update = multiply_add(splat(weights[k, 0]), own, update)
        store_lanes(base, j, origin)
        store_lanes(total, j, update)


@kernel
def _sum_any(
    data: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    is_vector: np.ndarray,
    start: int,
    n: int,
    weights: np.ndarray,
    first: int,
    columns: int,
    base: np.ndarray,
    total: np.ndarray,
    room: np.ndarray,
) -> None:
    """The same for any mixture of types and for weights of rows; room for K + 1 segments."""
    vectors, spread = room[:-1], room[-1]
    widen_block(data, offsets, codes, is_vector, start, n, base, vectors)
    total[:] = 0.0
    for k in range(len(weights)):
        spread[:] = weights[k, 0]
        if weights.shape[1] > 1:
            spread_rows(weights[k], first + start, columns, n, spread)
        for j in range(0, n, LANES):
            more = multiply_add(
                load_lanes(spread, j), load_lanes(vectors[k], j), load_lanes(total, j)
            )
            store_lanes(total, j, more)


@kernel
def weighted_sum(
    data: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    is_vector: np.ndarray,
    weights: np.ndarray,
    first: int,
    columns: int,
    n: int,
    largest: float,
    code: int,
    out: np.ndarray,
) -> bool:
    """`theta_0 + sum_k w_k tau_k` of a chunk, summed in float64 in expert order, rounded once.

    Where the sum is exactly zero the base keeps its bits: -0.0 + 0.0 would be 0.0.

    Args:
        data: Bytes of the chunk.
        offsets: Where the base (index 0) and every expert begin in it, (K + 1,).
        codes: Their types, (K + 1,).
        is_vector: Whether an expert's numbers are tau_k; else they are theta_k, (K + 1,).
        weights: w_k, (K, 1), or (K, rows) for every row of the tensor.
        first: Position of the chunk's first element in the flattened tensor.
        columns: Columns of the tensor.
        n: Elements of the chunk.
        largest: Largest number of the type of the result.
        code: Type of the result.
        out: Bytes of the result, with room for whole groups of lanes.

    Returns:
        Whether every number is finite and none is larger than `largest`.
    """
    base, total = np.empty(SEGMENT), np.empty(SEGMENT)
    room = np.empty((len(weights) + 1, SEGMENT))
    alike = weights.shape[1] == 1 and np.all(codes == codes[0]) and not np.any(is_vector)
    # x - x is 0 for a finite number, and NaN for the others.
    strange, most = splat(0.0), splat(0.0)
    lanes = np.empty((1, LANES))
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        if alike and codes[0] == BFLOAT16:
            _sum_alike(BFLOAT16, data, offsets, start, length, weights, base, total)
        elif alike and codes[0] == FLOAT32:
            _sum_alike(FLOAT32, data, offsets, start, length, weights, base, total)
        elif alike and codes[0] == FLOAT16:
            _sum_alike(FLOAT16, data, offsets, start, length, weights, base, total)
        else:
            _sum_any(
                data,
                offsets,
                codes,
                is_vector,
                start,
                length,
                weights,
                first,
                columns,
                base,
                total,
                room,
            )
        for j in range(0, length, LANES):
            merged = _added(load_lanes(base, j), load_lanes(total, j))
            strange = strange + (merged - merged)
            most = pick_less(most, size(merged), size(merged), most)
            _store(out, code, start + j, merged)
    store(lanes, 0, strange)
    finite = np.all(lanes == 0.0)
    store(lanes, 0, most)
    return bool(finite and np.all(lanes <= largest))


@kernel
def add_to_base(
    data: np.ndarray,
    offset: int,
    stored: int,
    update: np.ndarray,
    largest: float,
    code: int,
    out: np.ndarray,
) -> bool:
    """`theta_0 + update` of a chunk, summed in float64, rounded once.

    Where the update is exactly zero the base keeps its bits: -0.0 + 0.0 would be 0.0.

    Args:
        data: Bytes of the chunk.
        offset: Where the base begins in it.
        stored: Type of the base.
        update: (n,) float64.
        largest: Largest number of the type of the result.
        code: Type of the result.
        out: Bytes of the result, with room for whole groups of lanes.

    Returns:
        Whether every number is finite and none is larger than `largest`.
    """
    n = len(update)
    base, change = np.empty(SEGMENT), np.zeros(SEGMENT)
    # x - x is 0 for a finite number, and NaN for the others.
    strange, most = splat(0.0), splat(0.0)
    lanes = np.empty((1, LANES))
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        _widen_any(stored, data, offset, start, length, None, base)
        change[:length] = update[start : start + length]
        change[length:] = 0.0
        for j in range(0, length, LANES):
            merged = _added(load_lanes(base, j), load_lanes(change, j))
            strange = strange + (merged - merged)
            most = pick_less(most, size(merged), size(merged), most)
            _store(out, code, start + j, merged)
    store(lanes, 0, strange)
    finite = np.all(lanes == 0.0)
    store(lanes, 0, most)
    return bool(finite and np.all(lanes <= largest))


@kernel
def spread_rows(weights: np.ndarray, first: int, columns: int, n: int, out: np.ndarray) -> None:
    """The weight of each element's row, for n elements from position `first` of the tensor on."""
    row, column = first // columns, first % columns
    j = 0
    while j < n:
        stop = min(n, j + columns - column)
        out[j:stop] = weights[row]
        j, row, column = stop, row + 1, 0


@inlined
def _total(lanes: np.ndarray, tile: int) -> float:
    return (
        ((lanes[tile, 0] + lanes[tile, 1]) + (lanes[tile, 2] + lanes[tile, 3]))
        + ((lanes[tile, 4] + lanes[tile, 5]) + (lanes[tile, 6] + lanes[tile, 7]))
    )  # fmt: skip


@kernel
def add_products(
    vectors: np.ndarray, start: int, stop: int, n_experts: int, lanes: np.ndarray, gram: np.ndarray
) -> None:
    """Add `<v_i, v_j>` over columns `start:stop`, i >= j, to a packed triangle.

    Two times four experts at a time: eight sums in registers for six loads.
    """
    whole = start + (stop - start) // LANES * LANES
    for i in range(0, n_experts, 2):
        for j in range(0, i + 2, 4):
            a0, a1 = vectors[i], vectors[i + 1]
            b0, b1, b2, b3 = vectors[j], vectors[j + 1], vectors[j + 2], vectors[j + 3]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = splat(0.0)
            for column in range(start, whole, LANES):
                x, y = load_lanes(a0, column), load_lanes(a1, column)
                z = load_lanes(b0, column)
                s00, s10 = multiply_add(x, z, s00), multiply_add(y, z, s10)
                z = load_lanes(b1, column)
                s01, s11 = multiply_add(x, z, s01), multiply_add(y, z, s11)
                z = load_lanes(b2, column)
                s02, s12 = multiply_add(x, z, s02), multiply_add(y, z, s12)
                z = load_lanes(b3, column)
                s03, s13 = multiply_add(x, z, s03), multiply_add(y, z, s13)
            store(lanes, 0, s00)
            store(lanes, 1, s01)
            store(lanes, 2, s02)
            store(lanes, 3, s03)
            store(lanes, 4, s10)
            store(lanes, 5, s11)
            store(lanes, 6, s12)
            store(lanes, 7, s13)
            for tile in range(8):
                p, q = i + tile // 4, j + tile % 4
                if p < n_experts and q <= p:
                    rest = 0.0
                    for column in range(whole, stop):
                        rest += vectors[p, column] * vectors[q, column]
                    gram[p * (p + 1) // 2 + q] += _total(lanes, tile) + rest


@kernel
def row_grams(
    data: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    is_vector: np.ndarray,
    n: int,
    columns: int,
    grams: np.ndarray,
    base_squares: np.ndarray,
) -> None:
    """Inner products of the task vectors, row by row, and squares of the base.

    Args:
        data: Bytes of the chunk.
        offsets: Where the base (index 0) and every expert begin in it, (K + 1,).
        codes: Their types, (K + 1,).
        is_vector: Whether an expert's numbers are tau_k, (K + 1,).
        n: Elements of the chunk.
        columns: Length of a row; the last one may be shorter.
        grams: Result, (rows, K(K+1)/2): the lower triangle, row by row.
        base_squares: Result, (rows,).
    """
    n_experts = len(offsets) - 1
    # Rows of zeros up to whole tiles of experts; room for whole groups of lanes.
    vectors = np.zeros((n_experts + 4, SEGMENT + LANES))
    base = np.zeros((4, SEGMENT + LANES))
    lanes = np.empty((8, LANES))
    grams[:] = 0.0
    base_squares[:] = 0.0
    # Many short rows at once, or one segment of a long one.
    at_once = max(1, SEGMENT // columns)
    for row in range(0, len(grams), at_once):
        rows = min(at_once, len(grams) - row)
        end = min(n, (row + rows) * columns)
        for first in range(row * columns, end, SEGMENT):
            size = min(SEGMENT, end - first)
            widen_block(data, offsets, codes, is_vector, first, size, base[0], vectors[:n_experts])
            length = columns if at_once > 1 else size
            for r in range(rows):
                left, right = r * length, min(size, (r + 1) * length)
                add_products(vectors, left, right, n_experts, lanes, grams[row + r])
                add_products(base, left, right, 1, lanes, base_squares[row + r : row + r + 1])


@kernel
def add_in_order(total: np.ndarray, parts: np.ndarray) -> None:
    """Add (n, m) parts to a total, (m,), one after the other."""
    for part in parts:
        for j in range(len(total)):
            total[j] += part[j]
