"""Counts over single elements, compiled: signs, votes, mask overlaps, lost updates.

Blocks of elements that stay in the first cache are widened and compared. A comparison of eight
numbers is one byte with a bit for each; what is counted is counted in these bits, by
`awd_core.bit_kernels`. Counts are integers, so blocks cannot change them.
"""

import numpy as np

from awd_core.bit_kernels import n_both, n_differing, n_planes, n_set, split_by_number
from awd_core.compiled import kernel
from awd_core.kernels import widen_block
from awd_core.lanes import LANES, at_least_bits, more_bits, size, splat
from awd_core.stored_lanes import load_lanes, store_lanes

# Elements that are compared at once: (K + 4) blocks of float64 are 25 kB at K = 8.
BLOCK = 256
# Most elements whose bits are counted at once: those of all comparisons are 63 kB at K = 8.
STRIP = 4096


@kernel
def _mark_signs(
    vectors: np.ndarray, floors: tuple, byte: int, positive: np.ndarray, kept: np.ndarray
) -> None:
    """Which numbers are above zero, and which are at least as large as each floor."""
    zero = splat(0.0)
    for k in range(len(vectors)):
        vector = vectors[k]
        for j in range(0, BLOCK, LANES):
            number, place = load_lanes(vector, j), byte + j // LANES
            positive[k, place] = more_bits(number, zero)
            number = size(number)
            for level in range(len(floors)):
                kept[level, k, place] = at_least_bits(number, splat(floors[level][k]))


@kernel
def _mark_claims(
    vectors: np.ndarray, total: np.ndarray, shares: tuple, byte: int, claimed: np.ndarray
) -> None:
    """Which numbers an expert claims by its TALL mask."""
    for k in range(len(vectors)):
        vector = vectors[k]
        for j in range(0, BLOCK, LANES):
            own, place = load_lanes(vector, j), byte + j // LANES
            others = size(load_lanes(total, j) - own)
            own = size(own)
            for level in range(len(shares)):
                claimed[level, k, place] = more_bits(own, splat(shares[level]) * others)


@kernel
def _mark_lost(
    base: np.ndarray,
    vector: np.ndarray,
    lowest: np.ndarray,
    highest: np.ndarray,
    scales: tuple,
    byte: int,
    moved: np.ndarray,
    lost: np.ndarray,
) -> None:
    """Which numbers move, and which of them leave the bfloat16 as it was."""
    zero = splat(0.0)
    for j in range(0, BLOCK, LANES):
        update, own = load_lanes(vector, j), load_lanes(base, j)
        low, high = load_lanes(lowest, j), load_lanes(highest, j)
        moves, place = more_bits(size(update), zero), byte + j // LANES
        moved[place] = moves
        for level in range(len(scales)):
            after = own + splat(scales[level]) * update
            stays = at_least_bits(after, low) & at_least_bits(high, after)
            lost[level, place] = stays & moves


@kernel
def _count_signs(
    positive: np.ndarray,
    kept: np.ndarray,
    planes: np.ndarray,
    by_number: np.ndarray,
    agreement: np.ndarray,
    overlap: np.ndarray,
    votes: np.ndarray,
) -> None:
    """Add the counts of one level."""
    n_experts, n_words = kept.shape
    for i in range(n_experts):
        for j in range(i + 1):
            both = n_both(kept[i], kept[j])
            overlap[i, j] += both
            agreement[i, j] += both - 2 * n_differing(kept[i], kept[j], positive[i], positive[j])
    marked, up, down = by_number[0, 1:], by_number[1], by_number[2]
    for k in range(n_experts):
        for word in range(n_words):
            marked[k, word] = kept[k, word] & positive[k, word]
    split_by_number(marked, planes, up)
    for k in range(n_experts):
        for word in range(n_words):
            marked[k, word] = kept[k, word] & ~positive[k, word]
    split_by_number(marked, planes, down)
    for p in range(n_experts + 1):
        for m in range(n_experts + 1 - p):
            votes[p, m] += n_both(up[p], down[m])


@kernel
def _count_claims(
    claimed: np.ndarray,
    planes: np.ndarray,
    by_number: np.ndarray,
    claims: np.ndarray,
    shared_claims: np.ndarray,
) -> None:
    """Add the counts of one mask."""
    n_experts = len(claimed)
    for i in range(n_experts):
        for j in range(i + 1):
            shared_claims[i, j] += n_both(claimed[i], claimed[j])
    split_by_number(claimed, planes, by_number[0])
    for number in range(n_experts + 1):
        claims[number] += n_set(by_number[0, number])


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
def count(
    data: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    is_vector: np.ndarray,
    n: int,
    floors: tuple,
    shares: tuple,
    scales: tuple,
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
        floors: Smallest |tau_k| that is kept, above 0, (K,) float64 for each level; see
            `magnitude.exact_floors`.
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
    n_experts, strip = len(offsets) - 1, max(BLOCK, min(STRIP, -(-n // BLOCK) * BLOCK))
    n_words = strip // 64
    # What lies beyond the end stays zero: it is kept, claimed and moved by nobody.
    base = np.zeros(BLOCK)
    # The task vectors, and last their sum.
    vectors = np.zeros((n_experts + 1, BLOCK))
    lowest, highest = np.zeros(BLOCK), np.zeros(BLOCK)
    positive = np.zeros((n_experts, n_words), np.uint64)
    kept = np.zeros((len(floors), n_experts, n_words), np.uint64)
    claimed = np.zeros((len(shares), n_experts, n_words), np.uint64)
    moves = np.zeros((n_experts + 1, n_words), np.uint64)
    loses = np.zeros((n_experts + 1, len(scales), n_words), np.uint64)
    planes = np.empty((n_planes(n_experts) + 1, n_words), np.uint64)
    by_number = np.empty((3, n_experts + 1, n_words), np.uint64)
    positive_bytes, kept_bytes = positive.view(np.uint8), kept.view(np.uint8)
    claimed_bytes = claimed.view(np.uint8)
    moves_bytes, loses_bytes = moves.view(np.uint8), loses.view(np.uint8)
    for first in range(0, n, strip):
        for start in range(first, first + strip, BLOCK):
            length = max(0, min(BLOCK, n - start))
            if length < BLOCK:
                base[:] = 0.0
                vectors[:] = 0.0
            own, total = vectors[:n_experts], vectors[n_experts]
            widen_block(data, offsets, codes, is_vector, start, length, base, own)
            for j in range(0, BLOCK, LANES):
                together = splat(0.0)
                for k in range(n_experts):
                    together = together + load_lanes(own[k], j)
                store_lanes(total, j, together)
            byte = (start - first) // LANES
            _mark_signs(own, floors, byte, positive_bytes, kept_bytes)
            _mark_claims(own, total, shares, byte, claimed_bytes)
            _same_bfloat16(base, lowest, highest)
            for k in range(n_experts + 1):
                places = moves_bytes[k], loses_bytes[k]
                _mark_lost(base, vectors[k], lowest, highest, scales, byte, *places)
        for level in range(len(floors)):
            arrays = agreement[level], overlap[level], votes[level]
            _count_signs(positive, kept[level], planes, by_number, *arrays)
        for level in range(len(shares)):
            arrays = claims[level], shared_claims[level]
            _count_claims(claimed[level], planes, by_number, *arrays)
        for k in range(n_experts + 1):
            moved[k] += n_set(moves[k])
            for level in range(len(scales)):
                lost[level, k] += n_set(loses[k, level])
    beyond = -n % strip
    for level in range(len(floors)):
        votes[level, 0, 0] -= beyond
    for level in range(len(shares)):
        claims[level, 0] -= beyond
