"""Statistics of single elements: signs, votes, TALL masks, updates that bfloat16 would lose.

None of them follows from inner products. All are counts, gathered in the one pass over the weights.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from awd_core import element_kernels, magnitude_kernels
from awd_core.lazy import torch
from awd_core.magnitude import N_BINS, bins_of_ranks, exact_floors, magnitude_bits, upper_histogram
from awd_core.statistic import Statistic
from awd_core.stream import Chunk

# Shares of the largest entries at which signs are compared; 0.2 is what TIES keeps by default.
# Without trimming, noise near zero pushes every pair of experts to the chance level of one half.
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05)
# lambda of TALL masks: the range that their authors search.
MASK_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6)
# Coefficients at which updates are rounded to bfloat16.
UPDATE_SCALES = (1.0, 0.3, 0.1)
# The smallest float64 above zero, for a number that is kept is not zero; and the smallest that is
# infinite as float32.
_LEAST, _MOST = 5e-324, 2.0**128 - 2.0**103


@dataclass(frozen=True)
class ElementCounts:
    """Counts over the elements of one tensor, or of many: then every array has one axis more.

    Attributes:
        agreement: `A = S S^T`, S in {-1, 0, 1} the signs of what is kept at a density;
            (densities, K, K) int64.
        overlap: `B = |S| |S|^T`, elements that both experts move; (densities, K, K) int64.
        votes: Elements that p experts move up and m move down, at [p, m];
            (densities, K + 1, K + 1) int64.
        claims: Elements that c experts claim by their TALL masks, among those that any expert
            moves; (masks, K + 1) int64.
        shared_claims: Elements that both experts claim; (masks, K, K) int64.
        moved: Elements that an expert moves, and last those that the sum of all task vectors
            moves; (K + 1,) int64.
        lost: Of those, the ones where theta_0 and theta_0 + scale tau are the same bfloat16;
            (scales, K + 1) int64.
    """

    agreement: np.ndarray
    overlap: np.ndarray
    votes: np.ndarray
    claims: np.ndarray
    shared_claims: np.ndarray
    moved: np.ndarray
    lost: np.ndarray

    @classmethod
    def shapes(cls, n_experts: int) -> dict[str, tuple[int, ...]]:
        """The shape of every array, for one tensor."""
        k = n_experts
        return {
            "agreement": (len(DENSITIES), k, k),
            "overlap": (len(DENSITIES), k, k),
            "votes": (len(DENSITIES), k + 1, k + 1),
            "claims": (len(MASK_SHARES), k + 1),
            "shared_claims": (len(MASK_SHARES), k, k),
            "moved": (k + 1,),
            "lost": (len(UPDATE_SCALES), k + 1),
        }

    @classmethod
    def zeros(cls, n_experts: int, *leading: int) -> ElementCounts:
        """Nothing counted, with these axes in front."""
        shapes = cls.shapes(n_experts).items()
        return cls(**{name: np.zeros((*leading, *shape), np.int64) for name, shape in shapes})


@dataclass(frozen=True)
class Histogram:
    """Counts of the upper 16 bits of |tau_k| as float32: of zero, and where others begin and end.

    Attributes:
        zeros: (K,) int64.
        first: First bin of `counts`, above 0.
        counts: (K, bins) int64.
    """

    zeros: np.ndarray
    first: int
    counts: np.ndarray

    def __add__(self, other: Histogram) -> Histogram:
        filled = [one for one in (self, other) if one.counts.size]
        first = min((one.first for one in filled), default=1)
        stop = max((one.first + one.counts.shape[1] for one in filled), default=1)
        counts = np.zeros((len(self.zeros), stop - first), np.int64)
        for one in filled:
            begin = one.first - first
            counts[:, begin : begin + one.counts.shape[1]] += one.counts
        return Histogram(self.zeros + other.zeros, first, counts)

    def floors(self, expert: int) -> list[int]:
        """The bit pattern from which on an element is kept, for every density."""
        row = np.append(self.zeros[expert], self.counts[expert])
        n = row.sum()
        ranks = [0 if density >= 1 else int(np.ceil(density * n)) for density in DENSITIES]
        places = [place for place, _ in bins_of_ranks(row, ranks)]
        return [(self.first + place - 1) << 16 if place else 0 for place in places]


class Magnitudes(Statistic):
    """A histogram of |tau_k| for every expert: what trimming needs to know before it can begin.

    A tensor whose |tau_k| are all below 2^-133, where float32 has less than 16 bits left, counts as
    one that nobody changes: its Grams are 0, too.
    """

    def __init__(self, n_experts: int) -> None:
        super().__init__(n_experts)
        self._found: Histogram | None = None

    @classmethod
    def arrays(cls, n_experts: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Those of the counts that follow; the histogram itself is not kept."""
        return Elements.arrays(n_experts)

    def part(self, chunk: Chunk) -> Histogram:
        """The histogram of one chunk."""
        packed = chunk.packed
        if not packed.on_cpu:
            counts = upper_histogram(chunk.task_vectors)
            return Histogram(counts[:, 0], 1, counts[:, 1:])
        counts = _scratch(self.n_experts)
        magnitude_kernels.histogram_of_chunk(*packed.for_kernels, packed.n, counts)
        return Histogram(*magnitude_kernels.take_counts(counts))

    def add(self, part: Histogram) -> None:
        """Counts add up."""
        self._found = part if self._found is None else self._found + part

    def result(self) -> dict[str, np.ndarray]:
        """Nothing that is kept."""
        return {}

    def followed_by(self) -> Elements | None:
        """Counts of what is in or above the bin of each quantile."""
        if self._found is None or not self._found.counts.any():
            return None
        floors = [self._found.floors(k) for k in range(self.n_experts)]
        return Elements(self.n_experts, np.array(floors, dtype=np.int32).T.copy())


