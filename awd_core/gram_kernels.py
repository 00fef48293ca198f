"""Inner products of task vectors, compiled: row by row, in an order that only the shape decides."""

import numpy as np

from awd_core.compiled import inlined, kernel
from awd_core.kernels import SEGMENT, widen_block
from awd_core.lanes import LANES, multiply_add, splat, store
from awd_core.stored_lanes import load_lanes
from awd_core.vector_kernels import vectors_block


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


@kernel
def grams_with_base(stored: tuple, n: int, grams: np.ndarray) -> None:
    """Inner products of theta_0 (index 0) and the task vectors, row by row.

    Args:
        stored: The chunk, of whole rows.
        n: Its elements.
        grams: Result, (rows, (K + 1)(K + 2)/2): the lower triangle, row by row.
    """
    n_vectors, columns = len(stored[1]), stored[7]
    # Rows of zeros up to whole tiles of vectors; room for whole groups of lanes.
    vectors = np.zeros((n_vectors + 4, SEGMENT + LANES))
    room, lanes = np.empty((2, SEGMENT)), np.empty((8, LANES))
    grams[:] = 0.0
    # Many short rows at once, or one segment of a long one.
    at_once = max(1, SEGMENT // columns)
    for row in range(0, len(grams), at_once):
        rows = min(at_once, len(grams) - row)
        end = (row + rows) * columns
        for first in range(row * columns, end, SEGMENT):
            length = min(SEGMENT, end - first)
            vectors_block(stored, first, length, vectors[0], vectors[1:n_vectors], room)
            step = columns if at_once > 1 else length
            for r in range(rows):
                left, right = r * step, (r + 1) * step
                add_products(vectors, left, right, n_vectors, lanes, grams[row + r])
