"""The part of the sidebar that follows from METHODS: method, preset, knobs and coefficients."""

from dataclasses import Field
from typing import Any

import streamlit as st

import awd_core as awd
from awd_core import Study
from awd_core.knobs import Value
from awd_core.method import MergeMethod
from dashboard import state

Knobs = tuple[tuple[str, Value], ...]

METHOD_HELP = "How the (disentangled) task vectors become one model; page Merge says more of each."
LAMBDA_HELP = "How much of every (disentangled) task vector is added to the base."


def merge_controls(study: Study) -> tuple[type[MergeMethod], tuple[float, ...], Knobs]:
    """Draw them and read them."""
    offered = {method.key: method for method in fitting_methods(study.n_experts)}
    state.forget_unless("method", tuple(offered))
    key = st.selectbox(
        "Method",
        tuple(offered),
        format_func=lambda key: offered[key].title,
        key="method",
        help=METHOD_HELP,
        bind="query-params",
    )
    method = offered[key]
    if method.presets:
        st.selectbox(
            "Preset of the method",
            (None, *method.presets),
            format_func=lambda name: name or "own defaults",
            key=f"preset_{key}",
            on_change=_take_preset,
            args=(method,),
            help="\n".join(f"- **{name}**: {one.note}" for name, one in method.presets.items()),
            bind="query-params",
        )
    coefficients = _coefficients(study, method)
    knobs: Knobs = ()
    if method.knobs():
        with st.expander(f"Knobs of {method.title}", expanded=len(method.knobs()) < 4):
            knobs = tuple((knob.name, _knob(method, knob)) for knob in method.knobs())
    return method, coefficients, knobs


def fitting_methods(n_experts: int) -> tuple[type[MergeMethod], ...]:
    """The methods that can merge so many experts into one model."""
    return tuple(
        method
        for method in awd.METHODS
        if method.least_experts <= n_experts <= (method.most_experts or n_experts)
        and not method.needs_task
    )


def knob_key(method: type[MergeMethod], name: str) -> str:
    """The key of a knob's widget."""
    return f"knob_{method.key}_{name}"


def _take_preset(method: type[MergeMethod]) -> None:
    """Set knobs and coefficient to those of the chosen preset."""
    name = st.session_state[f"preset_{method.key}"]
    preset = method.presets[name] if name else None
    for knob in method.knobs():
        value: Any = knob.default
        if preset is not None:
            value = preset.knobs.get(knob.name, value)
        st.session_state[knob_key(method, knob.name)] = value
    coefficient = preset.coefficient if preset is not None else None
    if coefficient is None:
        coefficient = method.default_coefficient
    if method.takes_coefficients:
        st.session_state[state.coefficient_key(method)] = float(coefficient)


def _knob(method: type[MergeMethod], knob: Field[Any]) -> Value:
    bounds = knob.metadata
    label = knob.name.replace("_", " ").capitalize()
    options: dict[str, Any] = {
        "key": knob_key(method, knob.name),
        "help": bounds["help"],
        "bind": "query-params",
    }
    if isinstance(knob.default, bool):
        return st.toggle(label, value=knob.default, **options)
    if "choices" in bounds:
        choices = tuple(bounds["choices"])
        return st.selectbox(label, choices, index=choices.index(knob.default), **options)
    default: Any = knob.default
    kind = int if isinstance(default, int) else float
    low, high, start = kind(bounds["low"]), kind(bounds["high"]), kind(default)
    if kind is float and high - low <= 20:
        return st.slider(label, low, high, start, **options)
    return st.number_input(label, low, high, start, **options)


def _coefficients(study: Study, method: type[MergeMethod]) -> tuple[float, ...]:
    if not method.takes_coefficients:
        st.caption("This method weighs the experts itself; there is no coefficient to set.")
        return (1.0 / study.n_experts,) * study.n_experts
    weights = method.coefficients_are == "weights"
    low, high = state.COEFFICIENTS
    one = st.slider(
        "Weight of every expert" if weights else "Coefficient λ",
        low,
        max(high, method.default_coefficient),
        method.default_coefficient,
        state.COEFFICIENT_STEP,
        # A slider of another method starts at that method's own default.
        key=state.coefficient_key(method),
        help="Only the ratios between experts count." if weights else LAMBDA_HELP,
        bind="query-params",
    )
    if method.one_coefficient:
        return (one,) * study.n_experts
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
