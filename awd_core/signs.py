"""Sign Grams: how often two task vectors pull the same weight in opposite directions."""

from dataclasses import dataclass

import numpy as np
import torch

from awd_core.magnitude import N_BINS, bin_of_rank, magnitude_bits, upper_histogram
from awd_core.statistic import Statistic
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


class Magnitudes(Statistic):
    """A histogram of |tau_k| for every expert: what trimming needs to know before it can begin."""

    def __init__(self, n_experts: int) -> None:
        super().__init__(n_experts)
        self.histogram = np.zeros((n_experts, N_BINS), dtype=np.int64)

    @classmethod
    def arrays(cls, n_experts: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Those of the sign Grams that follow; the histogram itself is not kept."""
        shape = (len(DENSITIES), n_experts, n_experts)
        return {"sign_agreement": (shape, np.int64), "sign_overlap": (shape, np.int64)}

    def part(self, chunk: Chunk) -> np.ndarray:
        """Counts of one chunk."""
        return upper_histogram(chunk.task_vectors)

    def add(self, part: np.ndarray) -> None:
        """Counts add up."""
        self.histogram += part

    def result(self) -> dict[str, np.ndarray]:
        """Nothing that is kept."""
        return {}

    def followed_by(self) -> "SignGrams | None":
        """Sign Grams of what is in or above the bin of each quantile."""
        if not self.histogram[:, 1:].any():
            return None
        floors = [[_floor(row, density) for row in self.histogram] for density in DENSITIES]
        return SignGrams(self.n_experts, np.array(floors))


class SignGrams(Statistic):
    """Sign Grams of one tensor at every density of `DENSITIES`.

    The trim of density d keeps, per expert and tensor, the elements whose |tau| lies in or above
    the histogram bin of the d-th quantile from the top: at least the share d, with a relative
    resolution of 2^-7 in magnitude.

    Args:
        n_experts: K.
        floors: Smallest float32 bit pattern kept, (densities, K).
    """

    def __init__(self, n_experts: int, floors: np.ndarray) -> None:
        super().__init__(n_experts)
        self._floors = torch.from_numpy(floors)
        shape = (2, len(floors), n_experts, n_experts)
        self._agreement, self._overlap = np.zeros(shape, dtype=np.int64)

    @classmethod
    def arrays(cls, n_experts: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """As `Magnitudes` says."""
        return Magnitudes.arrays(n_experts)

    def part(self, chunk: Chunk) -> np.ndarray:
        """Agreement and overlap of one chunk, (2, densities, K, K)."""
        vectors = chunk.task_vectors.flatten(1)
        signs, bits = vectors.sign().to(torch.float32), magnitude_bits(vectors)
        counts = []
        for floor in self._floors.to(bits.device):
            kept = signs * (bits >= floor[:, None])
            # Counts of one chunk are below 2^24, so float32 products are exact.
            counts.append(torch.stack([kept @ kept.T, kept.abs() @ kept.abs().T]))
        return torch.stack(counts, dim=1).to(torch.int64).cpu().numpy()

    def add(self, part: np.ndarray) -> None:
        """Counts add up."""
        self._agreement += part[0]
        self._overlap += part[1]

    def result(self) -> dict[str, np.ndarray]:
        """`sign_agreement` and `sign_overlap`, each (densities, K, K) int64."""
        return {"sign_agreement": self._agreement, "sign_overlap": self._overlap}


def _floor(histogram: np.ndarray, density: float) -> int:
    rank = int(np.ceil(density * histogram.sum()))
    return 0 if density >= 1 or rank == 0 else bin_of_rank(histogram, rank)[0] << 16
