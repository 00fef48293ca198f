"""Mean cosine over pairs, signed and absolute, and its averages over tensors instead."""

import numpy as np

from analysis.arithmetic import diagonal, mean, pairs, ratio, root, weighted_mean
from analysis.measure import Direction, Measure, Of
from analysis.view import Scope, View, When


def mean_absolute_cosine(view: View, scope: Scope, when: When) -> np.ndarray:
    """`mean_{i<j} |cos(v_i, v_j)|` over pairs of non-zero vectors of each part, (parts,)."""
    first, second = pairs(view.n_experts)
    return mean(np.abs(view.cosines(scope, when)[:, first, second]))


def mean_cosine(view: View, scope: Scope, when: When) -> np.ndarray:
    """`mean_{i<j} cos(v_i, v_j)` over pairs of non-zero vectors of each part, (parts,)."""
    first, second = pairs(view.n_experts)
    return mean(view.cosines(scope, when)[:, first, second])


def by_tensors(view: View, scope: Scope, when: When) -> np.ndarray:
    """`sum_l m_l / sum_l 1`, m_l the mean |cos| of tensor l, (parts,)."""
    values = mean_absolute_cosine(view, "tensor", when)
    return weighted_mean(values, np.ones(len(values)), view.positions(scope))


def by_parameters(view: View, scope: Scope, when: When) -> np.ndarray:
    """`sum_l n_l m_l / sum_l n_l`, m_l the mean |cos| of tensor l of n_l elements, (parts,)."""
    values = mean_absolute_cosine(view, "tensor", when)
    return weighted_mean(values, view.n_elements("tensor"), view.positions(scope))


def by_energy(view: View, scope: Scope, when: When) -> np.ndarray:
    """`sum_l sum_{i<j} |<v_i, v_j>| / sum_l sum_{i<j} ||v_i|| ||v_j||`, (parts,)."""
    first, second = pairs(view.n_experts)
    grams = view.grams("tensor", when)
    norms = root(diagonal(grams))
    shared = np.abs(grams[:, first, second]).sum(1)
    whole = (norms[:, first] * norms[:, second]).sum(1)
    return ratio(view.summed(shared, scope), view.summed(whole, scope))


def _measure(
    key: str,
    title: str,
    formula: str,
    reading: str,
    source: str,
    of: Of,
    better: Direction | None = "lower",
) -> Measure:
    return Measure(
        key=key,
        title=title,
        formula=formula,
        reading=reading,
        unit="1",
        per="part",
        better=better,
        needs="gram",
        baseline=None,
        source=source,
        of=of,
    )


def _family(when: When, vector: str, words: str) -> tuple[Measure, ...]:
    inner = rf"\langle {vector}_i, {vector}_j \rangle"
    inner_l = rf"\langle {vector}_i^l, {vector}_j^l \rangle"
    norms_l = rf"\|{vector}_i^l\| \, \|{vector}_j^l\|"
    return (
        _measure(
            f"mean_absolute_cosine_{when}",
            f"Mean |cos| of {words}",
            rf"\frac{{2}}{{K(K-1)}} \sum_{{i<j}}"
            rf" \frac{{|{inner}|}}{{\|{vector}_i\| \, \|{vector}_j\|}}",
            "0: no pair interferes. The vectors of the whole part are compared, so that tensors"
            " of opposite sign cancel.",
            "Xiong et al., arXiv 2411.18729, Eq. 9",
            lambda view, scope: mean_absolute_cosine(view, scope, when),
        ),
        _measure(
            f"mean_cosine_{when}",
            f"Mean signed cosine of {words}",
            rf"\frac{{2}}{{K(K-1)}} \sum_{{i<j}}"
            rf" \frac{{{inner}}}{{\|{vector}_i\| \, \|{vector}_j\|}}",
            "Positive: the experts share a direction. Pairs that pull together and pairs that"
            " oppose each other cancel, so 0 need not mean that nothing interferes.",
            "Ilharco et al., arXiv 2212.04089, section 5",
            lambda view, scope: mean_cosine(view, scope, when),
            better=None,
        ),
        _measure(
            f"mean_absolute_cosine_by_tensors_{when}",
            f"Mean |cos| of {words} over tensors, each alike",
            rf"\frac{{1}}{{T}} \sum_l m_l, \quad m_l = \frac{{2}}{{K(K-1)}}"
            rf" \sum_{{i<j}} \frac{{|{inner_l}|}}{{{norms_l}}}",
            "Each tensor l is compared on its own and counts alike: small ones, whose cosines are"
            " large by chance, weigh as much as large ones.",
            "ours",
            lambda view, scope: by_tensors(view, scope, when),
        ),
        _measure(
            f"mean_absolute_cosine_by_parameters_{when}",
            f"Mean |cos| of {words} over tensors, by parameters",
            rf"\frac{{\sum_l n_l \, m_l}}{{\sum_l n_l}}, \quad m_l = \frac{{2}}{{K(K-1)}}"
            rf" \sum_{{i<j}} \frac{{|{inner_l}|}}{{{norms_l}}}",
            "Each tensor l is compared on its own and weighted by its number of elements n_l:"
            " nothing cancels between tensors.",
            "ours",
            lambda view, scope: by_parameters(view, scope, when),
        ),
        _measure(
            f"mean_absolute_cosine_by_energy_{when}",
            f"Mean |cos| of {words} over tensors, by energy",
            rf"\frac{{\sum_l \sum_{{i<j}} |{inner_l}|}}{{\sum_l \sum_{{i<j}} {norms_l}}}",
            "Each tensor l is compared on its own and weighted by how far the experts moved it:"
            " nothing cancels between tensors.",
            "ours",
            lambda view, scope: by_energy(view, scope, when),
        ),
    )


MEASURES = (
    *_family("before", r"\tau", "task vectors"),
    *_family("after", "v", "disentangled vectors"),
)
