"""Random dropping, and sums over a tensor that do not depend on how it was cut."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from awd_core.gram import SEGMENT
from awd_core.random_masks import stream_key, uniforms
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


def l1_ratio(tensor: TensorVectors, keep: Callable[[Piece], torch.Tensor]) -> np.ndarray:
    """`||tau_k||_1 / ||keep(tau_k)||_1`, (K,); 0 where nothing is kept. One sweep."""
    pairs = [
        (row_sums(piece.task_vectors.abs()), row_sums(keep(piece).abs()))
        for piece in tensor.sweep()
    ]
    before, after = (total(parts) for parts in zip(*pairs, strict=True))
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
