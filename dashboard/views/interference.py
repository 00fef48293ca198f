"""Interference: where which experts pull against each other, before and after AWD."""

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analysis import figures, tables
from analysis.clustering import expert_map, expert_tree
from analysis.measure import Measure
from analysis.measures import measure
from analysis.narrative import findings
from analysis.overview import Range, matrix_of, overview, overview_heatmap, shared_range
from analysis.theme import Theme
from analysis.view import View
from awd_core import Study
from dashboard import close_ups, state
from dashboard.charts import chart, cosine_metric, matrices, theme
from dashboard.latency import draw_first
from dashboard.look import Look, Part, chosen_experts, chosen_look, chosen_part
from dashboard.state import Setting

FINDINGS = 4  # as many as stand beside the overview
COSINE_HELP = (
    "cos(τᵢ, τⱼ) = ⟨τᵢ, τⱼ⟩ / (‖τᵢ‖ ‖τⱼ‖), over all weights of the block. 0: the two experts use"
    " different directions and do not interfere. Positive: they share a direction, which a merge"
    " counts twice. Negative: they oppose each other and cancel."
)


def show() -> None:
    """Draw the page."""
    study, setting = state.current()
    view = state.view(study, setting)
    st.title("Where do the experts interfere?", help=COSINE_HELP)
    if study.n_experts < 2:
        st.info(
            "One expert interferes with nothing. Open its base with two or more experts. What one"
            " shows by itself, such as how far it moved, stands on page Report.",
            icon=":material/info:",
        )
        return
    if not tables.pair_by_block(view)["cosine"].notna().to_numpy().any():
        st.info("No block is moved by two experts: there is nothing to interfere.")
        return
    headline, pictures = st.container(), st.container()
    with pictures:
        _pictures(study, setting, view)
    with headline:
        _headline(view)


def _headline(view: View) -> None:
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
def _pictures(study: Study, setting: Setting, view: View) -> None:
    left, right = st.columns([5, 4], gap="large")
    with left:
        look = chosen_look(study)
    with right:
        scrubber = st.container()
        first, second = st.columns(2)
        with scrubber:
            part = chosen_part(study, view, first)
        experts = chosen_experts(study, second)
        if part.tensor:
            _way_back(part)
        draw_first(
            lambda chosen: _matrices(state.view(study, chosen), look, part, experts),
            setting,
        )
    with left:
        _overview(view, look, experts)
        _findings(view)
    _tensors(view, part)
    close_ups.draw(study, view, part, look.measure.key)
    if study.n_experts > 2:
        _alike(study)


def _way_back(part: Part) -> None:
    st.caption(f"One tensor alone: `{part.tensor}`.")
    st.button(
        f"All of {part.around}",
        key="all_of_block",
        icon=":material/arrow_back:",
        on_click=state.choose_tensor,
        args=(None,),
    )


@st.cache_resource(show_spinner=False, max_entries=64)
def _overview_figure(
    frame: pd.DataFrame, key: str, ends: Range, title: str, look: Theme, _measure: Measure
) -> go.Figure:
    """Drawn once for everybody; before AWD no slider changes it."""
    return overview_heatmap(frame, _measure, ends, title, look)


@st.cache_resource(show_spinner=False, max_entries=16)
def _alike_figures(digest: str, look: Theme, _study: Study) -> tuple[go.Figure, go.Figure]:
    found = state.alike(_study)
    return expert_map(found, theme=look), expert_tree(found, theme=look)


def _findings(view: View) -> None:
    """What is worth saying of this study, strongest first, each with its number."""
    st.subheader("What stands out")
    for finding in findings(view, FINDINGS):
        with st.expander(finding.text):
            st.markdown(f"{finding.why} {finding.advice}")
            st.caption(
                f"{measure(finding.measure).title}: {finding.value:.4g}, said from"
                f" {finding.threshold:.4g} on. {finding.source}."
            )


def _alike(study: Study) -> None:
    """Experts in order of likeness, as a map and as a tree."""
    found = state.alike(study)
    drawn_map, drawn_tree = _alike_figures(study.digest, theme(), study)
    st.subheader("Which experts are alike")
    left, right = st.columns(2)
    with left:
        chart(
            drawn_map,
            "expert_map",
            "Map of the experts: near ones share directions. In order of likeness: "
            + ", ".join(found.ordered),
        )
    with right:
        chart(
            drawn_tree,
            "expert_tree",
            "Tree of the experts: where two branches meet is their mean distance.",
        )


