"""Tune: what the redundant vector and the coefficients do, and what the merge then knows."""

import streamlit as st

from analysis import block_factors, figures, tables
from analysis.view import View
from analysis.words import signed
from awd_core import Study
from dashboard import comparison, journal, state
from dashboard.accuracy_panel import accuracy_panel
from dashboard.charts import chart, cosine_matrices, cosine_metric, theme
from dashboard.latency import draw_first
from dashboard.state import Setting

OVER_ALPHA = {
    "mean_absolute_cosine": "mean |cos|",
    "relative_redundant_norm": "norm of the redundant vector",
    "retained_norm": "retained norm",
}


def show() -> None:
    """Draw the page."""
    study, setting = state.current()
    view = state.view(study, setting)
    st.title("Tune the merge")
    numbers = st.container()
    left, right = st.columns(2, gap="large")
    with left:
        _cosines(study, setting)
    with numbers:
        _numbers(study, setting, view)
    with right:
        accuracy_panel(study, setting)
    _pins(study, setting)
    _redundancy(view)
    _factors(study, setting)
    _alpha_path(study, view)
    st.caption(f"{view.disentangled.outcome}" if setting.disentangle else "AWD is off.")


def _numbers(study: Study, setting: Setting, view: View) -> None:
    summary = tables.summary(view).set_index("key")
    columns = st.columns(4)
    if study.n_experts > 1:
        cosine_metric(columns[0], view)
    columns[1].metric(
        "Redundant vector ‖δ‖",
        f"{view.disentangled.redundant_norm:.3g}",
        f"{view.disentangled.relative_redundant_norm:.1%} of a mean task vector",
        delta_color="off",
        delta_arrow="off",
    )
    if setting.multipliers(study) is None:
        st.caption(
            "The method is not linear: norm and retained signal of its merge need weights; w / λ"
            " below is of task arithmetic."
        )
        return
    merged, retained = summary.loc["merged_norm"], summary.loc["retained_signal"]
    change = merged["after"] / merged["before"] - 1 if merged["before"] else 0.0
    columns[2].metric(
        "Merged norm ‖τ_M‖",
        f"{merged['after']:.3g}",
        f"{signed(change, '.1%')} by AWD",
        delta_color="off",
        delta_arrow="off",
        help="Length of the step from the base to the merge. AWD changes it, to shorter or longer:"
        " compare settings at each one's best λ, not at the same λ.",
    )
    with columns[2]:
        _match_norm(study, setting)
    columns[3].metric(
        "Retained signal",
        f"{retained['after']:.2f}",
        f"{signed(retained['after'] - retained['before'], '.2f')} by AWD",
        delta_color="off",
        delta_arrow="off",
        help="⟨τ_M, τ_k⟩ / ‖τ_k‖², mean over experts: how much of an expert's own step the merge"
        " takes along its direction. 1 is all of it.",
    )


def _match_norm(study: Study, setting: Setting) -> None:
    match = state.norm_match(study, setting)
    if match is None:
        return
    matched = match.settable == setting.coefficients[0]
    st.button(
        f"As long as TA at λ {match.reference:g}"
        if matched and not match.clipped
        else f"Match TA norm: λ {match.settable:g}",
        key="match_norm",
        type="tertiary",
        icon=":material/straighten:",
        help=f"Task arithmetic (TA) without AWD at λ = {match.reference:g} moves as far from the"
        f" base as with AWD at λ = {match.exact:.4g}. At equal length the two differ in direction"
        " alone.",
        disabled=matched,
        on_click=state.set_norm_match,
        args=(setting.method, match),
    )
    if match.clipped:
        st.caption(f"It takes λ = {match.exact:.3g}; the slider ends at {state.COEFFICIENTS[1]:g}.")


def _cosines(study: Study, setting: Setting) -> None:
    if study.n_experts < 2:
        st.info("One expert: there is no pair to compare.")
        return
    title = "Cosine of every two experts over the whole model"
    draw_first(lambda chosen: cosine_matrices(state.view(study, chosen), title), setting)
    st.caption("Page Interference shows it block by block.")


