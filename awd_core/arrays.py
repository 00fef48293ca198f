"""Matrices where they are computed: arrays of NumPy on the CPU, tensors of torch on a GPU.

Both know the operations of the Python array API by the same names, so a formula is written once.
NumPy is there at once; torch takes one to two seconds to load.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from threadpoolctl import threadpool_limits

from awd_core.lazy import torch

# `np.ndarray` or `torch.Tensor`; all of one formula are of one kind.
Array: TypeAlias = Any


def namespace(array: Array) -> Any:
    """The module whose functions take this array: `numpy` or `torch`."""
    return np if isinstance(array, np.ndarray) else torch


def on_host(array: Array) -> np.ndarray:
    """The numbers of an array where NumPy can read them; a copy only from another device."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def falling(squares: Array, vectors: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors in falling order, from the rising one of `eigh`."""
    order = [*range(len(squares) - 1, -1, -1)]
    return squares[order], vectors[:, order]


def numpy_in_one_thread() -> threadpool_limits:
    """A block in which NumPy multiplies and decomposes matrices in one thread.

    The order of its sums, and so their last bits, depends on how many threads share them. There is
    one setting for a process, and it belongs to the thread that sets it first: a block around what
    worker threads do counts for them, theirs inside of it change nothing.
    """
    return threadpool_limits(1, user_api="blas")
