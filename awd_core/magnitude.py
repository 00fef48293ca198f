"""Exact order statistics of |tau| without holding tau: histograms of float32 bit patterns.

For non-negative float32 numbers the bit pattern, read as an integer, grows with the number. A
histogram of the upper 16 bits finds the bin of a rank, one of the lower 16 bits inside that bin
finds the number itself: two sweeps, exact, 256 kB of state per expert.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from awd_core import element_kernels

N_BINS = 1 << 16


def magnitude_bits(vectors: torch.Tensor) -> torch.Tensor:
    """Bit patterns of |v| rounded to float32, as int32; their order is the order of |v|."""
    return vectors.to(torch.float32).abs().view(torch.int32)


def upper_histogram(vectors: torch.Tensor) -> np.ndarray:
    """Counts of the upper 16 bits of |v| per expert: (K, 65536) int64, for (K, ...) vectors."""
    if vectors.device.type == "cpu" and vectors.dtype == torch.float64:
        counts = np.zeros((len(vectors), N_BINS), dtype=np.int64)
        element_kernels.upper_histogram(vectors.flatten(1).numpy(), counts)
        return counts
    bits = magnitude_bits(vectors).flatten(1) >> 16
    return np.stack([torch.bincount(row, minlength=N_BINS).cpu().numpy() for row in bits])


def bin_of_rank(histogram: np.ndarray, rank: int) -> tuple[int, int]:
    """Bin that holds the `rank`-th largest value (1 = largest), and the rank inside that bin.

    Values that were left out of the histogram because they are zero come after the smallest one.
    The bin of nothing at all is that of zero.
    """
    from_top = np.cumsum(histogram[::-1])
    rank = min(rank, int(from_top[-1]))
    if not rank:
        return 0, 0
    position = int(np.searchsorted(from_top, rank))
    above = int(from_top[position - 1]) if position else 0
    return N_BINS - 1 - position, rank - above


def kth_largest_magnitudes(
    sweep: Callable[[], Iterable[torch.Tensor]],
    rank: int | Callable[[int], int],
    n_experts: int,
) -> np.ndarray:
    """The `rank`-th largest |v| of every expert over a whole stream, exact in float32.

    Args:
        sweep: Starts the stream anew; yields (K, ...) pieces of the vectors.
        rank: 1 is the largest; at most the number of elements. Or how it follows from that number,
            for a stream whose length is not known beforehand.
        n_experts: K.

    Returns:
        (K,) float32. Equal to `torch.kthvalue` on the whole vector, bit for bit. Infinite where the
        rank is 0: nothing is as large.

    Cost: two sweeps.
    """
    upper = np.zeros((n_experts, N_BINS), dtype=np.int64)
    for vectors in sweep():
        upper += upper_histogram(vectors)
    if callable(rank):
        rank = rank(int(upper[0].sum()))
    if not rank:
        return np.full(n_experts, np.inf, np.float32)
    bins, ranks = zip(*(bin_of_rank(row, rank) for row in upper), strict=True)
    lower = np.zeros((n_experts, N_BINS), dtype=np.int64)
    for vectors in sweep():
        bits = magnitude_bits(vectors).flatten(1)
        for index, row in enumerate(bits):
            inside = row[(row >> 16) == bins[index]] & 0xFFFF
            lower[index] += torch.bincount(inside, minlength=N_BINS).cpu().numpy()
    patterns = [
        (bins[index] << 16) | bin_of_rank(lower[index], ranks[index])[0]
        for index in range(n_experts)
    ]
    return np.array(patterns, dtype=np.int32).view(np.float32)
