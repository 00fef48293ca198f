"""Report: one figure a screen for a review, and everything on this page as files to keep."""

from functools import partial
from html import escape
from typing import cast

import plotly.graph_objects as go
import streamlit as st

from analysis.exhibits import FORMATS, MIME, Exhibit, Format, all_files, as_file, exhibits
from analysis.report import Reviewed, html
from analysis.view import View
from dashboard import state
from dashboard.charts import chart, theme
from dashboard.state import Setting

# Large enough to be read from the other end of a table.
LARGE = """
<style>
[data-testid=stMain] h1 {font-size: 2.6rem}
[data-testid=stMain] .awd-sentence {font-size: 1.7rem; line-height: 1.35; margin: 0 0 1rem}
[data-testid=stMain] .awd-matrices table {font-size: 17px; flex-basis: 460px}
[data-testid=stMain] .awd-matrices tbody td {height: 2.5rem}
[data-testid=stMain] .awd-matrices .heading {font-size: 20px}
[data-testid=stMain] .awd-matrices .names {width: 10rem}
[data-testid=stMain] .awd-matrices thead th {height: 8rem}
</style>
"""
# Nothing but the slide.
ALONE = """
<style>
[data-testid=stSidebar], [data-testid=stHeader], [data-testid=stExpandSidebarButton] {display: none}
[data-testid=stMainBlockContainer] {padding-top: 1.5rem}
</style>
"""
TYPE = 17  # pixels of a figure's letters
MOST_HEIGHT = 640


def show() -> None:
    """Draw the page."""
    study, setting = state.current()
    view = state.view(study, setting)
    shown = {one.key: one for one in exhibits(view)}
    st.html(LARGE)
    state.forget_unless("slide", tuple(shown))
    keys = list(shown)
    place = st.container()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        key = st.selectbox(
            "Slide",
            keys,
            format_func=lambda key: shown[key].title,
            key="slide",
            bind="query-params",
            label_visibility="collapsed",
        )
        at = keys.index(key)
        _turn("Previous", "ArrowLeft", keys[at - 1], disabled=at == 0)
        _turn("Next", "ArrowRight", keys[(at + 1) % len(keys)], disabled=at == len(keys) - 1)
        alone = _alone()
        st.caption(f"{at + 1} of {len(keys)}")
    with place:
        _slide(shown[key], view)
    if alone:
        st.html(ALONE)
        return
    st.divider()
    _files(shown[key], view, setting)


def _alone() -> bool:
    """Whether nothing but the slide is shown, and the button that changes it.

    Not a toggle: arrow keys do not turn slides while the focus is in an input.
    """
    alone = st.query_params.get("alone") == "true"
    st.button(
        "Whole page" if alone else "Slide alone",
        key="show_alone",
        help="Without sidebar and menu; the arrow keys turn.",
        on_click=_show_alone,
        args=(not alone,),
    )
    return alone


def _show_alone(alone: bool) -> None:
    if alone:
        st.query_params["alone"] = "true"
    else:
        del st.query_params["alone"]


def _turn(label: str, shortcut: str, key: str, *, disabled: bool) -> None:
    st.button(
        label,
        key=f"turn_{label}",
        shortcut=shortcut,
        disabled=disabled,
        on_click=lambda: st.session_state.update(slide=key),
    )


def _slide(exhibit: Exhibit, view: View) -> None:
    st.title(exhibit.title)
    st.html(f'<p class="awd-sentence">{escape(exhibit.sentence(view), quote=False)}</p>')
    drawn = exhibit.draw(view, theme())
    if isinstance(drawn, go.Figure):
        chart(_enlarged(drawn), f"slide_{exhibit.key}", exhibit.sentence(view))
    else:
        st.html(drawn)


def _enlarged(figure: go.Figure) -> go.Figure:
    """The same figure with letters for a whole room."""
    drawn = figure.to_dict()["layout"]["height"]
    height = min(MOST_HEIGHT, max(480, int(drawn * 1.3)))
    figure.update_layout(height=height, font={"size": TYPE}, title={"text": ""})
    figure.update_layout(margin={"t": 16})
    figure.update_xaxes(tickfont={"size": TYPE - 2}, title={"font": {"size": TYPE}})
    figure.update_yaxes(tickfont={"size": TYPE - 4}, title={"font": {"size": TYPE}})
    return figure


def _files(exhibit: Exhibit, view: View, setting: Setting) -> None:
    st.subheader("To keep")
    st.caption(
        f"{setting.words}. Study {view.study.collected_digest[:16]}, recipe"
        f" {setting.recipe(view.study).digest[:16]}."
    )
    form = cast(
        Format,
        st.segmented_control(
            "Numbers as", FORMATS, default="csv", required=True, key="format", bind="query-params"
        )
        or "csv",
    )
    with st.container(horizontal=True):
        st.download_button(
            "Report (HTML, one file)",
            partial(html, Reviewed(view.study, setting.recipe(view.study), view)),
            "awd-report.html",
            "text/html",
            key="report_file",
            help="Findings, figures, recipe and definitions; opens anywhere, without a network.",
            icon=":material/article:",
            on_click="ignore",
        )
        st.download_button(
            f"This slide's numbers ({form})",
            partial(as_file, exhibit.table(view), form),
            f"{exhibit.key}.{form}",
            MIME[form],
            key="numbers_file",
            icon=":material/table:",
            on_click="ignore",
        )
        st.download_button(
            f"All numbers ({form}, zip)",
            partial(all_files, view, form),
            f"awd-numbers-{form}.zip",
            "application/zip",
            key="all_files",
            icon=":material/folder_zip:",
            on_click="ignore",
        )
        st.download_button(
            "Recipe (YAML)",
            setting.recipe(view.study).to_yaml(),
            "recipe.yaml",
            "text/yaml",
            key="recipe_file",
            icon=":material/description:",
            on_click="ignore",
        )
    with st.expander("The numbers of this slide", icon=":material/table:"):
        st.dataframe(exhibit.table(view), hide_index=True, key="slide_numbers")


show()
