"""What a measure is: one defined number with formula, unit, scope and direction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.view import SCOPES, Scope, View
from awd_core.study import Study

Per = Literal["part", "expert", "pair"]
Direction = Literal["lower", "higher"]
Needs = Literal["gram", "elements", "spectra"]
Of = Callable[[View, Scope], np.ndarray]


@dataclass(frozen=True)
class Measure:
    r"""One defined number.

    Attributes:
        key: Its name in code and files.
        title: Its name on screen.
        formula: LaTeX. `\tau_k` are task vectors of the part (model, block, kind or tensor) that
            is looked at, `v_k = \tau_k - \delta`, `\tau_M = \sum_k \lambda_k v_k`.
        reading: How to read it, in a sentence.
        unit: `1` for a pure number.
        per: Whether there is one value for each part, each expert or each pair of experts.
        better: Which direction is better; None where neither is as such.
        needs: What of the study it is made from; `gram` is exact for every linear merge, the
            others are of the task vectors before AWD. `spectra` is a level collected on demand.
        baseline: Value for random directions or fair coins; None where there is none.
        source: Paper, or `ours`.
        of: The values for all parts of a scope: (parts,), (parts, K) or (parts, K, K). NaN where
            the number does not exist.
        scopes: Where it is defined.
        symmetric: Whether a pair's value is the same both ways; else (i, j) is "i, seen from j".
        of_merge: Whether it is of `\tau_M`, the linear merge; that of another method needs weights.
    """

    key: str
    title: str
    formula: str
    reading: str
    unit: str
    per: Per
    better: Direction | None
    needs: Needs
    baseline: float | None
    source: str
    of: Of
    scopes: tuple[Scope, ...] = SCOPES
    symmetric: bool = True
    of_merge: bool = False

    def available(self, study: Study) -> bool:
        """Whether the study holds what it is made from."""
        return self.needs != "spectra" or study.has_spectra
