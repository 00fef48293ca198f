"""Sums that do not depend on how a tensor is cut into rows, or on the number of threads."""

import torch


def row_sums(matrix: torch.Tensor) -> list[float]:
    """Sum of every row; add them with `math.fsum`.

    NumPy adds a row in one order. torch splits the sum of a single long row among its threads.
    """
    if matrix.is_cuda:
        return matrix.sum(1).tolist()
    return matrix.contiguous().numpy().sum(axis=1).tolist()
