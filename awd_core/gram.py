"""Inner products of task vectors: everything a linear merge and AWD need to know of the weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from awd_core import gram_kernels
from awd_core.kernels import SEGMENT
from awd_core.lazy import torch
from awd_core.statistic import Statistic
from awd_core.stream import Chunk

# Longer matrix products are shared out to threads, and one product by itself otherwise than one of
# many; short ones give the same bits however the rows were cut into chunks.
_SHORT_PRODUCT = 16 * 16 * SEGMENT


def row_grams(chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
    """Gram of every output row, `G[r, i, j] = <tau_i[r], tau_j[r]>`, and `||theta_0[r]||^2`.

    Products and sums are float64. Each row is summed on its own, so the result does not depend on
    how the tensor was cut into chunks. Of a part of a row, each of its segments counts as a row.

    Returns:
        (rows, K(K+1)/2) float64, the lower triangles; and (rows,).
    """
    span, n_experts = chunk.span, len(chunk.packed.codes) - 1
    if not chunk.packed.on_cpu:
        grams = _grams(chunk.task_vectors.transpose(0, 1)).cpu().numpy()
        return pack(grams), _squares(chunk.base).cpu().numpy()
    length = span.columns if chunk.has_whole_rows else SEGMENT
    n_rows = -(-span.n_elements // length)
    packed = np.empty((n_rows, n_experts * (n_experts + 1) // 2))
    squares = np.empty(n_rows)
    gram_kernels.row_grams(*chunk.packed.for_kernels, span.n_elements, length, packed, squares)
    return packed, squares


class Grams(Statistic):
    """Row Grams (packed), the Gram of the tensor, and `||theta_0||^2`.

    Rows are given away as soon as they are finished, where `give_rows` says to whom: those of an
    embedding can be larger than what a machine has to spare.
    """

    def __init__(self, n_experts: int) -> None:
        super().__init__(n_experts)
        n_pairs = n_experts * (n_experts + 1) // 2
        self._gram, self._base_square = np.zeros(n_pairs), np.zeros(1)
        # A row that comes in parts.
        self._row, self._row_square = np.zeros(n_pairs), np.zeros(1)
        self._n_rows = 0
        self._rows: list[np.ndarray] = []
        self.give_rows: Callable[[int, np.ndarray], None] | None = None

    @classmethod
    def arrays(cls, n_experts: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """`gram` and `base_squared_norm`; row Grams have a file of their own."""
        return {"gram": ((n_experts, n_experts), np.float64), "base_squared_norm": ((), np.float64)}

    def part(self, chunk: Chunk) -> tuple[bool, bool, np.ndarray, np.ndarray]:
        """Whether it is whole rows, whether it ends a row, Grams and squares of its rows."""
        grams, squares = row_grams(chunk)
        if not (np.isfinite(grams).all() and np.isfinite(squares).all()):
            chunk.require_finite()
        return chunk.has_whole_rows, chunk.ends_row, grams, squares

    def add(self, part: tuple[bool, bool, np.ndarray, np.ndarray]) -> None:
        """Row by row, and a row segment by segment."""
        has_whole_rows, ends_row, grams, squares = part
        if not has_whole_rows:
            gram_kernels.add_in_order(self._row, grams)
            gram_kernels.add_in_order(self._row_square, squares[:, None])
            if not ends_row:
                return
            grams, squares = self._row[None].copy(), self._row_square.copy()
            self._row[:] = self._row_square[:] = 0.0
        gram_kernels.add_in_order(self._gram, grams)
        gram_kernels.add_in_order(self._base_square, squares[:, None])
        if self.give_rows is None:
            self._rows.append(grams)
        else:
            self.give_rows(self._n_rows, grams)
        self._n_rows += len(grams)

    def result(self) -> dict[str, np.ndarray]:
        """The arrays, and `row_gram`, (rows, K(K+1)/2), unless rows were given away."""
        found = {"gram": unpack(self._gram[None])[0], "base_squared_norm": self._base_square[0]}
        if self._rows:
            found["row_gram"] = np.concatenate(self._rows)
        return found


def _grams(rows: torch.Tensor) -> torch.Tensor:
    """`sum over columns of row_i row_j`, segment by segment: (rows, K, columns) -> (rows, K, K)."""
    n_rows, n_experts, n_columns = rows.shape
    step = max(1, min(SEGMENT, _SHORT_PRODUCT // n_experts**2))
    grams = torch.zeros((n_rows, n_experts, n_experts), dtype=rows.dtype, device=rows.device)
    for start in range(0, n_columns, step):
        segment = rows[..., start : start + step]
        grams += torch.bmm(segment, segment.transpose(1, 2))
    return grams


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """The squared norm of every row, segment by segment: (rows, columns) -> (rows,)."""
    squares = torch.zeros(rows.shape[0], dtype=rows.dtype, device=rows.device)
    for start in range(0, rows.shape[1], SEGMENT):
        squares += rows[:, start : start + SEGMENT].square().sum(1)
    return squares


def pack(grams: np.ndarray) -> np.ndarray:
    """(rows, K, K) -> (rows, K(K+1)/2): the lower triangle, row by row."""
    rows, columns = np.tril_indices(grams.shape[-1])
    return np.ascontiguousarray(grams[:, rows, columns])


def unpack(packed: np.ndarray) -> np.ndarray:
    """(rows, K(K+1)/2) -> (rows, K, K), symmetric."""
    n_experts = int((np.sqrt(8 * packed.shape[1] + 1) - 1) / 2)
    rows, columns = np.tril_indices(n_experts)
    grams = np.empty((packed.shape[0], n_experts, n_experts))
    grams[:, rows, columns] = packed
    grams[:, columns, rows] = packed
    return grams


def with_base(base: torch.Tensor, task_vectors: torch.Tensor) -> np.ndarray:
    """Gram of theta_0 (index 0) and the task vectors in every row, (rows, K + 1, K + 1) float64.

    Args:
        base: (rows, columns).
        task_vectors: (K, rows, columns).
    """
    together = torch.cat([base[:, None], task_vectors.transpose(0, 1)], dim=1)
    return _grams(together).cpu().numpy()
