"""Compiled arithmetic of methods that work element by element, on weights as they are stored.

Every kernel gives the bits of the same operations on whole tensors, one after the other; only zeros
may differ in their sign.

`stored` is what `awd_core.vectors.StoredVectors.for_kernels` says, n the elements of the chunk.
"""

import numpy as np

from awd_core.compiled import inlined, kernel
from awd_core.kernels import SEGMENT
from awd_core.lanes import (
    LANES,
    more_bits,
    multiply_add,
    ones,
    pick_less,
    root,
    size,
    splat,
    store,
    where_set,
)
from awd_core.random_lanes import kept_bits
from awd_core.stored_lanes import BFLOAT16, FLOAT32, load_lanes, store_lanes
from awd_core.vector_kernels import (
    is_zero,
    mark_not_finite,
    type_of_all,
    vector_lanes,
    vectors_block,
)


@kernel
def sum_of_signs(stored: tuple, n: int, floors: np.ndarray) -> int:
    """Sum over all elements of the sign of the sum of what is kept, `|v_k| >= floors[k]`."""
    n_experts = len(floors)
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    zero = splat(0.0)
    found = 0
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        vectors_block(stored, start, length, base, vectors, room)
        for j in range(0, length, LANES):
            total = zero
            for k in range(n_experts):
                own = load_lanes(vectors, k * SEGMENT + j)
                total = total + pick_less(size(own), splat(floors[k]), zero, own)
            found += np.int64(ones(more_bits(total, zero)))
            found -= np.int64(ones(more_bits(zero, total)))
    return int(found)


@kernel
def elected_sum(
    stored: tuple,
    n: int,
    floors: np.ndarray,
    election: np.ndarray,
    shares: np.ndarray,
    divisors: np.ndarray,
    cancelled: float,
    tie: float,
    scale: float,
    out: np.ndarray,
) -> bool:
    """Trim, elect, and merge what agrees.

    With t_k = v_k where |v_k| >= floors[k], else 0; g = sign(sum_k e_k t_k), `tie` where it is 0;
    A = {k: e_k t_k g > 0}:

        out = scale sum_{k in A} s_k e_k t_k / d,    d = sum_{k in A} d_k, or 1 where |d| is small

    Args:
        stored: The chunk.
        n: Its elements.
        floors: Smallest |v_k| that is kept, (K,) float64.
        election: e_k, (K,).
        shares: s_k, (K,).
        divisors: d_k, (K,); or (0,) to divide by nothing.
        cancelled: Largest |d| that nothing is divided by.
        tie: 1 or -1.
        scale: Multiplies the result.
        out: Result, (n,), with room for whole groups of lanes.

    Returns:
        Whether every number read is finite.
    """
    n_experts = len(floors)
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    zero, one, tie_lanes = splat(0.0), splat(1.0), splat(tie)
    strange = zero
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        vectors_block(stored, start, length, base, vectors, room)
        strange = mark_not_finite(base, length, strange)
        for j in range(0, length, LANES):
            total = zero
            for k in range(n_experts):
                own = load_lanes(vectors, k * SEGMENT + j)
                strange = strange + (own - own)
                own = pick_less(size(own), splat(floors[k]), zero, own * splat(election[k]))
                store_lanes(vectors, k * SEGMENT + j, own)
                total = total + own
            negative = pick_less(total, zero, splat(-1.0), tie_lanes)
            elected = pick_less(zero, total, one, negative)
            merged = divisor = zero
            for k in range(n_experts):
                own = load_lanes(vectors, k * SEGMENT + j)
                agrees = own * elected
                merged = merged + pick_less(zero, agrees, own * splat(shares[k]), zero)
                if len(divisors):
                    divisor = divisor + pick_less(zero, agrees, splat(divisors[k]), zero)
            if len(divisors):
                merged = merged / pick_less(splat(cancelled), size(divisor), divisor, one)
            store_lanes(out, start + j, merged * splat(scale))
    return is_zero(strange)


