"""The sidebar: every slider that decides a merge, shared by all pages."""

from dataclasses import Field
from typing import Any

import streamlit as st

import awd_core as awd
from awd_core import Study
from awd_core.knobs import Value
from awd_core.method import MergeMethod
from dashboard import state
from dashboard.awd_controls import awd_controls
from dashboard.evaluations import is_zoo
from dashboard.state import Setting

EQUALISE_HELP = """
Scales every task vector to their mean length before anything else. A merge and AWD react to lengths
as well as to directions: a long task vector pulls more, AWD amplifies the shortest one.
"""


def sidebar(study: Study) -> tuple[Study, Setting]:
    """Draw the sidebar and read it: the study to look at, and the setting."""
    with st.sidebar:
        _headline(study)
        equalise = st.toggle(
            "Equalise norms first", key="equalise", help=EQUALISE_HELP, bind="query-params"
        )
        if equalise:
            study = state.equalised(study)
        st.subheader("Redundant vector (AWD)", divider="gray")
        disentangle = awd_controls(study)
        method, coefficients, knobs = _merge(study)
    return study, Setting(disentangle, method.key, coefficients, knobs, equalise)


def _headline(study: Study) -> None:
    name = "The zoo" if is_zoo(study) else study.path.name if study.path else "Study"
    st.markdown(f"**{name}**: {study.base.label} and {study.n_experts} experts")
    n_elements = sum(tensor.n_elements for tensor in study.tensors)
    st.caption(
        f"{n_elements / 1e6:,.1f} M parameters, {len(study.tensors)} tensors."
        + (" Other models: page Open." if is_zoo(study) else "")
    )


def _merge(
    study: Study,
) -> tuple[type[MergeMethod], tuple[float, ...], tuple[tuple[str, Value], ...]]:
    st.subheader("Merge", divider="gray")
    keys = [method.key for method in awd.METHODS if _offered(method, study)]
    key = st.selectbox(
        "Method",
        keys,
        format_func=lambda key: awd.find_method(key).title,
        key="method",
        bind="query-params",
    )
    method = awd.find_method(key)
    knobs = tuple((knob.name, _knob(key, knob)) for knob in method.knobs())
    return method, _coefficients(study, method), knobs


def _offered(method: type[MergeMethod], study: Study) -> bool:
    """Whether a method can follow AWD on as many experts as there are, into one model."""
    most = method.most_experts or study.n_experts
    fits = method.least_experts <= study.n_experts <= most
    return fits and method.takes_task_vectors and not method.needs_task


def _knob(method: str, knob: Field[Any]) -> Value:
    label, bounds = knob.name.capitalize(), knob.metadata
    options: dict[str, Any] = {
        "help": bounds["help"],
        "key": f"knob_{method}_{knob.name}",
        "bind": "query-params",
    }
    if isinstance(knob.default, bool):
        return st.toggle(label, knob.default, **options)
    if "choices" in bounds:
        choices = list(bounds["choices"])
        return st.selectbox(label, choices, choices.index(knob.default), **options)
    if isinstance(knob.default, int):
        return st.slider(label, int(bounds["low"]), int(bounds["high"]), knob.default, **options)
    assert isinstance(knob.default, float)
    return st.slider(label, float(bounds["low"]), float(bounds["high"]), knob.default, **options)


def _coefficients(study: Study, method: type[MergeMethod]) -> tuple[float, ...]:
    if not method.takes_coefficients:
        st.caption(f"{method.title} has no coefficient to set.")
        return (1.0 / study.n_experts,) * study.n_experts
    one = st.slider(
        "Coefficient λ",
        *state.COEFFICIENTS,
        method.default_coefficient,
        state.COEFFICIENT_STEP,
        # A slider of another method starts at that method's own default.
        key=state.coefficient_key(method),
        help="How much of every (disentangled) task vector is added to the base.",
        bind="query-params",
    )
    with st.expander("λ for each expert"):
        apart = st.toggle(
            "Set them one by one",
            key="apart",
            help="λ above is then the start for each.",
            bind="query-params",
        )
        return tuple(
            st.slider(
                label,
                -1.0,
                2.0,
                one,
                state.COEFFICIENT_STEP,
                key=f"lambda_of_{label}",
                bind="query-params",
            )
            if apart
            else one
            for label in study.experts
        )
