r"""The equations of AWD in the Gram domain, one group at a time or a batch of them.

With disentangled vectors v_k = tau_k - delta the objective is (arXiv 2411.18729, Eq. 9-11)

    L_O   = 1 / (K (K-1)) sum_{i != j} |cos(v_i, v_j)|
    L     = L_O + alpha ||delta||_2                        penalty "l2", the paper's
    L     = L_O + alpha ||delta||_2^2                      penalty "l2_squared"

Descent from delta = 0 never leaves the span of the task vectors: delta = sum_k c_k tau_k. With
G_ij = <tau_i, tau_j> everything follows from c in R^K:

    p = G c = <delta, tau_k>      q = c^T G c = ||delta||^2
    M = G - p 1^T - 1 p^T + q     the Gram of the v_k
    n_i = sqrt(M_ii)              C_ij = M_ij / (n_i n_j)
    W_ij = sign(C_ij) / (n_i n_j), W_ii = 0
    a_i = 2 / (K (K-1)) (sum_j W_ij - sum_{j != i} |C_ij| / n_i^2)
    grad L = sum_k h_k tau_k  with  h = (sum_i a_i) c - a + r(c)
    r(c) = alpha c / sqrt(q)  or  2 alpha c;  0 at q = 0, where the norm has a kink

`h` are the span coefficients of the gradient with respect to delta. It is not dL/dc = G h: descent
on c would be another algorithm. These functions are plain NumPy; `gram_solver` runs the same
equations fast.
"""

from typing import Literal

import numpy as np

Penalty = Literal["l2", "l2_squared", "none"]
PENALTIES: tuple[Penalty, ...] = ("l2", "l2_squared", "none")

# ||v_k|| below this fraction of ||tau_k|| is rounding of the Gram, not a direction: delta has
# swallowed the expert. sqrt(2^-52) is where cancellation in M_kk leaves nothing.
SWALLOWED = 1.5e-8

# sin^2 of the widest angle in a group below which all its vectors lie on one line: every |cos| is
# 1, the gradient is 0, and a descent would follow nothing but its rounding.
PARALLEL = 1e-12


def disentangled_grams(grams: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """M = G - p 1^T - 1 p^T + q, the Gram of v_k = tau_k - delta; (..., K, K)."""
    products = np.einsum("...ij,...j->...i", grams, coefficients)
    squares = np.einsum("...i,...i->...", products, coefficients)
    return grams - products[..., :, None] - products[..., None, :] + squares[..., None, None]


def left_of_experts(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """M with zeros where nothing of an expert is left, (..., K, K).

    A zero task vector stays zero, for its v = -delta says nothing of the expert; so does one that
    delta swallowed, of which only rounding is left.

    Args:
        before: G, the Gram of the task vectors.
        after: M, the Gram of the v_k.
    """
    lengths, rests = (np.einsum("...ii->...i", grams) for grams in (before, after))
    alive = (lengths > 0) & (rests > SWALLOWED**2 * lengths)
    return after * (alive[..., :, None] & alive[..., None, :])


def cosines(grams: np.ndarray) -> np.ndarray:
    """`C_ij = G_ij / sqrt(G_ii G_jj)`, (..., K, K); NaN for a zero vector, 1 on the diagonal."""
    squares = np.einsum("...ii->...i", grams)
    norms = np.sqrt(np.where(squares > 0, squares, np.nan))
    cosine = np.clip(grams / norms[..., :, None] / norms[..., None, :], -1.0, 1.0)
    diagonal = np.einsum("...ii->...i", cosine)
    diagonal[...] = np.where(np.isnan(norms), np.nan, 1.0)
    return cosine


def mean_absolute_cosine(grams: np.ndarray) -> np.ndarray:
    """L_O = mean of |cos| over pairs of non-zero vectors, (...,); NaN with fewer than two."""
    off_diagonal = ~np.eye(grams.shape[-1], dtype=bool)
    values = np.abs(cosines(grams))[..., off_diagonal]
    count = (~np.isnan(values)).sum(-1)
    return np.nansum(values, -1) / np.where(count, count, np.nan)


def mean_norms(grams: np.ndarray) -> np.ndarray:
    """`s = mean_k ||tau_k||`, the length that every group is measured in; (...,)."""
    return np.sqrt(np.einsum("...ii->...i", grams)).mean(-1)


def on_one_line(grams: np.ndarray) -> np.ndarray:
    """Whether all non-zero vectors of a group are parallel, as single numbers are; (...,)."""
    squares = np.einsum("...ii->...i", grams)
    products = squares[..., :, None] * squares[..., None, :]
    sines = 1 - grams**2 / np.where(products > 0, products, np.inf)
    return np.where(products > 0, sines, 0.0).max((-1, -2)) < PARALLEL


def gradient_coefficients(grams: np.ndarray) -> np.ndarray:
    """a at c = 0: grad L_O(0) = -sum_k a_k tau_k, (..., K). Zero vectors take no part.

    Args:
        grams: (..., K, K) float64.
    """
    squares = np.einsum("...ii->...i", grams)
    active = squares > 0
    inverse = 1 / np.sqrt(np.where(active, squares, np.inf))
    off_diagonal = 1.0 - np.eye(grams.shape[-1])
    pulls = np.einsum("...ij,...j->...i", np.sign(grams) * off_diagonal, inverse)
    overlaps = np.einsum("...ij,...j->...i", np.abs(grams) * off_diagonal, inverse)
    n_active = active.sum(-1, keepdims=True)
    n_pairs = np.maximum(n_active * (n_active - 1), 1)
    return 2 / n_pairs * inverse * (pulls - overlaps * inverse**2)


def critical_alphas(grams: np.ndarray) -> np.ndarray:
    """alpha_crit = ||grad L_O(0)|| = sqrt(a^T G a): at or above it delta stays 0 (penalty l2).

    In the paper's units, 1 / length of a task vector; (...,). The objective is not convex: above
    alpha_crit 0 is a local minimum, and not far above it a descent may still end in another.
    """
    a = gradient_coefficients(grams)
    return np.sqrt(np.maximum(0.0, np.einsum("...i,...ij,...j->...", a, grams, a)))


def critical_alpha(gram: np.ndarray) -> float:
    """`critical_alphas` of one group."""
    return float(critical_alphas(gram))
