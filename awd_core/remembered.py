"""A whole matrix as a function of the coefficients, worked out once and then read by rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from awd_core.lazy import torch


class Remembered:
    """`make(coefficients)`, kept for the coefficients that were asked for last.

    A product of matrices is never taken by rows: fewer rows may be rounded differently.
    """

    def __init__(self, make: Callable[[np.ndarray], torch.Tensor]) -> None:
        self._make = make
        self._last: tuple[bytes, torch.Tensor] | None = None

    def __call__(self, coefficients: np.ndarray) -> torch.Tensor:
        """The whole matrix, (rows, columns)."""
        key = coefficients.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = None
            self._last = key, self._make(coefficients)
        return self._last[1]
