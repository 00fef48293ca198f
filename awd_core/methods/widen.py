"""WIDEN: weigh every column by how far its length and its direction moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.dropping import row_sums, total
from awd_core.knobs import knob
from awd_core.lazy import torch
from awd_core.method import Executor, MergeMethod, sum_over_experts, weighted_sum
from awd_core.vectors import Piece, TensorVectors


@dataclass(frozen=True)
class Widen(MergeMethod):
    """`lambda sum_k s_k tau_k` with a weight s_kj for every expert and column j of a matrix.

    Every expert ranks its columns by the change of their length and by 1 - cos of their angle to
    the base's. A rank is divided by the number of columns. Of each ranking the softmax over experts
    is taken, and `calibration` instead where a rank is above `ratio` times the expert's mean rank;
    s_kj is the mean of both. With ratio 1 the upper half of every expert's columns counts fully.

    Embeddings are ranked by row, one token each. Vectors take the softmax of |tau_k| itself, and
    `calibration` where |tau_k| is above its mean. Trailing axes of a convolution are columns. Equal
    changes rank in their order. Both changes are computed from <theta_0, tau_k> and ||tau_k||, so
    they are exactly 0 where a column did not move; a column of zeros that moved turned by 1.

    Cost: one sweep of the tensor, one to merge.
    """

    key: ClassVar[str] = "widen"
    title: ClassVar[str] = "WIDEN"
    source: ClassVar[str] = "Yu et al., Extend model merging, arXiv 2408.03092"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \sum_k \lambda_k\, s_k \odot \tau_k,\quad"
        r" s_{kj} = \tfrac12 \left(\sigma(r^{\text{length}}_{kj}) +"
        r" \sigma(r^{\text{direction}}_{kj})\right)"
    )
    executor: ClassVar[Executor] = "tensor"
    passes: ClassVar[int] = 2
    policy: ClassVar[str] = (
        "embeddings by row instead of by column; vectors and scalars entry by entry; other tensors"
        " as matrices of shape (first axis, all others)"
    )
    default_coefficient: ClassVar[float] = 1.0
    scale_equivariant: ClassVar[bool] = False

    ratio: float = knob(
        1.0, low=0.0, high=10.0, help="How far above its mean a rank is important by itself."
    )
    calibration: float = knob(1.0, low=0.0, high=10.0, help="Weight of what is important.")

    def prepare(self, survey: Any, tensor: TensorVectors) -> np.ndarray:
        """Weights (K, 1, columns), for embeddings (K, rows, 1); for vectors the means of |tau|."""
        if len(tensor.shape) < 2:
            magnitudes = tensor.each(lambda piece: row_sums(piece.task_vectors.abs()))
            return total(magnitudes) / tensor.n_elements
        if tensor.kind == "embedding":
            return self._weights(*_by_row(tensor))[:, :, None]
        return self._weights(*_by_column(tensor))[:, None, :]

    def combine(self, prepared: np.ndarray, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """The weighted sum."""
        vectors = piece.task_vectors
        weights = torch.from_numpy(prepared).to(vectors.device)
        if prepared.ndim == 1:
            magnitudes = vectors.abs()
            important = magnitudes > self.ratio * weights[:, None, None]
            weights = torch.where(important, self.calibration, _softmax(magnitudes))
        elif prepared.shape[1] > 1:
            weights = weights[:, piece.start : piece.stop]
        return weighted_sum(coefficients, vectors * weights)

    def _weights(self, base: np.ndarray, with_base: np.ndarray, own: np.ndarray) -> np.ndarray:
        """s_k of every column, (K, n), from ||theta_0||^2, <theta_0, tau_k> and ||tau_k||^2."""
        squares = np.maximum(base + 2 * with_base + own, 0.0)
        lengths, before = np.sqrt(squares), np.sqrt(base)
        sums = lengths + before
        longer = np.divide(
            np.abs(2 * with_base + own), sums, out=np.zeros_like(sums), where=sums > 0
        )
        # 1 - cos = (|a|^2 |t|^2 - <a, t>^2) / (|a| |b| (|a| |b| + <a, b>)) for b = a + t.
        product = before * lengths
        denominator = product * (product + base + with_base)
        turned = np.maximum(base * own - with_base**2, 0.0)
        opposite = np.where(own > 0, 1.0 - np.sign(base + with_base), 0.0)
        turned = np.divide(turned, denominator, out=opposite, where=denominator > 0)
        return (self._scores(longer) + self._scores(turned)) / 2

    def _scores(self, changes: np.ndarray) -> np.ndarray:
        n = changes.shape[1]
        order = np.argsort(changes, axis=1, kind="stable")
        ranks = np.empty_like(changes)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(n) / n, changes.shape), axis=1)
        important = ranks > self.ratio * ranks.mean(1, keepdims=True)
        return np.where(important, self.calibration, _softmax(torch.from_numpy(ranks)).numpy())


def _softmax(values: torch.Tensor) -> torch.Tensor:
    """Over the experts, summed in their order."""
    powers = (values - values.amax(0)).exp()
    return powers / sum_over_experts(powers)


def _by_row(tensor: TensorVectors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = tensor.each(
        lambda piece: (
            row_sums(piece.base.square()),
            row_sums(piece.base * piece.task_vectors),
            row_sums(piece.task_vectors.square()),
        )
    )
    base, with_base, own = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
    return base, with_base, own


def _by_column(tensor: TensorVectors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n_experts, n = tensor.n_experts, tensor.n_elements // tensor.shape[0]
    base, with_base, own = np.zeros(n), np.zeros((n_experts, n)), np.zeros((n_experts, n))
    products = tensor.each(
        lambda piece: (
            piece.base.square(),
            piece.base * piece.task_vectors,
            piece.task_vectors.square(),
        )
    )
    for base_square, product, square in products:
        base = _added(base, base_square)
        with_base = _added(with_base, product)
        own = _added(own, square)
    return base, with_base, own


def _added(before: np.ndarray, rows: torch.Tensor) -> np.ndarray:
    """Rows added one after the other, so that it does not matter how they were cut."""
    every = np.concatenate([before[..., None, :], rows.cpu().numpy()], axis=-2)
    return np.add.accumulate(every, axis=-2)[..., -1, :]