def _pins(study: Study, setting: Setting) -> None:
    """What changed since a pinned setting: numbers and cosines, on one scale with the pin."""
    pins = journal.journal(state.open_study()).pins
    if not pins or study.n_experts < 2:
        return
    st.subheader("Against a pinned setting")
    state.forget_unless("against", tuple(pins))
    name = st.segmented_control(
        "Pin",
        tuple(pins),
        default=next(iter(pins)),
        required=True,
        format_func=lambda name: f"{name}: {pins[name].words}",
        key="against",
        label_visibility="collapsed",
    ) or next(iter(pins))
    chosen = {"now": setting, name: pins[name].setting}
    views = comparison.views(state.open_study(), chosen)
    numbers = comparison.numbers(views, chosen)
    numbers[f"now − {name}"] = numbers["now"] - numbers[name]
    cosines = {which: tables.matrix(view, when="after") for which, view in views.items()}
    cosines[f"now − {name}"] = cosines["now"] - cosines[name]
    left, right = st.columns(2, gap="large")
    with left:
        st.html(
            figures.cosine_matrices(
                {heading: cosines[heading] for heading in (name, f"now − {name}")},
                title="Cosine of disentangled vectors over the whole model",
                theme=theme(),
            )
        )
    with right:
        # The only table that shows words where a number does not exist, as on page Compare.
        st.table(
            numbers.style.format("{:.4g}", na_rep="needs weights"),
            alt="Measures in rows; now, the pinned setting and their difference in columns.",
        )


def _redundancy(view: View) -> None:
    first, second, third = st.columns([3, 4, 3], gap="medium")
    with first:
        chart(
            figures.redundant_norm_bars(tables.redundant_by_block(view), theme=theme()),
            "redundant",
            "Bars of the redundant vector's norm in each block, relative to the task vectors'.",
        )
    with second:
        chart(
            figures.share_lines(tables.shares_by_block(view), theme=theme()),
            "shares",
            "Lines of w over lambda for each expert over the blocks; 1 means untouched.",
        )
    with third:
        chart(
            figures.loss_trace(tables.loss_trace(view), theme=theme()),
            "trace",
            "Line of AWD's loss over the descent steps.",
        )
    with st.expander("The numbers"):
        st.dataframe(tables.shares_by_block(view), hide_index=True)
        st.dataframe(tables.redundant_by_block(view), hide_index=True)
        if view.is_of_merge:
            st.dataframe(tables.retained(view), hide_index=True)


def _factors(study: Study, setting: Setting) -> None:
    if setting.block_factors:
        factors = block_factors.table(study.blocks, dict(setting.block_factors))
        chart(
            block_factors.curve(factors, theme=theme()),
            "factors",
            "Line of what λ is multiplied with in each block; 1 is λ itself.",
        )


def _alpha_path(study: Study, view: View) -> None:
    if study.n_experts < 2:
        return
    path = state.alpha_path(study)
    if not path.critical:
        return
    setting = tables.alpha_setting(view)
    table = tables.alpha_path(path)
    st.subheader("What the norm constraint α decides")
    # A figure each: on a narrow screen they stand below one another.
    for place, (column, words) in zip(st.columns(3, gap="medium"), OVER_ALPHA.items(), strict=True):
        with place:
            chart(
                figures.alpha_path_lines(table, column, setting, theme=theme()),
                f"alpha_path_{column}",
                f"Line of the {words} over alpha relative to alpha_crit, whole model; alpha_crit"
                " and the knee are marked.",
            )
    here = "The point is this setting" if len(setting) else "This setting has no place on it"
    st.caption(
        "At granularity model with penalty α‖δ‖, descended until converged, for every α."
        f" {here}. Left of the knee a longer δ buys less; from α_crit on δ stays 0."
    )


show()
