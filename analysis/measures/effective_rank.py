"""In how many directions each expert moves."""

import numpy as np

from analysis.arithmetic import ratio
from analysis.measure import Measure
from analysis.spectral import averaged, matrix_energies, matrix_positions, spectra
from analysis.view import Scope, View


def stable_rank(view: View, scope: Scope) -> np.ndarray:
    """`||Delta||_F^2 / s_1^2`, mean over matrices, (parts, K)."""
    largest = spectra(view).values[:, :, 0].astype(np.float64)
    return averaged(view, scope, ratio(matrix_energies(view), largest**2))


def entropy_rank(view: View, scope: Scope) -> np.ndarray:
    """`exp(-sum p log p)` with `p = s / sum s`, mean over matrices, (parts, K).

    What a randomised decomposition did not find counts as equal singular values of the energy that
    is left.
    """
    return averaged(view, scope, view.once("entropy ranks", lambda: _entropy_ranks(view)))


def _entropy_ranks(view: View) -> np.ndarray:
    energies, ranks = matrix_energies(view), []
    shapes = [view.study.tensors[position].shape for position in matrix_positions(view)]
    for values, energy, shape in zip(spectra(view).values, energies, shapes, strict=True):
        short_side = min(shape[0], int(np.prod(shape[1:])))
        ranks.append([_entropy_rank(s, e, short_side) for s, e in zip(values, energy, strict=True)])
    return np.array(ranks)


def _entropy_rank(values: np.ndarray, energy: float, short_side: int) -> float:
    found = values[~np.isnan(values)].astype(np.float64)
    n_missing = short_side - len(found)
    if n_missing > 0:
        rest = max(energy - float((found**2).sum()), 0.0)
        found = np.concatenate([found, np.full(n_missing, np.sqrt(rest / n_missing))])
    if not found.any():
        return np.nan
    shares = found[found > 0] / found.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


STABLE = Measure(
    key="stable_rank",
    title="Stable rank",
    formula=r"\frac{\|\Delta_k\|_F^2}{s_1^2}, \quad \Delta_k = U_k S_k V_k^\top",
    reading="About how many directions carry the expert's move; 1: a single one. Mean over the"
    " matrices of the part.",
    unit="1",
    per="expert",
    better=None,
    needs="spectra",
    baseline=None,
    source="Rudelson and Vershynin, Sampling from large matrices, 2007",
    of=stable_rank,
)

ENTROPY = Measure(
    key="entropy_rank",
    title="Entropy rank",
    formula=r"\exp\left(-\sum_r p_r \log p_r\right), \quad p_r = \frac{s_r}{\sum_q s_q}",
    reading="How many directions the expert uses, weak ones included. Mean over the matrices of"
    " the part.",
    unit="1",
    per="expert",
    better=None,
    needs="spectra",
    baseline=None,
    source="Roy and Vetterli, The effective rank, EUSIPCO 2007",
    of=entropy_rank,
)

MEASURES = (STABLE, ENTROPY)
