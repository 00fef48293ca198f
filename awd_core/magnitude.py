"""Exact order statistics of |tau| without holding tau: histograms of float32 bit patterns.

For non-negative float32 numbers the bit pattern, read as an integer, grows with the number. A
histogram of the upper 16 bits finds the bin of a rank, one of the lower 16 bits inside that bin
finds the number itself: two sweeps, exact, 256 kB of state per expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from awd_core import magnitude_kernels
from awd_core.lazy import torch
from awd_core.vectors import Piece, TensorVectors, Vectors

N_BINS = 1 << 16


def magnitude_bits(vectors: torch.Tensor) -> torch.Tensor:
    """Bit patterns of |v| rounded to float32, as int32; their order is the order of |v|."""
    return vectors.to(torch.float32).abs().view(torch.int32)


def upper_histogram(vectors: torch.Tensor) -> np.ndarray:
    """Counts of the upper 16 bits of |v| per expert: (K, 65536) int64, for (K, ...) vectors."""
    if vectors.device.type == "cpu" and vectors.dtype == torch.float64:
        counts = np.zeros((len(vectors), N_BINS), dtype=np.int64)
        magnitude_kernels.histogram_of_array(vectors.flatten(1).numpy(), counts)
        return counts
    bits = magnitude_bits(vectors).flatten(1) >> 16
    return np.stack([torch.bincount(row, minlength=N_BINS).cpu().numpy() for row in bits])


def bin_of_rank(histogram: np.ndarray, rank: int) -> tuple[int, int]:
    """Bin that holds the `rank`-th largest value (1 = largest), and the rank inside that bin.

    Values that were left out of the histogram because they are zero come after the smallest one.
    The bin of nothing at all is that of zero.
    """
    return bins_of_ranks(histogram, [rank])[0]


def bins_of_ranks(histogram: np.ndarray, ranks: Sequence[int]) -> list[tuple[int, int]]:
    """`bin_of_rank` for several ranks."""
    filled = np.flatnonzero(histogram != 0)[::-1]
    from_top = np.cumsum(histogram[filled])
    found = []
    for rank in ranks:
        rank = min(rank, int(from_top[-1])) if len(filled) else 0
        position = int(np.searchsorted(from_top, rank))
        above = int(from_top[position - 1]) if position else 0
        found.append((int(filled[position]), rank - above) if rank else (0, 0))
    return found


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

    def upper(counts: np.ndarray) -> None:
        for vectors in sweep():
            counts += upper_histogram(vectors)

    def lower(bins: np.ndarray, counts: np.ndarray) -> None:
        for vectors in sweep():
            add_lower_histogram(vectors, bins, counts)

    return _kth_largest(upper, lower, rank, n_experts)


def kth_largest_of(
    model: TensorVectors | Vectors, rank: int, seen: Callable[[Piece], Piece] = lambda piece: piece
) -> np.ndarray:
    """The `rank`-th largest |v_k| of every expert, (K,) float32, of a tensor or a whole model.

    As `kth_largest_magnitudes`, with pieces in all threads and from stored weights where possible.
    `seen` is what becomes of a piece first.

    Raises:
        AwdError: A weight is not finite.
    """

    def lower(bins: np.ndarray, counts: np.ndarray) -> None:
        _count(model, lambda piece, own: _add_lower(bins, seen(piece), own), counts)

    def upper(counts: np.ndarray) -> None:
        _count(model, lambda piece, own: _add_upper(seen(piece), own), counts)

    return _kth_largest(upper, lower, rank, model.n_experts)


def _count(
    model: TensorVectors | Vectors,
    add: Callable[[Piece, np.ndarray], None],
    counts: np.ndarray,
) -> None:
    """Add every piece to `counts`, in any thread: sums of whole numbers know no order."""
    free, made = [counts], [counts]

    def add_to_a_free_one(piece: Piece) -> None:
        try:
            own = free.pop()
        except IndexError:
            made.append(own := np.zeros_like(counts))
        add(piece, own)
        free.append(own)

    for _ in model.each(add_to_a_free_one):
        pass
    for own in made[1:]:
        counts += own


def _add_upper(piece: Piece, counts: np.ndarray) -> None:
    stored = piece.stored
    if stored is None:
        counts += upper_histogram(piece.task_vectors)
    elif not magnitude_kernels.upper_histogram(stored.for_kernels, stored.n, counts):
        stored.require_finite()


def _add_lower(bins: np.ndarray, piece: Piece, counts: np.ndarray) -> None:
    stored = piece.stored
    if stored is None:
        add_lower_histogram(piece.task_vectors, bins, counts)
    else:
        magnitude_kernels.lower_histogram(stored.for_kernels, stored.n, bins, counts)


def _kth_largest(
    upper: Callable[[np.ndarray], None],
    lower: Callable[[np.ndarray, np.ndarray], None],
    rank: int | Callable[[int], int],
    n_experts: int,
) -> np.ndarray:
    counts = np.zeros((n_experts, N_BINS), dtype=np.int64)
    upper(counts)
    if callable(rank):
        rank = rank(int(counts[0].sum()))
    if not rank:
        return np.full(n_experts, np.inf, np.float32)
    found = [bin_of_rank(row, rank) for row in counts]
    bins = np.array([place for place, _ in found], dtype=np.int32)
    counts[:] = 0
    lower(bins, counts)
    patterns = [
        (place << 16) | bin_of_rank(row, inside)[0]
        for row, (place, inside) in zip(counts, found, strict=True)
    ]
    return np.array(patterns, dtype=np.int32).view(np.float32)


def add_lower_histogram(vectors: torch.Tensor, bins: np.ndarray, counts: np.ndarray) -> None:
    """Count the lower 16 bits of the |v| whose upper 16 bits are `bins[k]`."""
    for row, place, own in zip(magnitude_bits(vectors).flatten(1), bins, counts, strict=True):
        inside = row[(row >> 16) == int(place)] & 0xFFFF
        own += torch.bincount(inside, minlength=N_BINS).cpu().numpy()


def exact_floors(floors: np.ndarray) -> np.ndarray:
    """The smallest float64 numbers that round to at least these float32 numbers, (K,) float64.

    Halfway numbers round to the even one of two neighbours. 0 for 0, infinity for infinity.
    """
    below = np.nextafter(floors, np.float32(0)).astype(np.float64)
    halfway = (floors.astype(np.float64) + below) / 2
    rounds_up = halfway.astype(np.float32) >= floors
    exact = np.where(rounds_up, halfway, np.nextafter(halfway, np.inf))
    return np.where((floors == 0) | np.isinf(floors), floors, exact)
