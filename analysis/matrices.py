"""K x K matrices as coloured tables of HTML: numbers that can be read, heard and copied.

A browser draws such a table in a few milliseconds, where a Plotly figure takes a hundred; so it
follows a slider. Colours, scale and colour bar are those of the heatmaps.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from analysis.drawing import short
from analysis.heatmaps import Colouring, cosine_colouring
from analysis.scales import symmetric_limit, without_diagonal
from analysis.theme import LIGHT, Theme

# Above this many experts a number finds no room in its cell; it stays in the cell's title.
MOST_NUMBERED = 16
# On a scale shorter than this, up to so many experts, numbers have a third decimal.
NARROW, MOST_WITH_THREE = 0.12, 10
# WCAG's relative luminance at which black and white text contrast equally with a colour.
MIDDLE_LUMINANCE = 0.179

STYLE = """
.awd-matrices {display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-end}
.awd-matrices table {flex: 1 1 320px; min-width: 0; border-collapse: separate; border-spacing: 1px;
  table-layout: fixed; font-size: 11px; line-height: 1; font-variant-numeric: tabular-nums}
.awd-matrices .heading {font-size: 13px; text-align: left; vertical-align: bottom;
  padding-bottom: .4rem}
.awd-matrices th {font-weight: 400; white-space: nowrap}
.awd-matrices th[scope=row] {text-align: right; padding-right: .4rem}
.awd-matrices thead th {writing-mode: vertical-rl; transform: rotate(180deg);
  text-align: left; padding: 0 0 .3rem; height: 5.4rem}
.awd-matrices tbody td {height: 1.75rem; text-align: center; padding: 0; overflow: hidden}
.awd-matrices .names {width: 6.6rem}
.awd-scale {display: flex; align-items: center; gap: .5rem; font-size: 11px; margin-top: .6rem}
.awd-scale i {width: 9rem; height: 9px}
"""


def cosine_matrices(
    matrices: Mapping[str, pd.DataFrame],
    limit: float | None = None,
    title: str = "Cosine of every two experts",
    theme: Theme = LIGHT,
) -> str:
    """One table for each matrix, side by side where there is room, on one colour scale.

    Diagonals are blank, for a cosine of a vector with itself is 1 by definition.

    Args:
        matrices: Heading -> K x K, from `tables.matrix`.
        limit: The colour range is +-limit, symmetric about 0; from the matrices by default.
        title: What is seen; also its name for screen readers.
        theme: Of the page.

    Returns:
        HTML without scripts. Every cell carries its number in full as a `<data value>`.
    """
    if limit is None:
        limit = symmetric_limit(*matrices.values(), percentile=100)
    return pair_matrices(matrices, cosine_colouring(limit, theme), title, theme)


def pair_matrices(
    matrices: Mapping[str, pd.DataFrame],
    colouring: Colouring,
    title: str,
    theme: Theme = LIGHT,
) -> str:
    """The same for any measure of pairs, with its own colours.

    Args:
        matrices: Heading -> K x K, from `overview.matrix_of`.
        colouring: From `overview.colouring`.
        title: What is seen; also its name for screen readers.
        theme: Of the page.
    """
    blank = {heading: without_diagonal(matrix) for heading, matrix in matrices.items()}
    return number_tables(blank, colouring, title, theme)


def number_tables(
    tables: Mapping[str, pd.DataFrame],
    colouring: Colouring,
    title: str,
    theme: Theme = LIGHT,
    digits: int | None = None,
) -> str:
    """Any tables of numbers, rows x columns, coloured on one scale.

    Args:
        tables: Heading -> frame; NaN is a blank cell.
        colouring: How numbers become colours.
        title: What is seen; also its name for screen readers.
        theme: Of the page.
        digits: Decimals in the cells; two, or three on a short scale, when None.
    """
    if digits is None:
        narrow = colouring.high - colouring.low < NARROW
        widest = max(len(table.columns) for table in tables.values())
        digits = 3 if narrow and widest <= MOST_WITH_THREE else 2
    found = "".join(_table(name, table, colouring, theme, digits) for name, table in tables.items())
    values = np.concatenate([table.to_numpy(dtype=np.float64).ravel() for table in tables.values()])
    return (
        f'<style>{STYLE}</style><section aria-label="{escape(title)}" style="color:{theme.text}">'
        f'<p style="font-size:14px">{escape(title)}</p>'
        f'<div class="awd-matrices">{found}</div>{_scale(colouring, theme, values)}</section>'
    )


def _table(
    heading: str, table: pd.DataFrame, colouring: Colouring, theme: Theme, digits: int
) -> str:
    values = table.to_numpy(dtype=np.float64)
    colours = _colours(values, colouring)
    head = "".join(_name(str(name), "col") for name in table.columns)
    rows = []
    for name, numbers, shades in zip(table.index, values, colours, strict=True):
        blank = [str(name) == str(column) for column in table.columns]
        cells = _cells(numbers, shades, blank, colouring, theme, digits)
        rows.append(f"<tr>{_name(str(name), 'row')}{cells}</tr>")
    return (
        f'<table aria-label="{escape(heading)}"><colgroup><col class="names"></colgroup>'
        f'<thead><tr><td class="heading">{escape(heading)}</td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _name(name: str, scope: str) -> str:
    shown = escape(short(name, 14))
    return f'<th scope="{scope}" title="{escape(name)}">{shown}</th>'


def _cells(
    values: np.ndarray,
    colours: np.ndarray,
    blank: Sequence[bool],
    colouring: Colouring,
    theme: Theme,
    digits: int,
) -> str:
    """The cells of one row; `blank` are those that never hold a number."""
    cells = []
    for value, colour, never in zip(values, colours, blank, strict=True):
        if np.isnan(value):
            word = "" if never else ' title="not moved by both experts"'
            cells.append(f'<td{word} style="background:{theme.empty}"></td>')
            continue
        text = "#FFFFFF" if _luminance(colour) < MIDDLE_LUMINANCE else "#000000"
        shown = _written(value, digits) if len(values) <= MOST_NUMBERED else ""
        background = "#{:02x}{:02x}{:02x}".format(*colour)
        cells.append(
            f'<td title="{colouring.word} {value:.{colouring.digits}f}"'
            f' style="background:{background};color:{text}">'
            f'<data value="{value:.9g}">{shown}</data></td>'
        )
    return "".join(cells)


def _written(value: float, digits: int) -> str:
    """`−0.05`; what rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _scale(colouring: Colouring, theme: Theme, values: np.ndarray) -> str:
    """The colour bar, lying, with its range; it says where values lie beyond its ends."""
    low, high = colouring.ends(values)
    return (
        f'<div class="awd-scale" style="color:{theme.muted}"><span>{low}</span>'
        f'<i style="background:linear-gradient(to right,{",".join(colouring.colours)})"></i>'
        f"<span>{high}</span><span>{escape(colouring.title)}</span></div>"
    )


def _colours(values: np.ndarray, colouring: Colouring) -> np.ndarray:
    """Red, green, blue of every cell, (K, K, 3): linear between the colours, as Plotly draws it."""
    scale = np.array([_channels(colour) for colour in colouring.colours])
    places = (values - colouring.low) / (colouring.high - colouring.low) * (len(scale) - 1)
    at = np.arange(len(scale))
    channels = [np.interp(np.nan_to_num(places), at, channel) for channel in scale.T]
    return np.rint(np.stack(channels, axis=-1)).astype(np.int64)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: np.ndarray) -> float:
    """WCAG 2's relative luminance, 0 to 1."""
    linear = [
        channel / 12.92 if channel <= 0.03928 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in (part / 255 for part in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
