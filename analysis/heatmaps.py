"""Figures of cells: pairs x blocks, experts x blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.arithmetic import mean
from analysis.drawing import (
    CLEAR,
    Trace,
    categories,
    colour_bar,
    endings,
    figure,
    names_in,
    rows,
    scale,
    short,
)
from analysis.scales import (
    CHANCE,
    conflict_limit,
    decimals,
    rounded_up,
    signed,
    symmetric_limit,
    written,
)
from analysis.tables import pair_label
from analysis.theme import LIGHT, Theme

# Above this number of cells the markers to click on would make the figure heavy.
MOST_MARKERS = 4000


@dataclass(frozen=True)
class Colouring:
    """How numbers become colours: blue for opposed, red for aligned, none for neither.

    Attributes:
        low: Value at the lower end of the scale.
        high: Value at its upper end.
        colours: From low to high.
        title: Written along the colour bar, with the range.
        word: What one number is called where the pointer is.
        digits: Its decimals.
    """

    low: float
    high: float
    colours: Sequence[str]
    title: str
    word: str
    digits: int

    def ends(self, values: np.ndarray) -> tuple[str, str]:
        """What is written at both ends of the scale; it says where values lie beyond them."""
        seen = values[np.isfinite(values)]
        below = "≤ " if (seen < self.low).any() else ""
        above = "≥ " if (seen > self.high).any() else ""
        return below + signed(self.low), above + signed(self.high)

    def bar(self, theme: Theme, length: int, values: np.ndarray) -> dict[str, Any]:
        """Its colour bar."""
        low, high = self.ends(values)
        middle = (self.low + self.high) / 2
        ticks = {self.low: low, middle: signed(middle), self.high: high}
        return colour_bar(self.title, theme, ticks, length)


def pair_block_heatmap(
    table: pd.DataFrame,
    limit: float | None = None,
    title: str = "Cosine of each pair of experts by block",
    theme: Theme = LIGHT,
    order: Sequence[str] | None = None,
) -> go.Figure:
    """Pairs (rows, largest mean |cos| on top) x parts of the model, symmetric about 0.

    Cells can be selected: transparent markers over them carry (pair, part, number in words) as
    customdata, because a selection of heatmap cells does not reach Streamlit.

    Args:
        table: From `tables.pair_by_block` or another `tables.pair_by...`.
        limit: The colour range is +-limit; from the table by default. Give the same one to the
            figures before and after.
        title: What is seen.
        theme: Of the page.
        order: Pairs from top to bottom, for instance `pair_order` of the table before AWD.
    """
    limit = symmetric_limit(table) if limit is None else limit
    order = pair_order(table) if order is None else order
    return _pairs(table, "cosine", order, cosine_colouring(limit, theme), title, theme)


def sign_heatmap(
    table: pd.DataFrame,
    limit: float | None = None,
    title: str = "Sign conflict of each pair by block",
    theme: Theme = LIGHT,
    order: Sequence[str] | None = None,
) -> go.Figure:
    """Pairs (rows, most conflict on top) x blocks, centred at chance, 0.5.

    Args:
        table: From `tables.pair_sign_by_block`.
        limit: The colour range is 0.5 +- limit; from the table by default.
        title: What is seen.
        theme: Of the page.
        order: Pairs from top to bottom.
    """
    if limit is None:
        limit = conflict_limit(np.asarray(table["conflict"], dtype=np.float64))
    order = pair_order(table, "conflict") if order is None else order
    return _pairs(table, "conflict", order, conflict_colouring(limit, theme), title, theme)


def norms_heatmap(
    table: pd.DataFrame,
    column: str = "relative_norm",
    title: str = "How far each expert moved, by block",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Experts (rows) x blocks, from 0 to the largest value.

    Args:
        table: From `tables.norms_by_block`.
        column: `norm`, `relative_norm` or `rms`.
        title: What is seen.
        theme: Of the page.
    """
    word = {"norm": "‖τ‖", "relative_norm": "‖τ‖ / ‖θ₀‖", "rms": "‖τ‖ / √n"}[column]
    blocks, experts = names_in(table, "block"), names_in(table, "expert")
    values = np.asarray(table[column], dtype=np.float64).reshape(len(blocks), len(experts)).T
    high = rounded_up(float(np.nanmax(values, initial=0.0))) or 1.0
    colouring = Colouring(0, high, theme.sequential, f"{word}, range 0 to {high:g}", word, 5)
    height = 110 + 24 * max(len(experts), 4)
    labels = [short(name, 18) for name in experts]
    return cells(values, experts, labels, blocks, colouring, title, theme, "norms", height)


def pair_order(table: pd.DataFrame, column: str = "cosine") -> list[str]:
    """Pairs by their mean |value| over the parts, largest first, unknown ones last."""
    values, pairs, _ = _grid(table, column)
    sizes = np.nan_to_num(mean(np.abs(values)), nan=-1.0)
    return [pairs[position] for position in np.argsort(-sizes, kind="stable")]


