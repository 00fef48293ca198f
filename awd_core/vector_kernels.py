"""The vectors that methods work on, block by block, compiled: v_k from weights as they are stored.

Blocks small enough for the first cache are widened to float64, scaled, disentangled and dropped
from there: no task vector is ever in memory as a whole.

`stored` is what `awd_core.vectors.StoredVectors.for_kernels` says, n the elements of the chunk.
"""

from typing import Any

import numpy as np

from awd_core.compiled import inlined, kernel
from awd_core.kernels import spread_rows, widen_block
from awd_core.lanes import LANES, splat, store, where_set
from awd_core.random_lanes import kept_bits
from awd_core.stored_lanes import load_lanes, load_stored, store_lanes


@kernel
def vectors_block(
    stored: tuple, start: int, n: int, base: np.ndarray, vectors: np.ndarray, room: np.ndarray
) -> None:
    """theta_0 and v_k of elements `start:start + n`, at most SEGMENT; room for two segments.

    Past the end of a chunk, whole groups of lanes are zero.
    """
    streams, limit, kept = stored[8:]
    _whole_block(stored, start, n, base, vectors, room)
    one = splat(1.0)
    for k in range(len(streams)):
        vector = vectors[k]
        # Products, so that what is not finite stays so where it is dropped.
        if kept.shape[1]:
            for j in range(0, n, LANES):
                bits = kept[k, (start + j) // LANES]
                store_lanes(vector, j, load_lanes(vector, j) * where_set(bits, one))
        else:
            for j in range(0, n, LANES):
                bits = kept_bits(streams[k], np.uint64(stored[6] + start + j), limit)
                store_lanes(vector, j, load_lanes(vector, j) * where_set(bits, one))


@kernel
def _whole_block(
    stored: tuple, start: int, n: int, base: np.ndarray, vectors: np.ndarray, room: np.ndarray
) -> None:
    """The same before anything is dropped."""
    data, offsets, codes, is_vector, scales, redundant, first, columns = stored[:8]
    widen_block(data, offsets, codes, is_vector, start, n, base, vectors)
    for k in range(len(vectors)):
        vector, scale = vectors[k], scales[k]
        if scale != 1.0:
            for j in range(n):
                vector[j] *= scale
    if redundant.shape[1] == 0:
        return
    delta, spread = room[0], room[1]
    delta[:n] = 0.0
    for k in range(len(vectors)):
        vector = vectors[k]
        if redundant.shape[1] == 1:
            spread[:n] = redundant[k, 0]
        else:
            spread_rows(redundant[k], first + start, columns, n, spread)
        for j in range(n):
            delta[j] += spread[j] * vector[j]
    for k in range(len(vectors)):
        vector = vectors[k]
        for j in range(n):
            vector[j] -= delta[j]


@kernel
def type_of_all(stored: tuple) -> int:
    """The type that all are stored in where v_k is a difference in rows of whole groups; else -1.

    Such vectors need not be written down between being read and being used.
    """
    codes, is_vector, scales, redundant, columns = (*stored[2:6], stored[7])
    plain = np.all(codes == codes[0]) and not np.any(is_vector) and np.all(scales == 1.0)
    return codes[0] if plain and redundant.shape[1] == 0 and columns % LANES == 0 else -1


@inlined
def vector_lanes(code: int, stored: tuple, k: int, element: int) -> Any:
    """v_k of eight elements, where all are stored alike."""
    data, offsets = stored[0], stored[1]
    return load_stored(data, offsets[k + 1], code, element) - load_stored(
        data, offsets[0], code, element
    )


@inlined
def mark_not_finite(vector: np.ndarray, n: int, total: Any) -> Any:
    """`total`, and NaN in a lane where a number is not finite: x - x is 0 for a finite one."""
    for j in range(0, n, LANES):
        number = load_lanes(vector, j)
        total = total + (number - number)
    return total


@kernel
def is_zero(lanes: Any) -> bool:
    """Whether every lane is 0."""
    room = np.empty((1, LANES))
    store(room, 0, lanes)
    return bool(np.all(room == 0.0))
