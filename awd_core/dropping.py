"""Random dropping, and sums over a tensor that do not depend on how it was cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from awd_core import merge_kernels
from awd_core.gram import SEGMENT
from awd_core.lanes import LANES
from awd_core.lazy import torch
from awd_core.random_masks import BITS, stream_key, uniforms
from awd_core.stream import KEPT_BYTES
from awd_core.vectors import Piece, StoredVectors, TensorVectors


def random_numbers(piece: Piece) -> torch.Tensor:
    """A uniform number in [0, 1) for every element of every task vector, (K, rows, columns)."""
    shape, device = tuple(piece.base.shape), piece.base.device
    return torch.stack(
        [
            uniforms(stream_key(piece.seed, expert, piece.name), piece.offset, shape, device)
            for expert in range(len(piece.task_vectors))
        ]
    )


class Dropped(Piece):
    """A piece with every entry dropped with probability `drop`, not rescaled.

    Args:
        piece: The vectors.
        drop: The probability.
        kept: What is not dropped, as `StoredVectors.kept`, where it was drawn before.
    """

    def __init__(self, piece: Piece, drop: float, kept: np.ndarray | None = None) -> None:
        self._piece, self._drop = piece, drop
        self._kept = np.empty((0, 0), np.uint8) if kept is None else kept
        self.name, self.start, self.seed = piece.name, piece.start, piece.seed

    @cached_property
    def base(self) -> torch.Tensor:
        """theta_0."""
        return self._piece.base

    @cached_property
    def task_vectors(self) -> torch.Tensor:
        """`m_k v_k`, m_k the entries that are not dropped."""
        return self._piece.task_vectors * (random_numbers(self._piece) >= self._drop)

    @property
    def stored(self) -> StoredVectors | None:
        """The same for compiled code."""
        stored = self._piece.stored
        if stored is None:
            return None
        n_experts = len(stored.packed.codes) - 1
        streams = keys(self, n_experts)
        return replace(stored, streams=streams, limit=int(limit(self._drop)), kept=self._kept)


@dataclass(frozen=True)
class Rescaling:
    """What makes up for the entries of a tensor that are dropped.

    Attributes:
        factors: What is left of every task vector is multiplied with this, (K,).
        kept: What is not dropped, by the first row of a piece, where it was drawn for the factors.
    """

    factors: np.ndarray
    kept: Mapping[int, np.ndarray] = field(default_factory=dict)


def l1_rescaling(tensor: TensorVectors, drop: float) -> Rescaling:
    """By the `l1_ratio` of what is dropped at random. One sweep.

    Raises:
        AwdError: A weight is not finite.
    """
    drawn: dict[int, np.ndarray] = {}
    n_bits = tensor.n_experts * tensor.n_elements

    def room(stored: StoredVectors) -> np.ndarray:
        # Rows of whole groups: a byte is then a group however the tensor is walked.
        remembers = stored.columns % LANES == 0 and n_bits <= 8 * KEPT_BYTES
        return np.empty((tensor.n_experts, stored.n // LANES if remembers else 0), np.uint8)

    def sums(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        stored = piece.stored
        if stored is None:
            left = Dropped(piece, drop).task_vectors
            return row_sums(piece.task_vectors.abs()), row_sums(left.abs())
        n_rows = stored.n // stored.columns
        before, after = np.empty((2, tensor.n_experts, n_rows))
        where = stored.for_kernels, stored.n, keys(piece, tensor.n_experts), limit(drop)
        drawn[piece.start] = bits = room(stored)
        if not merge_kernels.kept_magnitudes(*where, before, after, bits):
            stored.require_finite()
        return before, after

    return Rescaling(l1_ratio(tensor.each(sums)), drawn)


def keys(piece: Piece, n_experts: int) -> np.ndarray:
    """Where the random streams of a piece's tensor start, one for every expert, (K,) uint64."""
    found = [stream_key(piece.seed, expert, piece.name) for expert in range(n_experts)]
    return np.array(found, dtype=np.uint64)


def limit(drop: float) -> np.uint64:
    """Smallest upper bits of a random number that is not dropped: u >= p as whole numbers."""
    return np.uint64(math.ceil(drop * 2.0**BITS))


def l1_ratio(sums: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """`||tau_k||_1 / ||what is kept of it||_1`, (K,).

    0 where nothing is kept, or so little that the ratio is beyond float64.

    Args:
        sums: Of |v| of every row before and after, (K, rows) each, for every piece.
    """
    before, after = (total(parts) for parts in zip(*sums, strict=True))
    with np.errstate(over="ignore"):
        ratio = np.divide(before, after, out=np.zeros_like(after), where=after > 0)
    return np.where(np.isfinite(ratio), ratio, 0.0)


def row_sums(values: torch.Tensor) -> np.ndarray:
    """Sums over columns, segment by segment: (..., rows, columns) -> (..., rows)."""
    sums = torch.zeros(values.shape[:-1], dtype=values.dtype, device=values.device)
    for start in range(0, values.shape[-1], SEGMENT):
        sums += values[..., start : start + SEGMENT].sum(-1)
    return sums.cpu().numpy()


def total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Sum over all rows of a tensor, given piece by piece: (..., rows) -> (...)."""
    return np.concatenate(list(parts), axis=-1).sum(-1)
