"""Tidy tables of one view: one row, one value of each measure; columns named in each docstring.

A part of the scope `model` is called `model`; blocks, kinds and tensors come in file order,
experts and pairs in the study's order. A number that does not exist is NaN.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from analysis.arithmetic import mean, pairs
from analysis.measure import Of
from analysis.measures import (
    mean_absolute_cosine,
    measure,
    merged_norm,
    multiplier_share,
    redundant_norm,
    retained_signal,
    sign_conflict,
    task_vector_norm,
)
from analysis.view import Scope, View, When
from awd_core.disentangle import AlphaPath
from awd_core.evaluation.accuracy import TaskAccuracy, mean_accuracy

MEAN = "mean"
MODEL = "model"
CRITICAL, KNEE = "alpha_crit", "knee"


def pair_label(first: str, second: str) -> str:
    """How a pair of experts is called."""
    return f"{first} × {second}"


# --- pairs ---------------------------------------------------------------------------------------


def pair_by(view: View, scope: Scope, when: When = "before") -> pd.DataFrame:
    """Cosine of every pair in every part: [pair, expert_i, expert_j, <scope>, cosine]."""
    return _pairs_table(view, scope, "cosine", view.cosines(scope, when))


def pair_by_block(view: View, when: When = "before") -> pd.DataFrame:
    """[pair, expert_i, expert_j, block, cosine]; empty with one expert."""
    return pair_by(view, "block", when)


def pair_by_kind(view: View, when: When = "before") -> pd.DataFrame:
    """[pair, expert_i, expert_j, kind, cosine]; empty with one expert."""
    return pair_by(view, "kind", when)


def pair_by_tensor(view: View, block: str, when: When = "before") -> pd.DataFrame:
    """[pair, expert_i, expert_j, tensor, cosine] for the tensors of one block."""
    inside = _tensors_of(view, block)
    cosines = view.cosines("tensor", when)[inside]
    names = tuple(view.study.tensors[position].name for position in inside)
    return _pairs_table(view, "tensor", "cosine", cosines, names)


def pair_sign_by_block(view: View, density: float = 0.2) -> pd.DataFrame:
    """[pair, expert_i, expert_j, block, conflict]; 0.5 is chance, NaN where nothing overlaps.

    `density` is one of `awd_core.elements.DENSITIES`.
    """
    conflict = sign_conflict.sign_conflict(view, "block", density)
    return _pairs_table(view, "block", "conflict", conflict)


def matrix(
    view: View, scope: Scope = "model", name: str = MODEL, when: When = "before"
) -> pd.DataFrame:
    """`cos(v_i, v_j)` in one part, K x K, labelled by experts; 1 on the diagonal by definition.

    Raises:
        ValueError: The scope has no part of this name.
    """
    return _square(view, view.cosines(scope, when)[view.labels(scope).index(name)])


def sign_matrix(view: View, block: str | None = None, density: float = 0.2) -> pd.DataFrame:
    """Sign conflict in one block or, with None, in the whole model, K x K; 0 on the diagonal."""
    scope: Scope = "model" if block is None else "block"
    position = view.labels(scope).index(block or MODEL)
    return _square(view, sign_conflict.sign_conflict(view, scope, density)[position])


# --- norms ---------------------------------------------------------------------------------------


def norms_by_block(view: View) -> pd.DataFrame:
    """Task vectors: [block, expert, norm, relative_norm, rms].

    `relative_norm` is relative to the base's norm of the block.
    """
    return _experts_table(
        view,
        "block",
        view.labels("block"),
        norm=task_vector_norm.norm(view, "block"),
        relative_norm=task_vector_norm.relative_norm(view, "block"),
        rms=task_vector_norm.rms(view, "block"),
    )


def redundant_by_block(view: View) -> pd.DataFrame:
    """The redundant vector: [block, norm, relative_norm]; block `model` comes last.

    `relative_norm` is relative to the mean task-vector norm of the same part.
    """
    return pd.DataFrame(
        {
            "block": _column(_blocks_and_model(view)),
            "norm": _with_model(view, redundant_norm.norm),
            "relative_norm": _with_model(view, redundant_norm.relative_norm),
        }
    )


def merged_norm_by_block(view: View) -> pd.DataFrame:
    """[block, norm, relative_to_experts, relative_to_task_arithmetic]; block `model` comes last."""
    of_task_arithmetic = merged_norm.relative_to_task_arithmetic
    return pd.DataFrame(
        {
            "block": _column(_blocks_and_model(view)),
            "norm": _with_model(view, merged_norm.norm),
            "relative_to_experts": _with_model(view, merged_norm.relative_to_experts),
            "relative_to_task_arithmetic": _with_model(view, of_task_arithmetic),
        }
    )


# --- the merge -----------------------------------------------------------------------------------


def shares_by_block(view: View) -> pd.DataFrame:
    """[block, expert, share, multiplier]: w_k / lambda and w_k; block `model` comes last."""
    return _experts_table(
        view,
        "block",
        _blocks_and_model(view),
        share=_with_model(view, multiplier_share.share),
        multiplier=_with_model(view, multiplier_share.effective_multiplier),
    )


def retained(view: View) -> pd.DataFrame:
    """Over the whole model: [expert, retained, alignment]."""
    return pd.DataFrame(
        {
            "expert": _column(view.experts),
            "retained": retained_signal.retained(view, "model")[0],
            "alignment": retained_signal.alignment(view, "model")[0],
        }
    )


def loss_trace(view: View) -> pd.DataFrame:
    """AWD's objective, averaged over its groups: [step, loss]; step 0 is before the first."""
    losses = view.disentangled.losses
    return pd.DataFrame({"step": np.arange(len(losses)), "loss": losses})


