"""Interference: where which experts pull against each other, before and after AWD."""

import pandas as pd
import streamlit as st

from analysis import figures, tables
from analysis.view import View
from awd_core import Study
from dashboard import state
from dashboard.charts import chart, cosine_matrices, cosine_metric, theme
from dashboard.latency import paint_first

COSINE_HELP = (
    "cos(τᵢ, τⱼ) = ⟨τᵢ, τⱼ⟩ / (‖τᵢ‖ ‖τⱼ‖), over all weights of the block. 0: the two experts use"
    " different directions and do not interfere. Positive: they share a direction, which a merge"
    " counts twice. Negative: they oppose each other and cancel."
)


def show() -> None:
    """Draw the page."""
    study, setting = state.current()
    view = state.view(study, setting)
    if study.n_experts < 2:
        st.info("One expert interferes with nothing. Open a base with two or more experts.")
        return
    st.title("Where do the experts interfere?", help=COSINE_HELP)
    if not tables.pair_by_block(view)["cosine"].notna().to_numpy().any():
        st.info("No block is moved by two experts: there is nothing to interfere.")
        return
    findings, pictures = st.container(), st.container()
    with pictures:
        _pictures(study, view)
    with findings:
        _findings(view)


def _findings(view: View) -> None:
    """The headline: the strongest pair, and what AWD changes."""
    pairs = tables.pair_by_block(view)
    strongest = pairs.loc[pairs["cosine"].abs().idxmax()]
    summary = tables.summary(view).set_index("key")
    redundant = summary.loc["relative_redundant_norm"]
    columns = st.columns([2, 1, 1])
    columns[0].metric(
        "Strongest interference",
        f"cos {strongest['cosine']:+.2f}",
        f"{strongest['pair']}, {strongest['block']}",
        delta_color="off",
        delta_arrow="off",
    )
    cosine_metric(columns[1], view)
    columns[2].metric(
        "Redundant vector",
        f"{redundant['after']:.1%}",
        "of a mean task vector",
        delta_color="off",
        delta_arrow="off",
        help="‖δ‖ / mean ‖τ‖ over the whole model: what AWD subtracts from every expert.",
    )


@st.fragment
def _pictures(study: Study, view: View) -> None:
    before, after = tables.pair_by_block(view, "before"), tables.pair_by_block(view, "after")
    limit = figures.symmetric_limit(before, after)
    if st.session_state.get("block") not in study.blocks:
        st.session_state["block"] = before.loc[before["cosine"].abs().idxmax(), "block"]
    left, right = st.columns([5, 4], gap="large")
    with right:
        block = st.select_slider(
            "Block", study.blocks, key="block", help="Or click a cell of the heatmap."
        )
        cosine_matrices(view, f"Every two experts in {block}", block, limit)
    paint_first()
    with left:
        _overview(before, after, limit)
    _tensors(view, block)
    _more(view)


def _overview(before: pd.DataFrame, after: pd.DataFrame, limit: float) -> None:
    when = (
        st.segmented_control(
            "Task vectors",
            ("before", "after"),
            default="before",
            required=True,
            format_func=lambda when: f"{when} AWD",
            key="when",
        )
        or "before"
    )
    chart(
        figures.pair_block_heatmap(
            after if when == "after" else before,
            limit,
            f"Cosine of each pair in each block, {when} AWD",
            theme(),
            order=figures.pair_order(before),
        ),
        "pairs",
        "Heatmap of the cosine between task vectors: pairs of experts by blocks of the model."
        " The same numbers are in the table below.",
        on_select=_choose_block,
        selection_mode="points",
    )
    st.caption("Grey: not moved by both experts. A click on a cell shows its block.")


def _choose_block() -> None:
    """A click on a cell of the heatmap chooses its block."""
    points = st.session_state["pairs"]["selection"]["points"]
    if points:
        st.session_state["block"] = points[0]["customdata"][1]


def _tensors(view: View, block: str) -> None:
    st.subheader(f"Tensors of {block}")
    table = tables.tensor_table(view, block).dropna(subset=["cosine_before"])
    if table.empty:
        st.caption("No two experts move the same tensor here.")
        return
    prefix = _common_prefix(list(table["tensor"]))
    table["tensor"] = table["tensor"].str.removeprefix(prefix)
    shown = ("tensor", "cosine_before", "cosine_after", "redundant_norm", "kind", "shape")
    number = st.column_config.NumberColumn
    st.dataframe(
        table.sort_values("cosine_before", ascending=False),
        hide_index=True,
        column_order=shown,
        column_config={
            "tensor": st.column_config.TextColumn("tensor"),
            "cosine_before": number("mean |cos| before", format="%.3f"),
            "cosine_after": number("mean |cos| after", format="%.3f"),
            "redundant_norm": number("‖δ‖ / mean ‖τ‖", format="%.3f"),
        },
    )


def _common_prefix(names: list[str]) -> str:
    """What all names begin with, up to a dot."""
    if len(names) < 2:
        return ""
    shared = 0
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        shared += 1
    return names[0][: names[0].rfind(".", 0, shared) + 1]


def _more(view: View) -> None:
    # A toggle, not an expander: what is hidden is not worked out at every move of a slider.
    if not st.toggle("Sign conflict, norms and all numbers", key="more"):
        return
    conflict, norms = st.columns(2, gap="large")
    with conflict:
        chart(
            figures.sign_heatmap(tables.pair_sign_by_block(view), theme=theme()),
            "signs",
            "Heatmap of sign conflict: pairs of experts by blocks; one half is chance.",
        )
        st.caption(
            "Share of weights on which two experts pull in opposite directions, among the"
            " fifth of each tensor that each moves most. 0.5 is chance."
        )
    with norms:
        chart(
            figures.norms_heatmap(tables.norms_by_block(view), theme=theme()),
            "norms",
            "Heatmap of task-vector norms relative to the base: experts by blocks.",
        )
    st.dataframe(
        tables.pair_by_block(view).merge(
            tables.pair_by_block(view, "after"),
            on=["pair", "expert_i", "expert_j", "block"],
            suffixes=("_before", "_after"),
        ),
        hide_index=True,
    )


show()
