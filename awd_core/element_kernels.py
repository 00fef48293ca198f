"""Counts over single elements, compiled: signs, votes, mask overlaps, lost updates.

Elements are taken in blocks that stay in the first cache. What is true or not of an element is a
byte while elements are compared, and a bit of a word while experts are compared: 64 elements of a
pair of experts in one AND and one count of bits. Counts are integers, so blocks
cannot change them.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

BLOCK = 1024
_WORDS = BLOCK // 64
# Gathers the lowest bit of eight bytes in the highest byte of their product.
_GATHER = np.uint64(0x0102040810204080)


def _code(function: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`, whose result takes one argument less than `function`."""
    return intrinsic(function)


@_code
def _ones(typing: Any, word: Any) -> Any:
    """Number of bits that are set."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), build


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pack(flags: np.ndarray, words: np.ndarray) -> None:
    """Bytes 0 or 1 -> bits; the order of bits inside a word does not matter to a count."""
    eights = flags.view(np.uint64)
    for word in range(_WORDS):
        packed = np.uint64(0)
        for byte in range(8):
            gathered = (eights[8 * word + byte] * _GATHER) >> np.uint64(56)
            packed |= gathered << np.uint64(8 * byte)
        words[word] = packed


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _compare_signs(
    bits: np.ndarray,
    positive: np.ndarray,
    negative: np.ndarray,
    floors: np.ndarray,
    n_elements: int,
    agreement: np.ndarray,
    overlap: np.ndarray,
    votes: np.ndarray,
) -> None:
    n_experts = len(bits)
    for level in range(len(floors)):
        up, down = np.zeros(BLOCK, np.uint8), np.zeros(BLOCK, np.uint8)
        kept = np.empty(BLOCK, np.uint8)
        ups = np.empty((n_experts, _WORDS), np.uint64)
        downs = np.empty((n_experts, _WORDS), np.uint64)
        for k in range(n_experts):
            floor = floors[level, k]
            for j in range(BLOCK):
                kept[j] = positive[k, j] & np.uint8(bits[k, j] >= floor)
                up[j] += kept[j]
            _pack(kept, ups[k])
            for j in range(BLOCK):
                kept[j] = negative[k, j] & np.uint8(bits[k, j] >= floor)
                down[j] += kept[j]
            _pack(kept, downs[k])
        for j in range(n_elements):
            votes[level, up[j], down[j]] += 1
        for i in range(n_experts):
            for j in range(i + 1):
                both, opposed = np.uint64(0), np.uint64(0)
                for word in range(_WORDS):
                    shared = (ups[i, word] | downs[i, word]) & (ups[j, word] | downs[j, word])
                    both += _ones(shared)
                    opposed += _ones(shared & (ups[i, word] ^ ups[j, word]))
                overlap[level, i, j] += np.int64(both)
                agreement[level, i, j] += np.int64(both) - 2 * np.int64(opposed)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _compare_masks(
    vectors: np.ndarray,
    total: np.ndarray,
    shares: np.ndarray,
    n_elements: int,
    claims: np.ndarray,
    shared_claims: np.ndarray,
) -> None:
    n_experts = len(vectors)
    masks = np.empty((n_experts, _WORDS), np.uint64)
    mask = np.empty(BLOCK, np.uint8)
    for level in range(len(shares)):
        count = np.zeros(BLOCK, np.uint8)
        share = shares[level]
        for k in range(n_experts):
            for j in range(BLOCK):
                own = vectors[k, j]
                mask[j] = np.uint8(abs(own) > share * abs(total[j] - own))
                count[j] += mask[j]
            _pack(mask, masks[k])
        for j in range(n_elements):
            claims[level, count[j]] += 1
        for i in range(n_experts):
            for j in range(i + 1):
                both = np.uint64(0)
                for word in range(_WORDS):
                    both += _ones(masks[i, word] & masks[j, word])
                shared_claims[level, i, j] += np.int64(both)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _compare_rounded(
    base: np.ndarray,
    vector: np.ndarray,
    scales: np.ndarray,
    rounded: np.ndarray,
    rounded_base: np.ndarray,
    lost: np.ndarray,
) -> np.int64:
    n_moved = np.int64(0)
    for j in range(BLOCK):
        n_moved += np.int64(vector[j] != 0)
    for level in range(len(scales)):
        scale = scales[level]
        for j in range(BLOCK):
            rounded[j] = np.float32(base[j] + scale * vector[j])
        _to_bfloat16(rounded)
        n_lost = 0
        for j in range(BLOCK):
            n_lost += np.int64((rounded[j] == rounded_base[j]) & (vector[j] != 0))
        lost[level] += n_lost
    return n_moved


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _to_bfloat16(numbers: np.ndarray) -> None:
    """Round float32 numbers to bfloat16 in place, ties to even."""
    patterns = numbers.view(np.int32)
    for j in range(BLOCK):
        pattern = patterns[j]
        half = np.int32(0x7FFF) + ((pattern >> np.int32(16)) & np.int32(1))
        patterns[j] = (pattern + half) & np.int32(-65536)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def count(
    base: np.ndarray,
    vectors: np.ndarray,
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
        base: theta_0, (n,) float64.
        vectors: tau_k, (K, n) float64.
        floors: Float32 bit pattern from which on |tau_k| is kept, (levels, K) int32.
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
    n_experts, n = vectors.shape
    # What lies beyond the end of the last block stays zero, and is not counted.
    own_base, total = np.zeros(BLOCK), np.zeros(BLOCK)
    own = np.zeros((n_experts, BLOCK))
    bits = np.zeros((n_experts, BLOCK), np.int32)
    positive = np.zeros((n_experts, BLOCK), np.uint8)
    negative = np.zeros((n_experts, BLOCK), np.uint8)
    singles = np.zeros(BLOCK, np.float32)
    patterns = singles.view(np.int32)
    rounded_base = np.zeros(BLOCK, np.float32)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        if size < BLOCK:
            own_base[:] = 0.0
            own[:] = 0.0
        own_base[:size] = base[start : start + size]
        total[:] = 0.0
        for k in range(n_experts):
            own[k, :size] = vectors[k, start : start + size]
            for j in range(BLOCK):
                number = own[k, j]
                total[j] += number
                positive[k, j] = np.uint8(number > 0)
                negative[k, j] = np.uint8(number < 0)
                singles[j] = np.float32(abs(number))
            for j in range(BLOCK):
                bits[k, j] = patterns[j]
        _compare_signs(bits, positive, negative, floors, size, agreement, overlap, votes)
        _compare_masks(own, total, shares, size, claims, shared_claims)
        for j in range(BLOCK):
            rounded_base[j] = np.float32(own_base[j])
        _to_bfloat16(rounded_base)
        for k in range(n_experts + 1):
            vector = own[k] if k < n_experts else total
            moved[k] += _compare_rounded(
                own_base, vector, scales, singles, rounded_base, lost[:, k]
            )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def upper_histogram(vectors: np.ndarray, histogram: np.ndarray) -> None:
    """Add the upper 16 bits of float32 |v| of (K, n) float64 vectors to (K, 65536) int64 counts."""
    n_experts, n = vectors.shape
    for k in range(n_experts):
        singles = np.empty(BLOCK, np.float32)
        patterns = singles.view(np.int32)
        for start in range(0, n, BLOCK):
            size = min(BLOCK, n - start)
            for j in range(size):
                singles[j] = np.float32(abs(vectors[k, start + j]))
            for j in range(size):
                histogram[k, patterns[j] >> 16] += 1
