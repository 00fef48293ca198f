"""Pairwise cosine, signed."""

import numpy as np

from analysis.measure import Measure

_READING = (
    "0: the two do not interfere. Positive: they pull the same way; negative: against each other."
)

COSINE_BEFORE = Measure(
    key="cosine_before",
    title="Cosine of task vectors",
    formula=r"\cos(\tau_i, \tau_j) ="
    r" \frac{\langle \tau_i, \tau_j \rangle}{\|\tau_i\| \, \|\tau_j\|}",
    reading=_READING,
    unit="1",
    per="pair",
    better=None,
    needs="gram",
    baseline=0.0,
    source="Ilharco et al., arXiv 2212.04089, section 5",
    of=lambda view, scope: view.cosines(scope, "before"),
)

COSINE_AFTER = Measure(
    key="cosine_after",
    title="Cosine of disentangled vectors",
    formula=r"\cos(\tau_i - \delta, \tau_j - \delta)",
    reading=_READING,
    unit="1",
    per="pair",
    better=None,
    needs="gram",
    baseline=0.0,
    source="Xiong et al., arXiv 2411.18729, Eq. 9",
    of=lambda view, scope: view.cosines(scope, "after"),
)

ABSOLUTE_BEFORE = Measure(
    key="absolute_cosine_before",
    title="Absolute cosine of task vectors",
    formula=r"|\cos(\tau_i, \tau_j)|",
    reading="0: the two do not interfere. 1: one direction, the same way or opposed.",
    unit="1",
    per="pair",
    better="lower",
    needs="gram",
    baseline=0.0,
    source="Xiong et al., arXiv 2411.18729, Eq. 9",
    of=lambda view, scope: np.abs(view.cosines(scope, "before")),
)

ABSOLUTE_AFTER = Measure(
    key="absolute_cosine_after",
    title="Absolute cosine of disentangled vectors",
    formula=r"|\cos(\tau_i - \delta, \tau_j - \delta)|",
    reading="0: the two do not interfere. 1: one direction, the same way or opposed.",
    unit="1",
    per="pair",
    better="lower",
    needs="gram",
    baseline=0.0,
    source="Xiong et al., arXiv 2411.18729, Eq. 9",
    of=lambda view, scope: np.abs(view.cosines(scope, "after")),
)

MEASURES = (COSINE_BEFORE, COSINE_AFTER, ABSOLUTE_BEFORE, ABSOLUTE_AFTER)