def alpha_path(path: AlphaPath) -> pd.DataFrame:
    """What alpha decides at granularity `model`, one row for each alpha, ascending.

    [alpha, share, mean_absolute_cosine, relative_redundant_norm, retained_norm, mark]: `share` is
    alpha / alpha_crit, NaN where alpha_crit is 0; `mark` is `alpha_crit`, `knee` or empty.
    """
    marks = np.full(len(path.alpha), "", dtype=object)
    if path.knee is not None:
        marks[path.knee] = KNEE
    marks[path.alpha == path.critical] = CRITICAL
    return pd.DataFrame(
        {
            "alpha": path.alpha,
            "share": path.alpha / (path.critical or np.nan),
            "mean_absolute_cosine": path.mean_absolute_cosine,
            "relative_redundant_norm": path.relative_redundant_norm,
            "retained_norm": path.retained_norm,
            "mark": marks,
        }
    )


def alpha_setting(view: View) -> pd.DataFrame:
    """This setting in the columns of `alpha_path`; no row where it has no place on that path.

    It has one at granularity `model` with penalty l2. After a number of steps it may lie off the
    curves, which are descended until they converge.
    """
    solved = view.disentangled
    settings = solved.settings
    columns = ["alpha", "share", "mean_absolute_cosine", "relative_redundant_norm", "retained_norm"]
    on_path = settings.granularity == "model" and settings.penalty == "l2" and settings.steps > 0
    if not on_path or not solved.critical_alpha[0] > 0:
        return pd.DataFrame(columns=columns, dtype=float)
    alpha = float(solved.alpha[0])
    numbers = (
        alpha,
        alpha / float(solved.critical_alpha[0]),
        solved.mean_absolute_cosine[1],
        solved.relative_redundant_norm,
        solved.retained_norm,
    )
    return pd.DataFrame([numbers], columns=columns)


# --- one row a tensor ----------------------------------------------------------------------------


def tensor_table(view: View, block: str | None = None) -> pd.DataFrame:
    """The tensors of a block, or all of them.

    [tensor, block, kind, shape, elements, mean_norm, mean_relative_norm, cosine_before,
    cosine_after, cosine_by_chance, redundant_norm]: norms are means over experts, cosines means
    of |cos| over pairs, `redundant_norm` is relative to `mean_norm`. `cosine_by_chance` is the
    mean |cos| of random directions, sqrt(2 / (pi n)): what lies near it says nothing.
    """
    inside = _tensors_of(view, block)
    tensors = [view.study.tensors[position] for position in inside]
    elements = view.n_elements("tensor")
    columns = {
        "elements": elements,
        "mean_norm": mean(task_vector_norm.norm(view, "tensor")),
        "mean_relative_norm": mean(task_vector_norm.relative_norm(view, "tensor")),
        "cosine_before": mean_absolute_cosine.mean_absolute_cosine(view, "tensor", "before"),
        "cosine_after": mean_absolute_cosine.mean_absolute_cosine(view, "tensor", "after"),
        "cosine_by_chance": np.minimum(1.0, np.sqrt(2 / np.pi / np.maximum(elements, 1))),
        "redundant_norm": redundant_norm.relative_norm(view, "tensor"),
    }
    return pd.DataFrame(
        {
            "tensor": [tensor.name for tensor in tensors],
            "block": [tensor.block for tensor in tensors],
            "kind": [tensor.kind for tensor in tensors],
            "shape": [" × ".join(map(str, tensor.shape)) or "scalar" for tensor in tensors],
            **{name: values[inside] for name, values in columns.items()},
        }
    )


# --- the few numbers to say first ----------------------------------------------------------------

