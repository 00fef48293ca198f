"""Figures on the page: its theme, a key that keeps the zoom, words for screen readers."""

from typing import Any

import plotly.graph_objects as go
import streamlit as st

from analysis import figures
from analysis.theme import Theme


def theme() -> Theme:
    """Light or dark, as the page is."""
    return figures.DARK if st.context.theme.type == "dark" else figures.LIGHT


def chart(figure: go.Figure, key: str, alt: str, **options: Any) -> None:
    """Draw a figure with the tools that are of use, and the rest hidden."""
    config = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
    st.plotly_chart(figure, key=key, alt=alt, theme=None, config=config, **options)
