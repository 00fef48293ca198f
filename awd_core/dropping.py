"""Random dropping, and sums over a tensor that do not depend on how it was cut."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch

from awd_core import merge_kernels
from awd_core.consensus import columns
from awd_core.gram import SEGMENT
from awd_core.lanes import whole_groups
from awd_core.method import sum_over_experts
from awd_core.random_masks import BITS, stream_key, uniforms
from awd_core.vectors import Piece, TensorVectors


def random_numbers(piece: Piece) -> torch.Tensor:
    """A uniform number in [0, 1) for every element of every task vector, (K, rows, columns)."""
    shape, device = tuple(piece.base.shape), piece.base.device
    return torch.stack(
        [
            uniforms(stream_key(piece.seed, expert, piece.name), piece.offset, shape, device)
            for expert in range(len(piece.task_vectors))
        ]
    )


def dropped(piece: Piece, drop: float) -> torch.Tensor:
    """The task vectors with every entry dropped with probability `drop`, not rescaled."""
    return piece.task_vectors * (random_numbers(piece) >= drop)


def sum_of_kept(piece: Piece, drop: float, multipliers: np.ndarray) -> torch.Tensor:
    """`sum_k l_k m_k v_k`, m_k the entries that are not dropped, (rows, columns)."""
    stored = piece.stored
    if stored is None:
        return sum_over_experts(dropped(piece, drop) * columns(multipliers, piece.base))
    merged = np.empty(whole_groups(stored.n))
    of_expert = keys(piece, len(multipliers))
    where = stored.for_kernels, stored.n, of_expert, limit(drop)
    if not merge_kernels.kept_sum(*where, multipliers, merged):
        stored.require_finite()
    return torch.from_numpy(merged[: stored.n]).view(-1, stored.columns)


def l1_ratio_of_dropped(tensor: TensorVectors, drop: float) -> np.ndarray:
    """`l1_ratio` of what is dropped at random, (K,). One sweep.

    Raises:
        AwdError: A weight is not finite.
    """

    def sums(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        stored = piece.stored
        if stored is None:
            return row_sums(piece.task_vectors.abs()), row_sums(dropped(piece, drop).abs())
        n_rows = stored.n // stored.columns
        before, after = np.empty((2, tensor.n_experts, n_rows))
        where = stored.for_kernels, stored.n, keys(piece, tensor.n_experts), limit(drop)
        if not merge_kernels.kept_magnitudes(*where, before, after):
            stored.require_finite()
        return before, after

    return _ratio(tensor.each(sums))


def keys(piece: Piece, n_experts: int) -> np.ndarray:
    """Where the random streams of a piece's tensor start, one for every expert, (K,) uint64."""
    found = [stream_key(piece.seed, expert, piece.name) for expert in range(n_experts)]
    return np.array(found, dtype=np.uint64)


def limit(drop: float) -> np.uint64:
    """Smallest upper bits of a random number that is not dropped: u >= p as whole numbers."""
    return np.uint64(math.ceil(drop * 2.0**BITS))


def l1_ratio(tensor: TensorVectors, keep: Callable[[Piece], torch.Tensor]) -> np.ndarray:
    """`||tau_k||_1 / ||keep(tau_k)||_1`, (K,); 0 where nothing is kept. One sweep."""
    return _ratio(
        tensor.each(lambda piece: (row_sums(piece.task_vectors.abs()), row_sums(keep(piece).abs())))
    )


def _ratio(sums: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    before, after = (total(parts) for parts in zip(*sums, strict=True))
    return np.divide(before, after, out=np.zeros_like(after), where=after > 0)


def row_sums(values: torch.Tensor) -> np.ndarray:
    """Sums over columns, segment by segment: (..., rows, columns) -> (..., rows)."""
    sums = torch.zeros(values.shape[:-1], dtype=values.dtype, device=values.device)
    for start in range(0, values.shape[-1], SEGMENT):
        sums += values[..., start : start + SEGMENT].sum(-1)
    return sums.cpu().numpy()


def total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Sum over all rows of a tensor, given piece by piece: (..., rows) -> (...)."""
    return np.concatenate(list(parts), axis=-1).sum(-1)