class Elements(Statistic):
    """Every count of `ElementCounts`, for one tensor.

    The trim of density d keeps, per expert and tensor, the elements whose |tau| lies in or above
    the histogram bin of the d-th quantile from the top: at least the share d, with a relative
    resolution of 2^-7 in magnitude. An expert claims an element by its TALL mask where
    `|tau_k| > lambda |sum_j tau_j - tau_k|` (Wang et al., arXiv 2405.07813, section 3).

    Args:
        n_experts: K.
        floors: Smallest float32 bit pattern kept, (densities, K) int32.
    """

    def __init__(self, n_experts: int, floors: np.ndarray) -> None:
        super().__init__(n_experts)
        self._floors = floors
        self._counted = ElementCounts.zeros(n_experts)

    @classmethod
    def arrays(cls, n_experts: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """One array for each of `ElementCounts`."""
        return {name: (shape, np.int64) for name, shape in ElementCounts.shapes(n_experts).items()}

    def part(self, chunk: Chunk) -> ElementCounts:
        """Counts of one chunk; of symmetric arrays the lower triangle."""
        counted, packed = ElementCounts.zeros(self.n_experts), chunk.packed
        if packed.on_cpu:
            floors = np.clip(exact_floors(self._floors.view(np.float32)), _LEAST, _MOST)
            constants = (tuple(floors), MASK_SHARES, UPDATE_SCALES)
            arrays = vars(counted).values()
            element_kernels.count(*packed.for_kernels, packed.n, *constants, *arrays)
        else:
            base, vectors = chunk.base.flatten(), chunk.task_vectors.flatten(1)
            count_as_tensors(base, vectors, self._floors, counted)
        return counted

    def add(self, part: ElementCounts) -> None:
        """Counts add up."""
        for name, array in vars(self._counted).items():
            array += getattr(part, name)

    def result(self) -> dict[str, np.ndarray]:
        """Every array by name; elements that nobody moves are no expert's by omission."""
        counted = self._counted
        symmetric = {
            name: np.tril(array) + np.tril(array, -1).swapaxes(-1, -2)
            for name, array in vars(counted).items()
            if name in ("agreement", "overlap", "shared_claims")
        }
        claims = counted.claims.copy()
        claims[:, 0] -= counted.votes[0, 0, 0]
        return vars(counted) | symmetric | {"claims": claims}


_of_thread = threading.local()


def _scratch(n_experts: int) -> np.ndarray:
    """Counts of zero that a thread keeps, (K, 65536)."""
    counts = getattr(_of_thread, "counts", None)
    if counts is None or len(counts) != n_experts:
        _of_thread.counts = counts = np.zeros((n_experts, N_BINS), dtype=np.int64)
    return counts


def count_as_tensors(
    base: torch.Tensor, vectors: torch.Tensor, floors: np.ndarray, counted: ElementCounts
) -> None:
    """What `element_kernels.count` counts, as operations on whole tensors, for the GPU."""
    k = len(vectors)
    bits, signs = magnitude_bits(vectors), vectors.sign()
    total = torch.zeros_like(base)
    for vector in vectors:  # in this order, as the kernel does: sums may cancel
        total += vector
    for level, floor in enumerate(torch.from_numpy(floors).to(vectors.device)):
        kept = signs * (bits >= floor[:, None])
        up, down = (kept > 0).sum(0), (kept < 0).sum(0)
        counted.votes[level] += _histogram(up * (k + 1) + down, (k + 1, k + 1))
        counted.agreement[level] += _products(kept)
        counted.overlap[level] += _products(kept.abs())
    for level, share in enumerate(MASK_SHARES):
        masks = vectors.abs() > share * (total - vectors).abs()
        counted.claims[level] += _histogram(masks.sum(0), (k + 1,))
        counted.shared_claims[level] += _products(masks)
    updates = torch.cat([vectors, total[None]])
    counted.moved[:] += (updates != 0).sum(1).cpu().numpy()
    for level, scale in enumerate(UPDATE_SCALES):
        rounded = (base + scale * updates).to(torch.bfloat16)
        lost = (rounded == base.to(torch.bfloat16)) & (updates != 0)
        counted.lost[level] += lost.sum(1).cpu().numpy()


def _histogram(codes: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    counts = torch.bincount(codes.flatten(), minlength=int(np.prod(shape)))
    return counts.cpu().numpy().reshape(shape)


def _products(rows: torch.Tensor) -> np.ndarray:
    # Counts of one chunk are far below 2^53, so float64 products are exact.
    numbers = rows.to(torch.float64)
    return (numbers @ numbers.T).cpu().numpy().astype(np.int64)
