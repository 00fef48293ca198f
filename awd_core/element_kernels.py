"""Counts over single elements, compiled: signs, votes, mask overlaps, lost updates.

Elements are taken in blocks that stay in the first cache. A comparison of eight numbers is one byte
with a bit for each; experts are compared 64 elements at a time, by one AND and one count of bits.
Counts are integers, so blocks cannot change them.
"""

import numpy as np

from awd_core.compiled import kernel
from awd_core.kernels import SEGMENT, load_lanes, store_lanes, widen_block
from awd_core.lanes import LANES, add_bits, at_least_bits, more_bits, ones, size, splat

BLOCK = SEGMENT
_BYTES, _WORDS = BLOCK // 8, BLOCK // 64


@kernel
def _tally(codes: np.ndarray, n: int, tables: np.ndarray) -> None:
    """Count codes, in turn in four tables, so that equal neighbours need not wait."""
    whole = n - n % 4
    for j in range(0, whole, 4):
        tables[0, codes[j]] += 1
        tables[1, codes[j + 1]] += 1
        tables[2, codes[j + 2]] += 1
        tables[3, codes[j + 3]] += 1
    for j in range(whole, n):
        tables[0, codes[j]] += 1


@kernel
def _compare_signs(
    vectors: np.ndarray,
    floors: np.ndarray,
    n_elements: int,
    agreement: np.ndarray,
    overlap: np.ndarray,
    votes: np.ndarray,
) -> None:
    n_experts = len(vectors)
    codes, width = np.empty(BLOCK, np.uint32), np.uint32(n_experts + 1)
    positive, kept = np.empty((2, n_experts, _WORDS), np.uint64)
    positive_bytes, kept_bytes = positive.view(np.uint8), kept.view(np.uint8)
    up, down = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    for k in range(n_experts):
        for byte in range(_BYTES):
            number = load_lanes(vectors, k * BLOCK + 8 * byte)
            positive_bytes[k, byte] = more_bits(number, splat(0.0))
    for level in range(len(floors)):
        up[:] = 0
        down[:] = 0
        for k in range(n_experts):
            floor = splat(floors[level, k])
            for byte in range(_BYTES):
                number = size(load_lanes(vectors, k * BLOCK + 8 * byte))
                kept_bytes[k, byte] = at_least_bits(number, floor)
            for word in range(_WORDS):
                add_bits(up, 64 * word, kept[k, word] & positive[k, word])
                add_bits(down, 64 * word, kept[k, word] & ~positive[k, word])
        for j in range(BLOCK):
            codes[j] = np.uint32(up[j]) * width + down[j]
        _tally(codes, n_elements, votes[level])
        for i in range(n_experts):
            for j in range(i + 1):
                both, opposed = np.uint64(0), np.uint64(0)
                for word in range(_WORDS):
                    shared = kept[i, word] & kept[j, word]
                    both += ones(shared)
                    opposed += ones(shared & (positive[i, word] ^ positive[j, word]))
                overlap[level, i, j] += np.int64(both)
                agreement[level, i, j] += np.int64(both) - 2 * np.int64(opposed)


@kernel
def _compare_masks(
    vectors: np.ndarray,
    total: np.ndarray,
    shares: np.ndarray,
    n_elements: int,
    claims: np.ndarray,
    shared_claims: np.ndarray,
) -> None:
    n_experts = len(vectors)
    masks = np.empty((len(shares), n_experts, _WORDS), np.uint64)
    mask_bytes = masks.view(np.uint8)
    for k in range(n_experts):
        for byte in range(_BYTES):
            own = load_lanes(vectors, k * BLOCK + 8 * byte)
            others = size(load_lanes(total, 8 * byte) - own)
            own = size(own)
            for level in range(len(shares)):
                mask_bytes[level, k, byte] = more_bits(own, splat(shares[level]) * others)
    counts = np.empty(BLOCK, np.uint8)
    codes = np.empty(BLOCK, np.uint32)
    for level in range(len(shares)):
        counts[:] = 0
        for k in range(n_experts):
            for word in range(_WORDS):
                add_bits(counts, 64 * word, masks[level, k, word])
        for j in range(BLOCK):
            codes[j] = counts[j]
        _tally(codes, n_elements, claims[level])
        for i in range(n_experts):
            for j in range(i + 1):
                both = np.uint64(0)
                for word in range(_WORDS):
                    both += ones(masks[level, i, word] & masks[level, j, word])
                shared_claims[level, i, j] += np.int64(both)


