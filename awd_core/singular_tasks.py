"""The singular triplets of several tasks side by side, and the merge that is their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from awd_core.lazy import torch
from awd_core.linear_algebra import (
    LowRank,
    Triplets,
    polar,
    product_triplets,
    singular_triplets,
)
from awd_core.method import sum_over_experts
from awd_core.vectors import TensorVectors


@dataclass(frozen=True)
class SingularTasks:
    """`sum_k lambda_k U_k s_k V_k^T`.

    Attributes:
        left: Left directions of all tasks beside one another, (rows, r).
        values: What each direction is worth at lambda = 1, (r,).
        right: Right directions, (columns, r).
        sizes: How many directions are each task's, (K,); they stand in the order of the tasks.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    sizes: tuple[int, ...]

    def merged(self, coefficients: np.ndarray) -> torch.Tensor:
        """The whole matrix, (rows, columns)."""
        scales = torch.from_numpy(np.repeat(coefficients, self.sizes)).to(self.values.device)
        return (self.left * (self.values * scales)) @ self.right.mT


def side_by_side(triplets: Sequence[Triplets], weights: np.ndarray) -> SingularTasks:
    """The tasks as they are, each times its weight, (K,)."""
    weighted = [float(weight) * task.s for weight, task in zip(weights, triplets, strict=True)]
    return SingularTasks(
        left=torch.cat([task.u for task in triplets], dim=1),
        values=torch.cat(weighted),
        right=torch.cat([task.v for task in triplets], dim=1),
        sizes=tuple(len(task.s) for task in triplets),
    )


def orthogonalised(tasks: SingularTasks) -> SingularTasks:
    """Both sets of directions replaced by the nearest ones that are orthonormal."""
    return SingularTasks(polar(tasks.left), tasks.values, polar(tasks.right), tasks.sizes)


def task_triplets(tensor: TensorVectors, index: int, rank: int | None = None) -> Triplets:
    """The first `rank` singular triplets of the task vector of one expert."""
    product = tensor.low_rank(index)
    if product is None:
        return singular_triplets(tensor.matrix(index), rank)
    return product_triplets(product, rank)


def all_low_rank(tensor: TensorVectors) -> tuple[LowRank, ...] | None:
    """The task vectors of all experts as products; None unless all of them are."""
    found = tuple(map(tensor.low_rank, range(tensor.n_experts)))
    return None if None in found else cast("tuple[LowRank, ...]", found)


def sum_triplets(tensor: TensorVectors, rank: int | None = None) -> Triplets:
    """The first `rank` singular triplets of sum_k tau_k."""
    products = all_low_rank(tensor)
    if products is None:
        return singular_triplets(sum_over_experts(tensor.matrices()), rank)
    left = torch.cat([task.left for task in products], dim=1)
    return product_triplets(LowRank(left, torch.cat([task.right for task in products])), rank)