@kernel
def sum_between(
    stored: tuple,
    n: int,
    floors: np.ndarray,
    ceilings: np.ndarray,
    multipliers: np.ndarray,
    out: np.ndarray,
) -> bool:
    """`sum_k l_k v_k` over the experts with `floors[k] <= |v_k| < ceilings[k]`.

    Args:
        stored: The chunk.
        n: Its elements.
        floors: (K,) float64.
        ceilings: (K,) float64.
        multipliers: l_k, (K,).
        out: Result, (n,), with room for whole groups of lanes.

    Returns:
        Whether every number read is finite.
    """
    n_experts = len(floors)
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    strange, zero = splat(0.0), splat(0.0)
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        vectors_block(stored, start, length, base, vectors, room)
        strange = mark_not_finite(base, length, strange)
        for j in range(0, length, LANES):
            total = zero
            for k in range(n_experts):
                own = load_lanes(vectors, k * SEGMENT + j)
                strange = strange + (own - own)
                large = pick_less(size(own), splat(floors[k]), zero, own)
                kept = pick_less(size(own), splat(ceilings[k]), large, zero)
                total = multiply_add(splat(multipliers[k]), kept, total)
            store_lanes(out, start + j, total)
    return is_zero(strange)


@inlined
def _kept_magnitudes_alike(
    code: int,
    stored: tuple,
    n: int,
    keys: np.ndarray,
    limit: np.uint64,
    before: np.ndarray,
    after: np.ndarray,
    bits: np.ndarray,
) -> bool:
    columns = stored[7]
    lanes = np.empty((2, LANES))
    strange = splat(0.0)
    for row in range(n // columns):
        for start in range(row * columns, (row + 1) * columns, SEGMENT):
            stop = min(start + SEGMENT, (row + 1) * columns)
            for k in range(len(keys)):
                whole = kept = splat(0.0)
                for j in range(start, stop, LANES):
                    own = vector_lanes(code, stored, k, j)
                    stays = kept_bits(keys[k], np.uint64(stored[6] + j), limit)
                    whole = whole + size(own)
                    kept = kept + size(where_set(stays, own))
                    if bits.shape[1]:
                        bits[k, j // LANES] = stays
                store(lanes, 0, whole)
                store(lanes, 1, kept)
                before[k, row] += lanes[0].sum()
                after[k, row] += lanes[1].sum()
                strange = strange + (whole - whole)
    return is_zero(strange)


@kernel
def kept_magnitudes(
    stored: tuple,
    n: int,
    keys: np.ndarray,
    limit: np.uint64,
    before: np.ndarray,
    after: np.ndarray,
    bits: np.ndarray,
) -> bool:
    """`sum |v_k|` and `sum |m_k v_k|` of every row, (K, rows), segment by segment in eight lanes.

    `bits` takes m_k, one for each element, (K, n / 8) uint8; nothing where it is (K, 0).

    Returns:
        Whether every number read is finite.
    """
    n_experts, columns = len(keys), stored[7]
    before[:] = 0.0
    after[:] = 0.0
    code = type_of_all(stored)
    if code == BFLOAT16:
        return _kept_magnitudes_alike(BFLOAT16, stored, n, keys, limit, before, after, bits)
    if code == FLOAT32:
        return _kept_magnitudes_alike(FLOAT32, stored, n, keys, limit, before, after, bits)
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    lanes = np.empty((2, LANES))
    strange = splat(0.0)
    for row in range(n // columns):
        for start in range(row * columns, (row + 1) * columns, SEGMENT):
            length = min(SEGMENT, (row + 1) * columns - start)
            vectors_block(stored, start, length, base, vectors, room)
            strange = mark_not_finite(base, length, strange)
            for k in range(n_experts):
                vectors[k, length : length + -length % LANES] = 0.0
                whole = kept = splat(0.0)
                for j in range(0, length, LANES):
                    own = load_lanes(vectors, k * SEGMENT + j)
                    position = np.uint64(stored[6] + start + j)
                    stays = kept_bits(keys[k], position, limit)
                    whole = whole + size(own)
                    kept = kept + size(where_set(stays, own))
                    if bits.shape[1]:
                        bits[k, (start + j) // LANES] = stays
                store(lanes, 0, whole)
                store(lanes, 1, kept)
                before[k, row] += lanes[0].sum()
                after[k, row] += lanes[1].sum()
                strange = strange + (whole - whole)
    return is_zero(strange)


@kernel
def deviations(stored: tuple, n: int, out: np.ndarray) -> bool:
    """Standard deviation of v_k over the experts, entry by entry: 0 where they are equal.

    With d_k = v_k - v_1, `var = (sum d_k^2 - (sum d_k)^2 / K) / K`: at least `sum d_k^2 / K^2`, so
    nothing cancels.

    Args:
        stored: The chunk.
        n: Its elements.
        out: Result, (n,), with room for whole groups of lanes.

    Returns:
        Whether every number read is finite.
    """
    n_experts = len(stored[1]) - 1
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    strange, zero, count = splat(0.0), splat(0.0), splat(float(n_experts))
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        vectors_block(stored, start, length, base, vectors, room)
        strange = mark_not_finite(base, length, strange)
        for j in range(0, length, LANES):
            first = load_lanes(vectors, j)
            squares, total = zero, zero
            strange = strange + (first - first)
            for k in range(1, n_experts):
                own = load_lanes(vectors, k * SEGMENT + j) - first
                strange = strange + (own - own)
                squares = squares + own * own
                total = total + own
            variance = (squares - total * total / count) / count
            store_lanes(out, start + j, root(pick_less(zero, variance, variance, zero)))
    return is_zero(strange)


@kernel
def chosen_squares(stored: tuple, n: int, chosen: np.ndarray, squares: np.ndarray) -> bool:
    """`sum (c v_k)^2` of every row, (K, rows), segment by segment in eight lanes.

    Args:
        stored: The chunk, of whole rows.
        n: Its elements.
        chosen: c, 0 or 1 for every entry, (n,).
        squares: Result, (K, rows).

    Returns:
        Whether every number read is finite.
    """
    n_experts, columns = len(squares), stored[7]
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    lanes, factors = np.empty((1, LANES)), np.zeros(SEGMENT)
    squares[:] = 0.0
    strange = splat(0.0)
    for row in range(n // columns):
        for start in range(row * columns, (row + 1) * columns, SEGMENT):
            length = min(SEGMENT, (row + 1) * columns - start)
            vectors_block(stored, start, length, base, vectors, room)
            strange = mark_not_finite(base, length, strange)
            factors[:length] = chosen[start : start + length]
            for k in range(n_experts):
                vectors[k, length : length + -length % LANES] = 0.0
                whole = splat(0.0)
                for j in range(0, length, LANES):
                    own = load_lanes(vectors, k * SEGMENT + j)
                    strange = strange + (own - own)
                    own = own * load_lanes(factors, j)
                    whole = whole + own * own
                store(lanes, 0, whole)
                squares[k, row] += lanes[0].sum()
    return is_zero(strange)


@inlined
def _kept_sum_alike(
    code: int, stored: tuple, n: int, multipliers: np.ndarray, out: np.ndarray
) -> bool:
    """The sum of what is not dropped, where all are stored alike."""
    streams, limit, kept = stored[8:]
    one, strange = splat(1.0), splat(0.0)
    for j in range(0, n, LANES):
        total = splat(0.0)
        for k in range(len(streams)):
            own = vector_lanes(code, stored, k, j)
            if kept.shape[1]:
                # Drawn by a sweep that has seen what is not finite.
                own = where_set(kept[k, j // LANES], own)
            else:
                # A product, so that what is not finite stays so where it is dropped.
                bits = kept_bits(streams[k], np.uint64(stored[6] + j), limit)
                own = own * where_set(bits, one)
            total = multiply_add(splat(multipliers[k + 1]), own, total)
        strange = strange + (total - total)
        store_lanes(out, j, total)
    return is_zero(strange)


@kernel
def linear_sum(stored: tuple, n: int, multipliers: np.ndarray, out: np.ndarray) -> bool:
    """`sum_k l_k v_k + l_0 theta_0`, every term added with one rounding.

    Args:
        stored: The chunk.
        n: Its elements.
        multipliers: l_0 of the base and l_k, (K + 1,).
        out: Result, (n,), with room for whole groups of lanes.

    Returns:
        Whether every number read is finite.
    """
    n_experts = len(multipliers) - 1
    if len(stored[8]) and multipliers[0] == 0.0:
        code = type_of_all(stored)
        if code == BFLOAT16:
            return _kept_sum_alike(BFLOAT16, stored, n, multipliers, out)
        if code == FLOAT32:
            return _kept_sum_alike(FLOAT32, stored, n, multipliers, out)
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    strange = splat(0.0)
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        vectors_block(stored, start, length, base, vectors, room)
        strange = mark_not_finite(base, length, strange)
        for j in range(0, length, LANES):
            total = splat(0.0)
            for k in range(n_experts):
                own = load_lanes(vectors, k * SEGMENT + j)
                strange = strange + (own - own)
                total = multiply_add(splat(multipliers[k + 1]), own, total)
            if multipliers[0] != 0.0:
                total = multiply_add(splat(multipliers[0]), load_lanes(base, j), total)
            store_lanes(out, start + j, total)
    return is_zero(strange)
