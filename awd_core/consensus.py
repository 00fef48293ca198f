"""What methods that trim and elect signs share, on pieces (K, rows, columns)."""

import numpy as np
import torch

from awd_core.magnitude import magnitude_bits
from awd_core.method import sum_over_experts

MERGES = ("mean", "sum", "max")


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
