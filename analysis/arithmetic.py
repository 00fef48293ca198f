"""Small pieces of arithmetic that know what to do where a number does not exist."""

import numpy as np


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`a / b`; NaN where b = 0, without a warning."""
    return numerator / np.where(denominator == 0, np.nan, denominator)


def root(squares: np.ndarray) -> np.ndarray:
    """`sqrt(max(a, 0))`: a square that rounding pushed below zero is zero."""
    return np.sqrt(np.maximum(squares, 0.0))


def diagonal(grams: np.ndarray) -> np.ndarray:
    """`G_kk`, (..., K)."""
    return np.einsum("...kk->...k", grams)


def pairs(n_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pair i < j once, in the order (0, 1), (0, 2), ..., (1, 2), ..."""
    return np.triu_indices(n_experts, 1)


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the numbers that exist; NaN where none does."""
    exists = ~np.isnan(values)
    return ratio(np.where(exists, values, 0.0).sum(-1), exists.sum(-1))


def weighted_mean(values: np.ndarray, weights: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`sum w a / sum w` over the entries of each position, where a exists; (positions,)."""
    exists = ~np.isnan(values)
    used = np.where(exists, weights, 0.0)
    total = np.bincount(positions, used * np.where(exists, values, 0.0))
    return ratio(total, np.bincount(positions, used))