def cosine_colouring(limit: float, theme: Theme) -> Colouring:
    """Symmetric about 0: an orthogonal pair has no colour."""
    title = f"cos, range {written(limit)}"
    return Colouring(-limit, limit, theme.diverging, title, "cos", max(3, decimals(limit)))


def conflict_colouring(limit: float, theme: Theme) -> Colouring:
    """Symmetric about 0.5: chance has no colour; more conflict is blue, as negative cosines are."""
    title = f"opposite signs, range {CHANCE:g} {written(limit)}"
    colours = theme.diverging[::-1]
    return Colouring(CHANCE - limit, CHANCE + limit, colours, title, "opposite signs", 3)


def _pairs(
    table: pd.DataFrame,
    column: str,
    order: Sequence[str],
    colouring: Colouring,
    title: str,
    theme: Theme,
) -> go.Figure:
    values, pairs, parts = _grid(table, column)
    position = {pair: number for number, pair in enumerate(pairs)}
    ranked = [position[pair] for pair in order]
    # The parts of one pair stand together: one row of them tells its experts.
    experts = table[["expert_i", "expert_j"]].iloc[:: max(1, len(parts))].to_numpy()
    labels = [pair_label(*(short(name, 12) for name in experts[number])) for number in ranked]
    height = 110 + 20 * max(len(order), 4)
    return cells(
        values[ranked], list(order), labels, parts, colouring, title, theme, "pairs", height
    )


def _grid(table: pd.DataFrame, column: str) -> tuple[np.ndarray, list[str], list[str]]:
    """A table of pairs as (pairs, parts) values, the pairs and the parts."""
    # The column of parts, whatever its scope, stands before the values.
    part = str(table.columns[table.columns.to_list().index(column) - 1])
    pairs, parts = names_in(table, "pair"), names_in(table, part)
    values = np.asarray(table[column], dtype=np.float64)
    return values.reshape(len(pairs), len(parts)), pairs, parts


def cells(
    values: np.ndarray,
    names: Sequence[str],
    labels: Sequence[str],
    columns: Sequence[str],
    colouring: Colouring,
    title: str,
    theme: Theme,
    key: str,
    height: int,
) -> go.Figure:
    """Rows of cells over the parts of the model, each with a marker that can be selected.

    Args:
        values: (rows, columns); NaN where there is no number.
        names: Of the rows, in full.
        labels: What stands beside the rows.
        columns: Parts of the model.
        colouring: How numbers become colours.
        title: What is seen.
        theme: Of the page.
        key: Zoom survives a redraw under the same key.
        height: In pixels.
    """
    trace = {
        "type": "heatmap",
        "x": list(columns),
        "y": list(names),
        "z": values.astype(np.float32),
        "zmin": colouring.low,
        "zmax": colouring.high,
        "colorscale": scale(colouring.colours),
        "colorbar": colouring.bar(theme, min(height - 110, 220), values),
        "xgap": 1,
        "ygap": 1,
    }
    traces = [trace]
    if values.size <= MOST_MARKERS:
        trace["hoverinfo"] = "skip"
        traces.append(_markers(values, names, columns, colouring))
    else:
        number = f"{colouring.word} %{{z:.{colouring.digits}f}}"
        trace["hovertemplate"] = f"%{{y}}<br>%{{x}}<br>{number}<extra></extra>"
        trace["hoverongaps"] = False
    return figure(
        traces,
        title,
        theme,
        key=key,
        height=height,
        xaxis=categories(theme, columns, endings(columns, 28)),
        yaxis=rows(theme, names, labels),
        plot_bgcolor=theme.empty,
        hovermode="closest",
        # The marker is smaller than its cell; the nearest one answers for the whole of it.
        hoverdistance=200,
    )


def _markers(
    values: np.ndarray, names: Sequence[str], columns: Sequence[str], colouring: Colouring
) -> Trace:
    row, column = np.indices(values.shape).reshape(2, -1)
    pairs, parts = np.array(names), np.array(columns)
    words = np.array([_in_words(value, colouring) for value in values.ravel()])
    return {
        "type": "scatter",
        "mode": "markers",
        "x": parts[column],
        "y": pairs[row],
        "customdata": np.stack([pairs[row], parts[column], words], axis=1),
        "marker": {"symbol": "square", "size": 14, "color": CLEAR},
        "selected": {"marker": {"color": "rgba(128,128,128,0.6)"}},
        "unselected": {"marker": {"opacity": 0}},
        "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        "showlegend": False,
    }


def _in_words(value: float, colouring: Colouring) -> str:
    if np.isnan(value):
        return "no number: nothing to compare"
    return f"{colouring.word} {value:.{colouring.digits}f}"
