"""Histograms of magnitudes, compiled: of the upper and of the lower 16 bits of |v_k| as float32."""

import numpy as np

from awd_core.compiled import kernel
from awd_core.kernels import SEGMENT, widen_block
from awd_core.lanes import LANES, keep_between, size, splat
from awd_core.stored_lanes import load_lanes
from awd_core.vector_kernels import is_zero, mark_not_finite, vectors_block


@kernel
def count_upper_bits(
    vectors: np.ndarray, n: int, singles: np.ndarray, histogram: np.ndarray
) -> None:
    """Add the upper 16 bits of float32 |v_k| of n numbers to (K, 65536) counts.

    Args:
        vectors: (K, at least n) float64.
        n: How many numbers of each.
        singles: Room for float32 numbers, of the same shape.
        histogram: (K, 65536) int64.
    """
    n_experts = len(vectors)
    for k in range(n_experts):
        vector, single = vectors[k], singles[k]
        for j in range(n):
            single[j] = np.float32(abs(vector[j]))
    halves = singles.view(np.uint16)
    # Four tables in turn: to count up one number again and again waits for itself.
    whole = n_experts - n_experts % 4
    for k in range(0, whole, 4):
        a, b, c, d = halves[k], halves[k + 1], halves[k + 2], halves[k + 3]
        of_a, of_b = histogram[k], histogram[k + 1]
        of_c, of_d = histogram[k + 2], histogram[k + 3]
        for upper in range(1, 2 * n, 2):
            of_a[a[upper]] += 1
            of_b[b[upper]] += 1
            of_c[c[upper]] += 1
            of_d[d[upper]] += 1
    for k in range(whole, n_experts):
        half, of_one = halves[k], histogram[k]
        for upper in range(1, 2 * n, 2):
            of_one[half[upper]] += 1


@kernel
def histogram_of_chunk(
    data: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    is_vector: np.ndarray,
    n: int,
    histogram: np.ndarray,
) -> None:
    """Add the upper 16 bits of float32 |tau_k| of a chunk, as `element_kernels.count` takes it."""
    n_experts = len(offsets) - 1
    base, vectors = np.empty(SEGMENT), np.empty((n_experts, SEGMENT))
    singles = np.empty((n_experts, SEGMENT), np.float32)
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        widen_block(data, offsets, codes, is_vector, start, length, base, vectors)
        count_upper_bits(vectors, length, singles, histogram)


@kernel
def take_counts(histogram: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """What is counted in (K, bins) upper bits of magnitudes, which becomes 0.

    Zero is far from every other number, and the bit of a sign is never set: neither the bins
    between nor the upper half are looked at.

    Returns:
        Counts of zero, (K,), the first bin above it that is not empty, and the counts from there to
        the last one, (K, used).
    """
    n_experts, n_bins = histogram.shape
    first, stop = n_bins // 2, 1
    for k in range(n_experts):
        low, high = 1, n_bins // 2
        while low < first and histogram[k, low] == 0:
            low += 1
        while high > stop and histogram[k, high - 1] == 0:
            high -= 1
        first, stop = min(first, low), max(stop, high)
    first = min(first, stop)
    zeros, taken = histogram[:, 0].copy(), histogram[:, first:stop].copy()
    histogram[:, 0] = 0
    histogram[:, first:stop] = 0
    return zeros, first, taken


@kernel
def histogram_of_array(vectors: np.ndarray, histogram: np.ndarray) -> None:
    """Add the upper 16 bits of float32 |v| of (K, n) float64 vectors to (K, 65536) int64 counts."""
    n_experts, n = vectors.shape
    singles = np.empty((n_experts, SEGMENT), np.float32)
    for start in range(0, n, SEGMENT):
        part = vectors[:, start : start + SEGMENT]
        count_upper_bits(part, part.shape[1], singles, histogram)


@kernel
def upper_histogram(stored: tuple, n: int, histogram: np.ndarray) -> bool:
    """Add the upper 16 bits of float32 |v_k| to counts, (K, 65536) int64.

    Returns:
        Whether every number is finite.
    """
    n_experts = len(histogram)
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    singles = np.empty((n_experts, SEGMENT), np.float32)
    strange = splat(0.0)
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        vectors_block(stored, start, length, base, vectors, room)
        strange = mark_not_finite(base, length, strange)
        for k in range(n_experts):
            strange = mark_not_finite(vectors[k], length, strange)
        count_upper_bits(vectors, length, singles, histogram)
    return is_zero(strange)


@kernel
def lower_histogram(stored: tuple, n: int, bins: np.ndarray, histogram: np.ndarray) -> None:
    """Add the lower 16 bits of the float32 |v_k| whose upper 16 bits are `bins[k]`, (K,) int32."""
    n_experts = len(histogram)
    base, room = np.empty(SEGMENT), np.empty((2, SEGMENT))
    vectors = np.empty((n_experts, SEGMENT))
    edges = np.empty((n_experts, 2))
    for k in range(n_experts):
        patterns = np.array([bins[k] << 16, (bins[k] << 16) | 0xFFFF], np.int32)
        # What rounds to a number of the bin lies within half a step of float32 around it.
        low, high = patterns.view(np.float32)
        edges[k, 0] = np.float64(low) * (1 - 1e-7) - 1e-45
        edges[k, 1] = np.float64(high) * (1 + 1e-7) + 1e-45
    # Room for the whole register that the last of them comes in.
    near = np.empty(SEGMENT + LANES)
    singles = np.empty(SEGMENT, np.float32)
    patterns = singles.view(np.int32)
    for start in range(0, n, SEGMENT):
        length = min(SEGMENT, n - start)
        vectors_block(stored, start, length, base, vectors, room)
        for k in range(n_experts):
            vector, counts, own = vectors[k], histogram[k], bins[k]
            vector[length : length + -length % LANES] = np.nan
            below, above = splat(edges[k, 0]), splat(edges[k, 1])
            n_near = 0
            for j in range(0, length, LANES):
                n_near += keep_between(near, n_near, size(load_lanes(vector, j)), below, above)
            for j in range(n_near):
                singles[j] = np.float32(near[j])
            for j in range(n_near):
                if patterns[j] >> 16 == own:
                    counts[patterns[j] & 0xFFFF] += 1
