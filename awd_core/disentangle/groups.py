"""A study cut into the groups that share one redundant vector's coefficients."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from awd_core.disentangle.objective import critical_alphas, mean_norms
from awd_core.disentangle.settings import Granularity
from awd_core.study import Study


@dataclass(frozen=True)
class Groups:
    """The groups of one granularity.

    Attributes:
        granularity: Which one.
        labels: A name for every group; rows of one matrix share the name of their tensor.
        grams: (groups, K, K) float64.
        of_tensor: For every tensor of the study, its groups: one, or one for each row.
    """

    granularity: Granularity
    labels: tuple[str, ...]
    grams: np.ndarray
    of_tensor: tuple[slice, ...]

    @property
    def by_row(self) -> bool:
        """Whether a matrix has many groups, one for each (rotated) row."""
        return self.granularity in ("row", "spectral")

    @cached_property
    def critical_alpha(self) -> np.ndarray:
        """alpha_crit of every group in the paper's units, (groups,)."""
        return critical_alphas(self.grams)

    @cached_property
    def scale(self) -> np.ndarray:
        """`s = mean_k ||tau_k||` of every group, (groups,)."""
        return mean_norms(self.grams)

    @cached_property
    def n_siblings(self) -> np.ndarray:
        """How many groups the tensor of every group has: its rows at `row`, else 1; (groups,)."""
        counts = np.ones(len(self.labels))
        if self.by_row:
            for groups_of in self.of_tensor:
                counts[groups_of] = groups_of.stop - groups_of.start
        return counts


def groups(study: Study, granularity: Granularity) -> Groups:
    """Cut a study.

    Raises:
        StudyError: Granularity `row` or `spectral` on a study without that level.
    """
    if granularity in ("row", "spectral"):
        return _rows(study, granularity)
    if granularity == "model":
        labels, positions = ("model",), [0] * len(study.tensors)
    elif granularity == "block":
        labels = study.blocks
        positions = [labels.index(tensor.block) for tensor in study.tensors]
    else:
        labels = tuple(tensor.name for tensor in study.tensors)
        positions = list(range(len(labels)))
    grams = np.zeros((len(labels), study.n_experts, study.n_experts))
    np.add.at(grams, positions, study.grams)
    return Groups(
        granularity, labels, grams, tuple(slice(position, position + 1) for position in positions)
    )


def granularities(study: Study) -> tuple[Granularity, ...]:
    """What can be solved from this study, from coarse to fine."""
    always: tuple[Granularity, ...] = ("model", "block", "tensor")
    rows: tuple[Granularity, ...] = ("row",) if study.has_rows else ()
    return always + rows + (("spectral",) if study.has_spectral else ())


def _rows(study: Study, granularity: Granularity) -> Groups:
    grams_of = study.row_gram if granularity == "row" else study.spectral_gram
    grams, labels, of_tensor, start = [], [], [], 0
    for position, tensor in enumerate(study.tensors):
        # A matrix that no expert touched needs one group, not one for each of its rows.
        touched = study.grams[position].any()
        rows = grams_of(tensor.name) if touched else study.grams[position][None]
        grams.append(rows)
        labels += [tensor.name] * len(rows)
        of_tensor.append(slice(start, start + len(rows)))
        start += len(rows)
    return Groups(granularity, tuple(labels), np.concatenate(grams), tuple(of_tensor))
