"""Numbers of matrices, summed or averaged over the parts of a model."""

from dataclasses import dataclass

import numpy as np

from analysis.arithmetic import diagonal, ratio
from analysis.view import Scope, View
from awd_core.spectra import Spectra

# The leading directions of the merge hold all but this share of its norm; Iso, Eq. 6.
RELATIVE_ERROR = 0.05


@dataclass(frozen=True)
class Rotated:
    """Task vectors of one matrix along the left singular vectors u_r of their sum.

    Attributes:
        grams: `<u_r^T tau_i, u_r^T tau_j>`, (r, K, K), r in falling order of strength.
        rank: Directions that hold all but `RELATIVE_ERROR` of the norm of the sum.
    """

    grams: np.ndarray
    rank: int

    @property
    def strengths(self) -> np.ndarray:
        """Singular values of the sum of task vectors, (r,)."""
        return np.sqrt(np.maximum(self.grams.sum((1, 2)), 0.0))


def spectra(view: View) -> Spectra:
    """Those of all matrices, in the order of `matrix_positions`.

    Raises:
        StudyError: The study holds none.
    """
    return view.study.spectra[1]


def matrix_positions(view: View) -> np.ndarray:
    """Positions of the decomposed matrices in `study.tensors`."""
    return view.study.spectra[0]


def matrix_energies(view: View) -> np.ndarray:
    """`||Delta_k||^2` of every matrix, (matrices, K)."""
    return diagonal(view.study.grams[matrix_positions(view)])


def matrix_multipliers(view: View) -> np.ndarray:
    """lambda of every expert in every matrix, factors by block included, (matrices, K)."""
    positions = matrix_positions(view)
    factors = np.ones(len(positions)) if view.factors is None else view.factors[positions]
    return np.outer(factors, view.multipliers)


def rotated(view: View) -> list[Rotated]:
    """Every matrix along the directions of the sum."""
    return view.once("rotated", lambda: [rotated_matrix(view, at) for at in matrix_positions(view)])


def rotated_matrix(view: View, position: int) -> Rotated:
    """One matrix, by its position in `study.tensors`, along the directions of the sum."""
    grams = view.study.spectral_gram(view.study.tensors[position].name)
    squares = np.maximum(grams.sum((1, 2)), 0.0)
    missing = 1.0 - np.cumsum(squares) / (squares.sum() or 1.0)
    rank = int(np.argmax(missing <= RELATIVE_ERROR**2)) + 1
    return Rotated(grams, rank)


def summed(view: View, scope: Scope, values: np.ndarray) -> np.ndarray:
    """Sums of values of matrices over every part, (parts, ...); 0 where a part has none."""
    every = np.zeros((len(view.study.tensors), *values.shape[1:]))
    every[matrix_positions(view)] = np.nan_to_num(values)
    return view.summed(every, scope)


def averaged(view: View, scope: Scope, values: np.ndarray) -> np.ndarray:
    """Mean over the matrices of every part where the number exists; NaN where there is none."""
    return ratio(summed(view, scope, values), summed(view, scope, ~np.isnan(values) * 1.0))
