"""Sums that do not depend on how a tensor is cut into rows, or on the number of threads."""

import numpy as np
import torch


def row_sums(matrix: torch.Tensor) -> np.ndarray:
    """Sum of every row, (rows,) float64; add them with `math.fsum`.

    NumPy adds a row in one order. torch splits the sum of a single long row among its threads.
    """
    if matrix.is_cuda:
        return matrix.sum(1).cpu().numpy()
    return matrix.contiguous().numpy().sum(axis=1)
