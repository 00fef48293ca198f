"""Figures on the page: its theme, a key that keeps the zoom, words for screen readers."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analysis import figures
from analysis.measure import Measure
from analysis.overview import Range, colouring
from analysis.tables import MODEL, matrix
from analysis.theme import Theme
from analysis.view import View
from analysis.words import group_noun, signed


def theme() -> Theme:
    """Light or dark, as the page is."""
    return figures.DARK if st.context.theme.type == "dark" else figures.LIGHT


def cosine_metric(place: DeltaGenerator, view: View) -> None:
    """What AWD makes small: mean |cos| over pairs, averaged over the groups it works on."""
    solved = view.disentangled
    granularity = solved.settings.granularity
    whole = granularity == "model"
    before, after = solved.objective
    change = signed(after - before, ".4f")
    colour, arrow = ("off", "off") if change == "unchanged" else ("inverse", "auto")
    place.metric(
        f"Mean |cos|{', whole model' if whole else f' in a {group_noun(granularity)}'}",
        f"{after:.4f}",
        f"{change} by AWD",
        delta_color=colour,
        delta_arrow=arrow,
        help="Mean over pairs of experts of |cos|, averaged over the groups of this granularity:"
        " what AWD makes small. Over the whole model it is {:.4f} before and {:.4f} after."
        " The two can move in opposite ways: parts that cancel in the whole do not cancel in"
        " their rows.".format(*solved.mean_absolute_cosine),
    )


def chart(figure: go.Figure, key: str, alt: str, **options: Any) -> None:
    """Draw a figure with the tools that are of use, and the rest hidden."""
    config = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
    st.plotly_chart(figure, key=key, alt=alt, theme=None, config=config, **options)


def matrices(found: dict[str, pd.DataFrame], measure: Measure, ends: Range, title: str) -> str:
    """HTML of K x K matrices of one measure side by side, on one colour scale."""
    return figures.pair_matrices(found, colouring(measure, ends, theme()), title, theme())


def cosine_matrices(view: View, title: str) -> str:
    """HTML of the K x K cosines of the whole model before and after AWD."""
    found = {f"{when} AWD": matrix(view, "model", MODEL, when) for when in ("before", "after")}
    return figures.cosine_matrices(found, title=title, theme=theme())