@kernel
def _same_bfloat16(base: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> None:
    """The smallest and the largest float64 that become the bfloat16 that theta_0 becomes.

    By way of float32, ties to even. Between two bfloat16 numbers lies a float32 halfway, which
    belongs to the even one; what becomes that float32 lies within half a step of float32.
    """
    n = len(base)
    singles, edges = np.empty(n, np.float32), np.empty((4, n), np.float32)
    patterns, edge = singles.view(np.int32), edges.view(np.int32)
    bounds = np.empty((2, n))
    bound = bounds.view(np.int64)
    for j in range(n):
        singles[j] = np.float32(abs(base[j]))
    for j in range(n):
        rounded = (patterns[j] + 0x7FFF + ((patterns[j] >> 16) & 1)) & -65536
        odd = (rounded >> 16) & 1
        edge[0, j], edge[1, j] = rounded - 0x8001 + odd, rounded - 0x8000 + odd
        edge[2, j], edge[3, j] = rounded + 0x8000 - odd, rounded + 0x8001 - odd
        patterns[j] = rounded
    for j in range(n):
        bounds[0, j] = (np.float64(edges[0, j]) + np.float64(edges[1, j])) / 2
        bounds[1, j] = (np.float64(edges[2, j]) + np.float64(edges[3, j])) / 2
    for j in range(n):
        # An odd number does not own its halfway points.
        odd = (patterns[j] >> 16) & 1
        bound[0, j] += odd
        bound[1, j] -= odd
    for j in range(n):
        high = np.inf if patterns[j] == 0x7F800000 else bounds[1, j]
        low = -high if patterns[j] == 0 else bounds[0, j]
        lowest[j], highest[j] = (-high, -low) if base[j] < 0 else (low, high)


@kernel
def _compare_rounded(
    base: np.ndarray,
    vectors: np.ndarray,
    row: int,
    scales: np.ndarray,
    lowest: np.ndarray,
    highest: np.ndarray,
    lost: np.ndarray,
) -> int:
    """Count what is moved, and of that what is lost at each scale."""
    zero = splat(0.0)
    n_moved = 0
    for j in range(0, BLOCK, LANES):
        update, own = load_lanes(vectors, row * BLOCK + j), load_lanes(base, j)
        low, high = load_lanes(lowest, j), load_lanes(highest, j)
        moves = more_bits(size(update), zero)
        n_moved += np.int64(ones(moves))
        for level in range(len(scales)):
            moved = own + splat(scales[level]) * update
            stays = at_least_bits(moved, low) & at_least_bits(high, moved)
            lost[level] += np.int64(ones(np.uint8(stays & moves)))
    return int(n_moved)


@kernel
def count(
    data: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    is_vector: np.ndarray,
    n: int,
    floors: np.ndarray,
    shares: np.ndarray,
    scales: np.ndarray,
    agreement: np.ndarray,
    overlap: np.ndarray,
    votes: np.ndarray,
    claims: np.ndarray,
    shared_claims: np.ndarray,
    moved: np.ndarray,
    lost: np.ndarray,
) -> None:
    """Add the counts of one chunk.

    Args:
        data: Bytes of the chunk.
        offsets: Where the base (index 0) and every expert begin in it, (K + 1,).
        codes: Their types, (K + 1,).
        is_vector: Whether an expert's numbers are tau_k, (K + 1,).
        n: Elements of the chunk.
        floors: Smallest |tau_k| that is kept, (levels, K) float64; see `magnitude.exact_floors`.
        shares: lambda of TALL masks, (masks,).
        scales: What an update is multiplied with before it is rounded, (scales,).
        agreement: (levels, K, K) int64, lower triangle.
        overlap: The same.
        votes: (levels, K + 1, K + 1) int64.
        claims: (masks, K + 1) int64.
        shared_claims: (masks, K, K) int64, lower triangle.
        moved: (K + 1,) int64.
        lost: (scales, K + 1) int64.
    """
    n_experts = len(offsets) - 1
    # What lies beyond the end of the last block stays zero, and is not counted.
    own_base = np.zeros(BLOCK)
    # The task vectors, and last their sum.
    own = np.zeros((n_experts + 1, BLOCK))
    lowest, highest = np.zeros(BLOCK), np.zeros(BLOCK)
    # A number that is kept is not zero.
    floors = np.maximum(floors, 5e-324)
    lost_at = np.zeros(len(scales), np.int64)
    vote_tables = np.zeros((len(floors), 4, (n_experts + 1) ** 2), np.int64)
    claim_tables = np.zeros((len(shares), 4, n_experts + 1), np.int64)
    for start in range(0, n, BLOCK):
        length = min(BLOCK, n - start)
        if length < BLOCK:
            own_base[:] = 0.0
            own[:] = 0.0
        widen_block(data, offsets, codes, is_vector, start, length, own_base, own[:n_experts])
        total = own[n_experts]
        total[:] = 0.0
        for k in range(n_experts):
            for j in range(0, BLOCK, LANES):
                store_lanes(total, j, load_lanes(total, j) + load_lanes(own, k * BLOCK + j))
        _compare_signs(own[:n_experts], floors, length, agreement, overlap, vote_tables)
        _compare_masks(own[:n_experts], total, shares, length, claim_tables, shared_claims)
        _same_bfloat16(own_base, lowest, highest)
        for k in range(n_experts + 1):
            lost_at[:] = 0
            moved[k] += _compare_rounded(own_base, own, k, scales, lowest, highest, lost_at)
            for level in range(len(scales)):
                lost[level, k] += lost_at[level]
    votes += vote_tables.sum(1).reshape(votes.shape)
    claims += claim_tables.sum(1)


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
    n_experts, patterns = len(vectors), singles.view(np.int32)
    for k in range(n_experts):
        for j in range(n):
            singles[k, j] = np.float32(abs(vectors[k, j]))
    # Four tables in turn: to count up one number again and again waits for itself.
    whole = n_experts - n_experts % 4
    for k in range(0, whole, 4):
        for j in range(n):
            histogram[k, patterns[k, j] >> 16] += 1
            histogram[k + 1, patterns[k + 1, j] >> 16] += 1
            histogram[k + 2, patterns[k + 2, j] >> 16] += 1
            histogram[k + 3, patterns[k + 3, j] >> 16] += 1
    for k in range(whole, n_experts):
        for j in range(n):
            histogram[k, patterns[k, j] >> 16] += 1


@kernel
def upper_histogram(vectors: np.ndarray, histogram: np.ndarray) -> None:
    """Add the upper 16 bits of float32 |v| of (K, n) float64 vectors to (K, 65536) int64 counts."""
    n_experts, n = vectors.shape
    singles = np.empty((n_experts, BLOCK), np.float32)
    for start in range(0, n, BLOCK):
        part = vectors[:, start : start + BLOCK]
        count_upper_bits(part, part.shape[1], singles, histogram)
