"""Compiled dropping by rank within rows, on weights as they are stored: DELLA's."""

from typing import Any

import numpy as np

from awd_core.compiled import inlined, kernel
from awd_core.kernels import SEGMENT
from awd_core.lanes import LANES
from awd_core.random_masks import BITS, FIRST_FACTOR, GOLDEN, SECOND_FACTOR
from awd_core.vector_kernels import vectors_block

_GOLDEN, _FIRST, _SECOND = np.uint64(GOLDEN), np.uint64(FIRST_FACTOR), np.uint64(SECOND_FACTOR)
_WITHOUT_SIGN = np.uint64((1 << 63) - 1)
# A float64 in digits of 8 bits: 256 counters of each stay in the first cache.
_DIGITS, _LAST_DIGIT = 8, np.uint64(255)


@kernel
def drop_by_rank(
    stored: tuple,
    n: int,
    streams: np.ndarray,
    limits: np.ndarray,
    divisors: np.ndarray,
    factors: np.ndarray,
    kept: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> bool:
    """Keep the entry of rank r in its row where its random number is below `limits[r]` 2^-53.

    Args:
        stored: The chunk, of whole rows.
        n: Its elements.
        streams: `random_masks.stream_key` of every expert, (K,) uint64.
        limits: (columns,) uint64, from the smallest |v| of a row to the largest; equal ones in
            their order.
        divisors: What an entry of rank r that is kept is divided by, (columns,).
        factors: What everything that an expert keeps is multiplied with, (K,).
        kept: Result, (K + 1, n): theta_0, and v_k with 0 where an entry fell.
        before: Result, sum of |v_k| of every row, (K, rows).
        after: Result, the same of what is kept.

    Returns:
        Whether every number read is finite.
    """
    n_experts, columns = len(streams), stored[7]
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    patterns, counts = np.empty((2, columns), np.uint64), np.empty((_DIGITS, 256), np.int64)
    orders = np.empty((2, columns), np.int32)
    checked = 0.0
    for row in range(n // columns):
        left, right = row * columns, (row + 1) * columns
        for start in range(left, right, SEGMENT):
            length = min(SEGMENT, right - start)
            vectors_block(stored, start, length, base, vectors, room)
            kept[0, start : start + length] = base[:length]
            kept[1:, start : start + length] = vectors[:, :length]
            checked += base[:length].sum() * 0.0
        for k in range(n_experts):
            own = kept[k + 1, left:right]
            before[k, row] = _magnitude(own)
            checked += before[k, row] * 0.0
            order = orders[_ascending(own, patterns, orders, counts)]
            begin = streams[k] + np.uint64(stored[6] + left + 1) * _GOLDEN
            for rank in range(columns):
                j = order[rank]
                number = _mixed(begin + np.uint64(j) * _GOLDEN)
                own[j] = own[j] / divisors[rank] if number < limits[rank] else own[j] * 0.0
            after[k, row] = _magnitude(own)
            own *= factors[k]
    return bool(checked == 0.0)


@inlined
def _mixed(state: Any) -> Any:
    """The upper 53 bits of SplitMix64, as `awd_core.random_masks` has them."""
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return (state ^ (state >> np.uint64(31))) >> np.uint64(64 - BITS)


@kernel
def _magnitude(values: np.ndarray) -> float:
    """`sum |v|` in eight lanes side by side."""
    lanes = np.zeros(LANES)
    whole = len(values) // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += abs(values[start + lane])
    total = lanes.sum()
    for j in range(whole, len(values)):
        total += abs(values[j])
    return total


@kernel
def _ascending(
    values: np.ndarray, patterns: np.ndarray, orders: np.ndarray, counts: np.ndarray
) -> int:
    """Which of two `orders` holds the positions from the smallest |v| to the largest, stably.

    The pattern of a float64 without its sign grows with the number: sorted digit by digit, without
    those that are the same in all, such as the last ones of differences of bfloat16 numbers.
    """
    n, bits = len(values), values.view(np.uint64)
    counts[:] = 0
    for j in range(n):
        pattern = bits[j] & _WITHOUT_SIGN
        patterns[0, j], orders[0, j] = pattern, j
        for digit in range(_DIGITS):
            counts[digit, (pattern >> np.uint64(8 * digit)) & _LAST_DIGIT] += 1
    now = 0
    for digit in range(_DIGITS):
        shift, places = np.uint64(8 * digit), counts[digit]
        if places[(patterns[now, 0] >> shift) & _LAST_DIGIT] == n:
            continue
        total = 0
        for value in range(256):
            total, places[value] = total + places[value], total
        for j in range(n):
            pattern = patterns[now, j]
            value = (pattern >> shift) & _LAST_DIGIT
            at = places[value]
            places[value] = at + 1
            patterns[1 - now, at], orders[1 - now, at] = pattern, orders[now, j]
        now = 1 - now
    return now
