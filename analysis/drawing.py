"""What all figures share: frame, axes, colour bars."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis.theme import FONT, Theme

Trace = dict[str, Any]
Axis = dict[str, Any]

CLEAR = "rgba(0,0,0,0)"


def figure(
    traces: Sequence[Trace],
    title: str,
    theme: Theme,
    *,
    key: str,
    height: int,
    legend: bool = False,
    **layout: Any,
) -> go.Figure:
    """A figure as wide as its place, on a transparent background.

    Args:
        traces: What is drawn.
        title: What is seen.
        theme: Of the page.
        key: Zoom and hidden traces survive a redraw under the same key.
        height: In pixels.
        legend: Whether colours need names.
        **layout: Axes, and whatever differs from the common frame.
    """
    frame: dict[str, Any] = {
        "title": {
            "text": title,
            "font": {"size": 14, "color": theme.text},
            "xref": "container",
            "x": 0,
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"l": 8, "t": 8},
        },
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 40, "b": 8},
        "font": {"family": FONT, "size": 12, "color": theme.muted},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "modebar": {"bgcolor": CLEAR, "color": theme.muted, "activecolor": theme.text},
        "hoverlabel": {"align": "left", "font": {"family": FONT}},
        "showlegend": legend,
        "uirevision": key,
        "template": {},
    }
    if legend:
        # At the foot of the figure, where any number of rows finds room.
        frame["legend"] = {"orientation": "h", "x": 0, "xref": "container"}
        frame["legend"] |= {"y": 0, "yref": "container", "yanchor": "bottom"}
    return go.Figure(data=list(traces), layout=frame | layout)


def categories(theme: Theme, names: Sequence[str], labels: Sequence[str] | None = None) -> Axis:
    """An axis of names; under shorter labels if there are any, else as many as find room."""
    axis = {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(names),
        "range": [-0.5, len(names) - 0.5],
        "tickfont": {"color": theme.muted, "size": 11},
        "ticks": "",
        "ticklabelstandoff": 3,
        "autotickangles": [0, -45, -90],
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    if labels is not None and list(labels) != list(names):
        axis |= {"tickmode": "array", "tickvals": list(names), "ticktext": list(labels)}
    return axis


def rows(theme: Theme, names: Sequence[str], labels: Sequence[str] | None = None) -> Axis:
    """A vertical axis of names, the first on top; all are shown, for height is made for them."""
    axis = categories(theme, names, labels) | {"range": [len(names) - 0.5, -0.5]}
    every = {"tickmode": "array", "tickvals": list(names), "ticktext": list(labels or names)}
    return axis | every


def numbers(theme: Theme, title: str) -> Axis:
    """An axis of numbers and its unit."""
    return {
        "title": {"text": title, "font": {"color": theme.muted, "size": 12}, "standoff": 6},
        "tickfont": {"color": theme.muted, "size": 11},
        "ticks": "",
        "gridcolor": theme.grid,
        "zerolinecolor": theme.muted,
        "automargin": True,
    }


def colour_bar(title: str, theme: Theme, ticks: dict[float, str], length: int) -> dict[str, Any]:
    """A slim colour bar with its title along it.

    Args:
        title: What the colours mean, and their range.
        theme: Of the page.
        ticks: What is written at which values.
        length: In pixels.
    """
    return {
        "title": {"text": title, "side": "right", "font": {"color": theme.muted, "size": 11}},
        "tickmode": "array",
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "tickfont": {"color": theme.muted, "size": 10},
        "x": 1,
        "xpad": 6,
        "y": 1,
        "yanchor": "top",
        "ypad": 0,
        "thickness": 9,
        "lenmode": "pixels",
        "len": length,
        "outlinewidth": 0,
    }


def scale(colours: Sequence[str]) -> list[tuple[float, str]]:
    """A Plotly colour scale with these colours at even distances."""
    last = len(colours) - 1
    return [(position / last, colour) for position, colour in enumerate(colours)]


def level(height: float, theme: Theme) -> dict[str, Any]:
    """A dashed horizontal line across the whole figure."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": height,
        "y1": height,
        "line": {"color": theme.muted, "width": 1, "dash": "dash"},
    }


def short(name: str, longest: int) -> str:
    """The name, its end cut off after `longest` characters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def endings(names: Sequence[str], longest: int) -> list[str]:
    """The last `longest` characters of names, without the dotted parts that all begin with."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(parts) > 1 and all(
        len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts
    ):
        shared += 1
    rests = [".".join(own[shared:]) for own in parts]
    return [rest if len(rest) <= longest else "…" + rest[1 - longest :] for rest in rests]


def names_in(table: pd.DataFrame, column: str) -> list[str]:
    """Every name of a column once, in the table's order."""
    return [str(name) for name in table[column].unique()]


def only(table: pd.DataFrame, column: str, value: str | bool) -> pd.DataFrame:
    """The rows with this value."""
    return pd.DataFrame(table[table[column] == value])
