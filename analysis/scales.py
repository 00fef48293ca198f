"""Ranges of colour scales, and how they are written."""

from math import ceil, floor, log10

import numpy as np
import pandas as pd

# A range is one of these times a power of ten.
_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
_SMALLEST = 0.01

# Share of opposite signs of two experts that have nothing to do with one another.
CHANCE = 0.5


def symmetric_limit(
    *tables: pd.DataFrame, column: str = "cosine", percentile: float = 99.0
) -> float:
    """A round number that `percentile` percent of all |values| stay under: the range is +-limit.

    Give every table that shall be seen on one scale. A square table loses its diagonal, which is
    1 by definition.

    Returns:
        Between 0.01 and 1.
    """
    values = np.concatenate([np.zeros(1), *(_values(table, column) for table in tables)])
    sizes = np.abs(values[np.isfinite(values)])
    return min(1.0, max(_SMALLEST, rounded_up(float(np.percentile(sizes, percentile)))))


def rounded_up(value: float) -> float:
    """The next round number at or above a positive value; 0 for 0."""
    if value <= 0:
        return 0.0
    power = 10.0 ** floor(log10(value))
    # A value that is round already shall stay, whatever its last bit.
    step = next(step for step in _STEPS if step >= value / power * (1 - 1e-9))
    return float(f"{step * power:.3g}")


def written(limit: float) -> str:
    """`±0.35`."""
    return f"±{limit:g}"


def signed(value: float) -> str:
    """A number with a real minus sign, four digits at most."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def conflict_limit(values: np.ndarray) -> float:
    """A round number that no conflict is farther from chance than; between 0.05 and 0.5."""
    distances = np.abs(values[np.isfinite(values)] - CHANCE)
    return min(0.5, max(0.05, rounded_up(float(distances.max(initial=0.0)))))


def off_diagonal(matrix: pd.DataFrame) -> np.ndarray:
    """The values of a K x K table, NaN on the diagonal."""
    values = matrix.to_numpy(dtype=np.float64, copy=True)
    np.fill_diagonal(values, np.nan)
    return values


def without_diagonal(matrix: pd.DataFrame) -> pd.DataFrame:
    """A K x K table with NaN on its diagonal."""
    return pd.DataFrame(off_diagonal(matrix), index=matrix.index, columns=matrix.columns)


def by_size(frame: pd.DataFrame) -> list[str]:
    """Rows by their mean |value|, largest first, rows without a number last."""
    return list(frame.abs().mean(axis=1).sort_values(ascending=False, kind="stable").index)


def _values(table: pd.DataFrame, column: str) -> np.ndarray:
    if column in table.columns:
        return np.asarray(table[column], dtype=np.float64)
    return off_diagonal(table).ravel()


def decimals(limit: float) -> int:
    """Decimals that tell values apart on a scale of +-limit: two digits at least."""
    return max(2, ceil(-log10(limit)) + 1)
