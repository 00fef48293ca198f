"""The sidebar: every slider that decides a merge, shared by all pages."""

from dataclasses import Field
from typing import Any, cast

import numpy as np
import streamlit as st

import awd_core as awd
from awd_core import Settings, Study
from awd_core.disentangle import Granularity
from awd_core.disentangle.groups import granularities
from awd_core.disentangle.settings import RELATIVE_LR
from awd_core.method import MergeMethod
from dashboard import state
from dashboard.evaluations import is_zoo
from dashboard.state import Setting

CRITICAL = 1.0
# Fractions of alpha_crit: three to a decade, closer together where AWD stops acting.
FRACTIONS = (
    0.0,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    0.7,
    0.9,
    CRITICAL,
    2.0,
)
STEPS = (10, 30, 100, 300, 1000, 3000)
RELATIVE, PAPER = "share of α_crit", "paper's units"

GRANULARITY_HELP = """
What shares the coefficients of one redundant vector δ:
- **model**: one δ for everything, the paper as quoted; AWD then only re-weights experts
- **block**: one for each transformer block
- **tensor**: one for each named parameter
- **row**: one for each output row of a matrix (the authors' later code)
- **spectral**: one for each direction of the summed task vectors (ours; where the study has it)
"""
ALPHA_HELP = """
The norm constraint α: how much a long redundant vector costs. The loss is the mean |cos| between
the task vectors after subtraction, plus α‖δ‖. At **α_crit** and above, δ stays 0 and AWD does
nothing; at 0 only orthogonality counts.
"""


def sidebar(study: Study) -> Setting:
    """Draw the sidebar and read it."""
    with st.sidebar:
        _headline(study)
        disentangle = _disentangle(study)
        method, coefficients, knobs = _merge(study)
    return Setting(disentangle, method.key, coefficients, knobs)


def _headline(study: Study) -> None:
    name = "The zoo" if is_zoo(study) else study.path.name if study.path else "Study"
    st.markdown(f"**{name}**: {study.base.label} and {study.n_experts} experts")
    n_elements = sum(tensor.n_elements for tensor in study.tensors)
    st.caption(
        f"{n_elements / 1e6:,.1f} M parameters, {len(study.tensors)} tensors."
        + (" Other models: page Open." if is_zoo(study) else "")
    )


def _disentangle(study: Study) -> Settings | None:
    st.subheader("Redundant vector (AWD)", divider="gray")
    on = st.toggle("Subtract it from every task vector", value=True, key="awd", bind="query-params")
    granularity = st.segmented_control(
        "Granularity",
        granularities(study),
        default="model",
        required=True,
        key="granularity",
        help=GRANULARITY_HELP,
        disabled=not on,
        bind="query-params",
    )
    chosen = cast(Granularity, granularity or "model")
    fields = _alpha(study, chosen, disabled=not on)
    steps = st.select_slider(
        "Descent steps",
        STEPS,
        value=300,
        key="steps",
        help="Steps of gradient descent from δ = 0. The paper takes 300.",
        disabled=not on,
        bind="query-params",
    )
    if not on:
        return None
    return Settings.model_validate({"granularity": chosen, "steps": steps, **fields})


def _alpha(study: Study, granularity: Granularity, *, disabled: bool) -> dict[str, float]:
    """The slider of the norm constraint, and the fields of `Settings` that it means."""
    critical = _critical_alphas(study, granularity)
    middle = float(np.median(critical)) if len(critical) else 0.0
    units = st.segmented_control(
        "Norm constraint α in",
        (RELATIVE, PAPER),
        default=RELATIVE,
        required=True,
        key="alpha_units",
        disabled=disabled,
        bind="query-params",
    )
    if units == PAPER:
        values = sorted({0.0, 0.1, *np.geomspace(1e-4, 10, 31).round(5).tolist(), middle})
        alpha = st.select_slider(
            "Norm constraint α",
            values,
            value=0.1,
            format_func=lambda value: f"{value:.3g}" + (" = α_crit" if value == middle else ""),
            key="alpha_paper",
            help=ALPHA_HELP,
            disabled=disabled,
        )
        _say_critical(critical, middle, granularity)
        return {"alpha": float(alpha)}
    fraction = st.select_slider(
        "Norm constraint α",
        FRACTIONS,
        value=0.1,
        format_func=lambda value: "α_crit" if value == CRITICAL else f"{value:g} α_crit",
        key="alpha",
        help=ALPHA_HELP,
        disabled=disabled,
        bind="query-params",
    )
    _say_critical(critical, middle, granularity, float(fraction))
    return {"alpha_relative": float(fraction), "lr_relative": RELATIVE_LR}


def _critical_alphas(study: Study, granularity: Granularity) -> np.ndarray:
    solved = state.solved(study, Settings(granularity=granularity, steps=0))
    return solved.critical_alpha[solved.critical_alpha > 0]


def _say_critical(
    critical: np.ndarray, middle: float, granularity: str, fraction: float | None = None
) -> None:
    if not len(critical):
        st.caption("All task vectors are orthogonal already: there is nothing to disentangle.")
    elif granularity == "model":
        paper = "" if fraction is None else f"; α = {fraction * middle:.3g} in the paper's units"
        st.caption(f"α_crit = {middle:.3g}{paper}.")
    else:
        st.caption(
            f"Each {granularity} has its own α_crit: {critical.min():.3g} to"
            f" {critical.max():.3g}, median {middle:.3g}, in the paper's units."
        )


def _merge(
    study: Study,
) -> tuple[type[MergeMethod], tuple[float, ...], tuple[tuple[str, float], ...]]:
    st.subheader("Merge", divider="gray")
    keys = [method.key for method in awd.METHODS]
    key = st.selectbox(
        "Method",
        keys,
        format_func=lambda key: awd.find_method(key).title,
        key="method",
        bind="query-params",
    )
    method = awd.find_method(key)
    knobs = tuple(
        (
            knob.name,
            st.slider(
                knob.name.capitalize(),
                float(knob.metadata["low"]),
                float(knob.metadata["high"]),
                _default(knob),
                help=knob.metadata["help"],
                key=f"knob_{key}_{knob.name}",
            ),
        )
        for knob in method.knobs()
    )
    return method, _coefficients(study, method), knobs


def _default(knob: Field[Any]) -> float:
    assert isinstance(knob.default, float)
    return knob.default


def _coefficients(study: Study, method: type[MergeMethod]) -> tuple[float, ...]:
    if not method.takes_coefficients:
        st.caption("The average takes every expert with 1/K; there is no coefficient to set.")
        return (1.0 / study.n_experts,) * study.n_experts
    one = st.slider(
        "Coefficient λ",
        0.0,
        2.0,
        method.default_coefficient,
        0.05,
        # A slider of another method starts at that method's own default.
        key="lambda" if method.key == "task_arithmetic" else f"lambda_{method.key}",
        help="How much of every (disentangled) task vector is added to the base.",
        bind="query-params",
    )
    with st.expander("λ for each expert"):
        apart = st.toggle(
            "Set them one by one", key="apart", help="λ above is then the start for each."
        )
        return tuple(
            st.slider(label, -1.0, 2.0, one, 0.05, key=f"lambda_of_{label}") if apart else one
            for label in study.experts
        )