# (key without AWD, key with AWD); numbers per expert are averaged over experts.
_HEADLINES = (
    ("mean_absolute_cosine_before", "mean_absolute_cosine_after"),
    ("mean_absolute_cosine_by_energy_before", "mean_absolute_cosine_by_energy_after"),
    ("relative_redundant_norm", "relative_redundant_norm"),
    ("retained_signal", "retained_signal"),
    ("alignment", "alignment"),
    ("merged_norm", "merged_norm"),
    ("merged_norm_relative_to_experts", "merged_norm_relative_to_experts"),
)


def summary(view: View) -> pd.DataFrame:
    """Headline numbers of the whole model: [key, title, unit, better, before, after].

    `before` is the same merge without AWD; retained signal and alignment are means over experts.
    """
    rows = []
    for before, after in _HEADLINES:
        shown = measure(after)
        values = [
            float(mean(np.ravel(found.of(setting, "model"))))
            for setting, found in ((view.plain, measure(before)), (view, shown))
        ]
        rows.append((shown.key, shown.title, shown.unit, shown.better, *values))
    return pd.DataFrame(rows, columns=["key", "title", "unit", "better", "before", "after"])


# --- accuracy ------------------------------------------------------------------------------------


def accuracies(settings: Mapping[str, Sequence[TaskAccuracy]]) -> pd.DataFrame:
    """Accuracy per task of several models: [setting, task, accuracy, standard_error, n].

    The last task of every setting is `mean`: (1/T) sum_t a_t, with the standard error
    (1/T) sqrt(sum_t se_t^2).

    Args:
        settings: For instance `base`, `experts`, `this setting`, in the order of their bars.
    """
    rows = []
    for setting, found in settings.items():
        rows += [(setting, one.task, one.accuracy, one.standard_error, one.n) for one in found]
        if found:
            rows.append((setting, MEAN, *_mean_accuracy(found)))
    return pd.DataFrame(rows, columns=["setting", "task", "accuracy", "standard_error", "n"])


def _mean_accuracy(found: Sequence[TaskAccuracy]) -> tuple[float, float, int]:
    error = float(np.sqrt(sum(one.standard_error**2 for one in found))) / len(found)
    return mean_accuracy(found), error, sum(one.n for one in found)


# --- from arrays to rows -------------------------------------------------------------------------


def _pairs_table(
    view: View,
    scope: Scope,
    column: str,
    values: np.ndarray,
    labels: tuple[str, ...] | None = None,
) -> pd.DataFrame:
    """(parts, K, K) -> one row for each pair and part, pairs outermost."""
    labels = view.labels(scope) if labels is None else labels
    names, firsts, seconds = _pair_names(view.experts)
    return pd.DataFrame(
        {
            "pair": _column(names, each=len(labels)),
            "expert_i": _column(firsts, each=len(labels)),
            "expert_j": _column(seconds, each=len(labels)),
            scope: _column(labels, times=len(names)),
            column: values[:, *pairs(view.n_experts)].T.ravel(),
        }
    )


def _experts_table(
    view: View, column: str, labels: tuple[str, ...], **values: np.ndarray
) -> pd.DataFrame:
    """(parts, K) each -> one row for each part and expert, parts outermost."""
    return pd.DataFrame(
        {
            column: _column(labels, each=view.n_experts),
            "expert": _column(view.experts, times=len(labels)),
            **{name: found.ravel() for name, found in values.items()},
        }
    )


def _with_model(view: View, of: Of) -> np.ndarray:
    """The values of all blocks, then those of the whole model."""
    return np.concatenate([of(view, "block"), of(view, "model")])


def _blocks_and_model(view: View) -> tuple[str, ...]:
    return (*view.labels("block"), MODEL)


def _square(view: View, values: np.ndarray) -> pd.DataFrame:
    names = pd.Index(_column(view.experts))
    return pd.DataFrame(values, index=names, columns=names)


@lru_cache(maxsize=64)
def _pair_names(experts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Every pair's name, its first expert and its second."""
    both = [(experts[i], experts[j]) for i, j in zip(*pairs(len(experts)), strict=True)]
    names = tuple(pair_label(*pair) for pair in both)
    return names, tuple(first for first, _ in both), tuple(second for _, second in both)


@lru_cache(maxsize=256)
def _column(
    names: tuple[str, ...], each: int = 1, times: int = 1
) -> pd.api.extensions.ExtensionArray:
    """Names, each repeated, and the whole repeated; kept, because making text columns is slow."""
    return pd.array(np.tile(np.repeat(np.array(names, dtype=object), each), times), dtype="str")


def _tensors_of(view: View, block: str | None) -> np.ndarray:
    """Positions of a block's tensors; of all with None.

    Raises:
        ValueError: There is no such block.
    """
    if block is None:
        return np.arange(len(view.study.tensors))
    return np.flatnonzero(view.positions("block") == view.labels("block").index(block))
