"""Compiled arithmetic on weights as they are stored: widened in registers, summed in float64.

A chunk is one buffer of bytes that holds the base and every expert. Blocks of it small enough for
the first cache are widened to float64, worked on, and rounded once to the type of the output. All
kernels release the interpreter lock and use one thread: chunks run beside one another.

Sums over elements go row by row in segments of `SEGMENT` columns, eight lanes side by side, so
their order depends on the shape of a tensor alone: not on chunks, not on threads.
"""

from typing import Any

import numpy as np

from awd_core.compiled import inlined, kernel
from awd_core.lanes import LANES, multiply_add, pick_less, size, splat, store
from awd_core.stored_lanes import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    NOTHING,
    added,
    load_lanes,
    load_stored,
    store_lanes,
    store_stored,
)

# Columns that are summed in one go, and elements that are worked on in one go. (K + 1) blocks of
# float64 are 36 kB at K = 8, so they stay in the first cache.
SEGMENT = 512


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
            merged = added(load_lanes(base, j), load_lanes(total, j))
            strange = strange + (merged - merged)
            most = pick_less(most, size(merged), size(merged), most)
            store_stored(out, code, start + j, merged)
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
            merged = added(load_lanes(base, j), load_lanes(change, j))
            strange = strange + (merged - merged)
            most = pick_less(most, size(merged), size(merged), most)
            store_stored(out, code, start + j, merged)
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
