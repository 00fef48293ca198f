"""How much of an expert lies in the leading directions of the merge, or of another expert."""

import numpy as np

from analysis.arithmetic import ratio
from analysis.measure import Measure
from analysis.spectral import averaged, matrix_energies, matrix_positions, rotated, spectra
from analysis.view import Scope, View


def with_merge(view: View, scope: Scope) -> np.ndarray:
    """`||U_k^T Delta_t||_F / ||Delta_t||_F`, U_k of the summed task vectors, (parts, K)."""

    def find() -> np.ndarray:
        inside = [np.einsum("rkk->k", one.grams[: one.rank]) for one in rotated(view)]
        return np.sqrt(ratio(np.maximum(np.stack(inside), 0.0), matrix_energies(view)))

    return averaged(view, scope, view.once("alignment with merge", find))


def with_merge_by_chance(view: View, scope: Scope) -> np.ndarray:
    """`sqrt(k / rows)`: what a random subspace of the same dimension holds, (parts,)."""
    ranks = np.array([one.rank for one in rotated(view)])
    return averaged(view, scope, np.sqrt(ranks / _rows(view)))


def of_pairs(view: View, scope: Scope) -> np.ndarray:
    """`||U_j^T Delta_i||_F / ||Delta_i||_F`, U_j the kept left vectors of j, (parts, K, K)."""
    energies = matrix_energies(view)[:, :, None]
    return averaged(view, scope, np.sqrt(ratio(spectra(view).aligned, energies)))


def of_pairs_by_chance(view: View, scope: Scope) -> np.ndarray:
    """`sqrt(q_j / rows)`, (parts, K)."""
    found = np.sqrt(spectra(view).counts / _rows(view)[:, None])
    return averaged(view, scope, np.where(matrix_energies(view) > 0, found, np.nan))


def _rows(view: View) -> np.ndarray:
    return np.array([view.study.tensors[position].shape[0] for position in matrix_positions(view)])


_SOURCE = "Marczak et al., Iso, arXiv 2502.04959, Eq. 5 and 6"
_RANK = (
    r"k = \min\{k : \textstyle\sum_{r > k} s_r^2 \le 0.05^2 \sum_r s_r^2\}, \quad"
    r" \textstyle\sum_j \tau_j = U S V^\top"
)

MERGE = Measure(
    key="subspace_alignment",
    title="Subspace alignment with the merge",
    formula=r"\frac{\|U_k^\top \Delta_t\|_F}{\|\Delta_t\|_F}, \quad " + _RANK,
    reading="1: all of the expert lies in the leading directions of task arithmetic. Compare with"
    " a random subspace of that size. Mean over the matrices of the part.",
    unit="1",
    per="expert",
    better="higher",
    needs="spectra",
    baseline=None,
    source=_SOURCE,
    of=with_merge,
)

MERGE_BY_CHANCE = Measure(
    key="subspace_alignment_by_chance",
    title="Subspace alignment of a random subspace",
    formula=r"\sqrt{k / d_{out}}, \quad " + _RANK,
    reading="What subspace alignment with the merge would be if the directions were random.",
    unit="1",
    per="part",
    better=None,
    needs="spectra",
    baseline=None,
    source="ours",
    of=with_merge_by_chance,
)

PAIRS = Measure(
    key="subspace_alignment_of_pairs",
    title="Subspace alignment of pairs",
    formula=r"\frac{\|U_j^\top \Delta_i\|_F}{\|\Delta_i\|_F}",
    reading="How much of expert i lies in the floor(r/K) leading directions of expert j; not the"
    " same both ways. Mean over the matrices of the part.",
    unit="1",
    per="pair",
    better="lower",
    needs="spectra",
    baseline=None,
    source=_SOURCE + ", at the rank of TSV-M",
    of=of_pairs,
    symmetric=False,
)

PAIRS_BY_CHANCE = Measure(
    key="subspace_alignment_of_pairs_by_chance",
    title="Subspace alignment of pairs with random directions",
    formula=r"\sqrt{q_j / d_{out}}",
    reading="What subspace alignment of pairs would be if the q_j kept directions of expert j were"
    " random.",
    unit="1",
    per="expert",
    better=None,
    needs="spectra",
    baseline=None,
    source="ours",
    of=of_pairs_by_chance,
)

MEASURES = (MERGE, MERGE_BY_CHANCE, PAIRS, PAIRS_BY_CHANCE)
