"""What methods that trim and elect signs share, on pieces (K, rows, columns)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from awd_core import merge_kernels
from awd_core.lazy import torch
from awd_core.magnitude import exact_floors, magnitude_bits
from awd_core.method import sum_over_experts
from awd_core.vectors import Piece, StoredVectors, Update

MERGES = ("mean", "sum", "max")


@dataclass(frozen=True)
class Election:
    """How vectors are trimmed, signs elected, and what agrees is merged.

    With t_k = v_k where |v_k| is at least its floor, else 0, g = sign(sum_k e_k t_k) and
    A = {k: e_k t_k g > 0}:

        merged = scale sum_{k in A} s_k e_k t_k / d,    d = sum_{k in A} d_k

    Attributes:
        floors: Smallest |v_k| kept, compared in float32, (K,) float32; infinity keeps nothing.
        election: e_k, (K,).
        shares: s_k, (K,).
        divisors: d_k, (K,); None to divide by nothing.
        cancelled: Where |d| is no larger, nothing is divided by.
        tie: The sign elected where the sum is exactly 0.
        scale: Multiplies the result.
    """

    floors: np.ndarray
    election: np.ndarray
    shares: np.ndarray
    divisors: np.ndarray | None = None
    cancelled: float = 0.0
    tie: float = 1.0
    scale: float = 1.0

    def of(self, piece: Piece) -> Update:
        """The merged task vector of one piece, (rows, columns)."""
        return self._as_tensors(piece) if piece.stored is None else self._compiled(piece.stored)

    def _compiled(self, stored: StoredVectors) -> np.ndarray:
        return stored.filled(
            merge_kernels.elected_sum,
            exact_floors(self.floors),
            self.election,
            self.shares,
            np.empty(0) if self.divisors is None else self.divisors,
            self.cancelled,
            self.tie,
            self.scale,
        )

    def _as_tensors(self, piece: Piece) -> torch.Tensor:
        weighted = trim(piece.task_vectors, self.floors) * columns(self.election, piece.base)
        agrees = (weighted * elect(weighted, self.tie)) > 0
        total = sum_over_experts(weighted * agrees * columns(self.shares, weighted))
        if self.divisors is not None:
            divisor = sum_over_experts(columns(self.divisors, weighted) * agrees)
            total /= torch.where(divisor.abs() <= self.cancelled, 1.0, divisor)
        return total * self.scale


def trimmed_and_merged(
    piece: Piece, floors: np.ndarray, coefficients: np.ndarray, merge: str, tie: float
) -> Update:
    """Trim, elect signs, and merge what agrees, as TIES does.

    Args:
        piece: The vectors.
        floors: Smallest |v_k| kept, (K,) float32.
        coefficients: lambda_k, (K,).
        merge: One of MERGES.
        tie: The sign elected where the sum is exactly 0.
    """
    if merge == "max":
        trimmed = trim(piece.task_vectors, floors)
        return disjoint(trimmed, elect(trimmed, tie), coefficients, merge)
    ones = np.ones_like(coefficients)
    divisors = ones if merge == "mean" else None
    return Election(floors, ones, coefficients, divisors, tie=tie).of(piece)


def trim(task_vectors: torch.Tensor, floors: np.ndarray) -> torch.Tensor:
    """Every vector where its magnitude is at least its floor, else 0; compared in float32.

    Args:
        task_vectors: (K, rows, columns).
        floors: (K,) float32; infinity keeps nothing.
    """
    bits = torch.from_numpy(floors).view(torch.int32).to(task_vectors.device)
    return task_vectors * (magnitude_bits(task_vectors) >= bits[:, None, None])


def elect(task_vectors: torch.Tensor, tie: float) -> torch.Tensor:
    """Sign of the sum over experts; `tie` where the sum is exactly 0. (rows, columns)."""
    elected = sum_over_experts(task_vectors).sign()
    return torch.where(elected == 0, tie, elected)


def disjoint(
    task_vectors: torch.Tensor, elected: torch.Tensor, coefficients: np.ndarray, merge: str
) -> torch.Tensor:
    """Mean, sum or largest of `lambda_k t_k` over the experts whose entry has the elected sign."""
    agrees = (task_vectors * elected) > 0
    if merge == "max":
        largest = (task_vectors.abs() * agrees).argmax(0, keepdim=True)
        scaled = task_vectors * agrees * columns(coefficients, task_vectors)
        return scaled.gather(0, largest)[0]
    total = sum_over_experts(task_vectors * agrees * columns(coefficients, task_vectors))
    return total / agrees.sum(0).clamp(min=1) if merge == "mean" else total


def columns(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """One number for each expert, ready to multiply (K, rows, columns)."""
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(like.device)[:, None, None]