def _matrices(view: View, look: Look, part: Part, experts: list[str]) -> str:
    """K x K numbers of the chosen part, before and after AWD, on the overview's colour scale."""
    shown = look.pair_measure
    found = {
        heading: matrix_of(view, one, part.scope, part.label).loc[experts, experts]
        for heading, one in shown.headings
    }
    everywhere = [overview(view, one, "pairs") for _, one in shown.headings]
    ends = shared_range(shown.before, *everywhere, *map(figures.without_diagonal, found.values()))
    return matrices(found, shown.before, ends, f"{shown.title}: every two experts in {part.words}")


def _overview(view: View, look: Look, experts: list[str]) -> None:
    measure = look.pictured
    frames = [overview(view, one, look.rows) for _, one in measure.headings]
    ends = shared_range(measure.before, *frames)
    frame = frames[-1 if look.after else 0]
    if look.rows == "pairs":
        frame = frame.loc[figures.by_size(frames[0])]
        kept = [pair for pair in frame.index if set(pair.split(" × ")) <= set(experts)]
        frame = frame.loc[kept]
    elif look.rows == "experts":
        frame = frame.loc[experts]
    else:
        frame = frame.dropna(how="all")
    when = ", after AWD" if look.after else ", before AWD" if measure.after else ""
    title = f"{measure.title}, {look.rows} by block{when}"
    chart(
        _overview_figure(frame, look.shown.key, ends, title, theme(), look.shown),
        "overview",
        f"Heatmap of {measure.title}: {look.rows} of the model by its blocks."
        " The same numbers are in the table below.",
        on_select=_choose_cell,
        selection_mode="points",
    )
    st.caption(
        "A click on a cell shows its block at the right. Grey: nothing to compare. "
        + look.shown.reading
    )
    if look.shown.of_merge and view.method and not view.is_of_merge:
        st.caption(
            f"{view.method.title} is not linear and its merge needs the weights: this is of task"
            " arithmetic with the same coefficients."
        )
    with st.expander("The numbers, and what they are", icon=":material/table:"):
        st.latex(look.shown.formula)
        st.caption(f"Unit: {look.shown.unit}. Source: {look.shown.source}.")
        st.dataframe(
            frame,
            key="overview_numbers",
            on_select=lambda: _choose_in_table(list(frame.index), look.rows),
            selection_mode="single-cell",
            alt=f"{measure.title}: {look.rows} in rows, blocks in columns.",
        )
        st.caption("By keyboard: arrow keys move through the table, the block follows.")


def _choose_cell() -> None:
    """A click on a cell of the heatmap chooses its block, and its kind where it has one."""
    points = st.session_state["overview"]["selection"]["points"]
    if points:
        row, block, _ = points[0]["customdata"]
        state.choose_part(block, row if st.session_state.get("rows") == "kinds" else None)


def _choose_in_table(names: list[str], rows: str) -> None:
    """The same for a cell of the table."""
    cells = st.session_state["overview_numbers"]["selection"]["cells"]
    if cells:
        row, block = cells[0]
        state.choose_part(block, names[row] if rows == "kinds" else None)


def _tensors(view: View, part: Part) -> None:
    st.subheader(f"Tensors of {part.block}" + (f", {part.kind}" if part.kind else ""))
    table = tables.tensor_table(view, part.block).dropna(subset=["cosine_before"])
    if part.kind:
        table = table.loc[table["kind"] == part.kind]
    if table.empty:
        st.caption("No two experts move the same tensor here.")
        return
    table = table.sort_values(by="cosine_before", ascending=False)
    names = list(table["tensor"])
    prefix = _common_prefix(names)
    shown = ("tensor", "cosine_before", "cosine_after", "cosine_by_chance", "redundant_norm")
    number = st.column_config.NumberColumn
    # The same row of another block is another tensor, and a link ticks no row by itself.
    state.tick_row("tensors", names.index(part.tensor) if part.tensor in names else None)
    st.dataframe(
        table.assign(tensor=[name.removeprefix(prefix) for name in names]),
        key="tensors",
        hide_index=True,
        on_select=lambda: _choose_tensor(names),
        selection_mode="single-row",
        column_order=(*shown, "kind", "shape"),
        column_config={
            "tensor": st.column_config.TextColumn("tensor"),
            "cosine_before": number("mean |cos| before", format="%.3f"),
            "cosine_after": number("mean |cos| after", format="%.3f"),
            "cosine_by_chance": number("by chance", format="%.4f", help="√(2 / (π n))"),
            "redundant_norm": number("‖δ‖ / mean ‖τ‖", format="%.3f"),
        },
        alt=f"The tensors of {part.block} with their mean cosines and redundant norms.",
    )
    st.caption("Choose a row to see its K × K matrix above.")


def _choose_tensor(names: list[str]) -> None:
    rows = st.session_state["tensors"]["selection"]["rows"]
    state.choose_tensor(names[rows[0]] if rows else None)


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


show()
