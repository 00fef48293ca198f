"""Inner products of task vectors: everything a linear merge and AWD need to know of the weights."""

from collections.abc import Iterable

import numpy as np
import torch

from awd_core.checkpoints import StoredTensor
from awd_core.statistic import Statistic
from awd_core.stream import Chunk, read_base, row_blocks

# Columns whose products are summed in one go. Longer matrix products are shared out to threads, and
# one product by itself otherwise than one of many; short ones give the same bits however the rows
# were cut into chunks. 16 vectors of 512 columns are short.
SEGMENT = 512
_SHORT_PRODUCT = 16 * 16 * SEGMENT


def row_grams(chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
    """Gram of every output row, `G[r, i, j] = <tau_i[r], tau_j[r]>`, and `||theta_0[r]||^2`.

    Products and sums are float64. Each row is summed on its own, so the result does not depend on
    how the tensor was cut into chunks; the Gram of the tensor is the sum over rows.

    Returns:
        (rows, K, K) float64, symmetric, positive semidefinite; and (rows,).
    """
    grams = _grams(chunk.task_vectors.transpose(0, 1)).cpu().numpy()
    # Both triangles come from the same products in another order; one of them decides.
    symmetric = np.tril(grams) + np.tril(grams, -1).transpose(0, 2, 1)
    return symmetric, _squares(chunk.base).cpu().numpy()


class Grams(Statistic):
    """Row Grams (packed), the Gram of the tensor, and `||theta_0||^2`."""

    def __init__(self, n_experts: int) -> None:
        super().__init__(n_experts)
        self._grams: list[np.ndarray] = []
        self._base_squares: list[np.ndarray] = []

    @classmethod
    def arrays(cls, n_experts: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """`gram` and `base_squared_norm`; row Grams have a file of their own."""
        return {"gram": ((n_experts, n_experts), np.float64), "base_squared_norm": ((), np.float64)}

    def part(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """Grams and squares of the chunk's rows."""
        return row_grams(chunk)

    def add(self, part: tuple[np.ndarray, np.ndarray]) -> None:
        """Rows are joined, not summed: the sum over all of them is taken once."""
        self._grams.append(part[0])
        self._base_squares.append(part[1])

    def result(self) -> dict[str, np.ndarray]:
        """The arrays, and `row_gram`, (rows, K(K+1)/2)."""
        if not self._grams:
            return {}
        grams = np.concatenate(self._grams)
        return {
            "gram": grams.sum(0),
            "base_squared_norm": np.concatenate(self._base_squares).sum(),
            "row_gram": pack(grams),
        }


def base_square(tensor: StoredTensor, device: torch.device, chunk_elements: int) -> float:
    """`||theta_0||^2` of a tensor that no expert touches."""
    blocks = row_blocks(tensor, chunk_elements)
    rows = [_squares(read_base(tensor, start, stop, device)) for start, stop in blocks]
    return float(torch.cat(rows).cpu().numpy().sum()) if rows else 0.0


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


def with_base(pieces: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
    """Gram of theta_0 (index 0) and the task vectors of one tensor, (K + 1, K + 1) float64.

    Args:
        pieces: theta_0 (rows, columns) and task vectors (K, rows, columns) of all rows in order.
    """
    grams = [
        _grams(torch.cat([base[:, None], task_vectors.transpose(0, 1)], dim=1)).cpu().numpy()
        for base, task_vectors in pieces
    ]
    total = np.concatenate(grams).sum(0)
    return np.tril(total) + np.tril(total, -1).T
