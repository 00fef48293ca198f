"""Sign Grams: how often two task vectors pull the same weight in opposite directions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from awd_core.magnitude import bin_of_rank, magnitude_bits, upper_histogram
from awd_core.stream import Chunk

# Shares of the largest entries at which signs are compared: all, and what TIES keeps by default.
# Without trimming, noise near zero pushes every pair of experts to the chance level of one half.
DENSITIES = (1.0, 0.2)


@dataclass(frozen=True)
class SignCounts:
    """Counts over elements of one tensor, or sums of such counts.

    Attributes:
        agreement: `A = S S^T` with S in {-1, 0, 1}, (densities, K, K) int64.
        overlap: `B = |S| |S|^T`, the elements where both are non-zero, (densities, K, K) int64.
    """

    agreement: np.ndarray
    overlap: np.ndarray


def sign_counts(sweep: Callable[[], Iterable[Chunk]], n_experts: int) -> SignCounts:
    """Sign Grams of one tensor at every density of `DENSITIES`.

    The trim of density d keeps, per expert and tensor, the elements whose |tau| lies in or above
    the histogram bin of the d-th quantile from the top: at least the share d, with a relative
    resolution of 2^-7 in magnitude.

    Cost: two sweeps over the tensor.
    """
    histogram = sum(
        (upper_histogram(chunk.task_vectors) for chunk in sweep()),
        np.zeros((n_experts, 1 << 16), dtype=np.int64),
    )
    floors = torch.tensor([[_floor(row, density) for row in histogram] for density in DENSITIES])
    agreement = np.zeros((len(DENSITIES), n_experts, n_experts), dtype=np.int64)
    overlap = np.zeros_like(agreement)
    for chunk in sweep():
        vectors = chunk.task_vectors.flatten(1)
        signs = vectors.sign().to(torch.float32)
        bits = magnitude_bits(vectors)
        for level, floor in enumerate(floors.to(bits.device)):
            kept = signs * (bits >= floor[:, None])
            # Counts of one chunk are below 2^24, so float32 products are exact.
            agreement[level] += (kept @ kept.T).to(torch.int64).cpu().numpy()
            overlap[level] += (kept.abs() @ kept.abs().T).to(torch.int64).cpu().numpy()
    return SignCounts(agreement, overlap)


def _floor(histogram: np.ndarray, density: float) -> int:
    rank = int(np.ceil(density * histogram.sum()))
    return 0 if density >= 1 or rank == 0 else bin_of_rank(histogram, rank)[0] << 16
