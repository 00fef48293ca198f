"""One measure over the whole model at a glance: pairs, experts or kinds x blocks.

A frame holds the numbers, a figure shows them, and both come from the measure's own definition.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.arithmetic import mean, pairs
from analysis.drawing import short
from analysis.heatmaps import Colouring, cells
from analysis.measure import Measure
from analysis.measures import measure as measure_of
from analysis.scales import CHANCE, decimals, rounded_up, written
from analysis.tables import pair_label
from analysis.theme import LIGHT, Theme
from analysis.view import Scope, View

Rows = Literal["pairs", "experts", "kinds"]
ROWS: tuple[Rows, ...] = get_args(Rows)


def rows_for(measure: Measure) -> tuple[Rows, ...]:
    """What the rows of a measure's overview can be; its own first."""
    return {"pair": ("pairs", "kinds"), "expert": ("experts", "kinds"), "part": ("kinds",)}[
        measure.per
    ]


def in_rows(measure: Measure, rows: Rows) -> Measure:
    """What the overview shows of a measure: at `kinds` the size of one that is signed.

    Averaged over pairs with their signs, those that pull together would cancel those that oppose.
    """
    if rows != "kinds" or not signed(measure):
        return measure
    size = measure_of(f"absolute_{measure.key}")
    title = size.title.replace("Absolute cosine", "Mean |cos|")
    return replace(size, title=title, reading=f"Mean over all pairs of |cos|. {size.reading}")


def overview(view: View, measure: Measure, rows: Rows) -> pd.DataFrame:
    """Rows x blocks, NaN where the number does not exist.

    At `kinds` a number per pair or per expert is averaged over them; `in_rows` says which number.

    Raises:
        ValueError: The measure has no such rows.
    """
    if rows not in rows_for(measure):
        raise ValueError(f"{measure.key} has no rows {rows!r}")
    blocks = view.labels("block")
    if rows == "pairs":
        first, second = pairs(view.n_experts)
        values = measure.of(view, "block")[:, first, second].T
        labels = [
            pair_label(view.experts[i], view.experts[j]) for i, j in zip(first, second, strict=True)
        ]
    elif rows == "experts":
        values, labels = measure.of(view, "block").T, list(view.experts)
    else:
        values, labels = _by_kind(view, in_rows(measure, rows)), list(view.labels("kind"))
    return pd.DataFrame(values, index=pd.Index(labels), columns=pd.Index(blocks))


def _by_kind(view: View, measure: Measure) -> np.ndarray:
    """(kinds, blocks) from the tensors of every kind in every block."""
    values = measure.of(view, "cell")
    if measure.per == "pair":
        values = mean(values[:, *pairs(view.n_experts)])
    elif measure.per == "expert":
        values = mean(values)
    position = {label: number for number, label in enumerate(view.labels("cell"))}
    return np.array(
        [
            [
                values[position[label]] if (label := cell(block, kind)) in position else np.nan
                for block in view.labels("block")
            ]
            for kind in view.labels("kind")
        ]
    )


def cell(block: str, kind: str) -> str:
    """The part of scope `cell`: the tensors of one kind in one block."""
    return f"{block}, {kind}"


def matrix_of(view: View, measure: Measure, scope: Scope, name: str) -> pd.DataFrame:
    """A measure of pairs in one part, K x K, labelled by experts.

    Raises:
        ValueError: It is no measure of pairs, or the scope has no part of this name.
    """
    if measure.per != "pair":
        raise ValueError(f"{measure.key} is no measure of pairs")
    names = pd.Index(view.experts)
    values = measure.of(view, scope)[view.labels(scope).index(name)]
    return pd.DataFrame(values, index=names, columns=names)


def signed(measure: Measure) -> bool:
    """Whether 0 is its middle: a number per pair with values of both signs."""
    whole = measure.key.startswith("absolute")
    return measure.per == "pair" and measure.baseline == 0 and not whole


@dataclass(frozen=True)
class Range:
    """The ends of a colour scale, shared by figures that are compared.

    Attributes:
        low: Value at the lower end.
        high: Value at the upper end.
        diverging: Whether the middle is without colour.
    """

    low: float
    high: float
    diverging: bool


def shared_range(measure: Measure, *frames: pd.DataFrame) -> Range:
    """Round ends that no value of any frame lies beyond; symmetric where there is a middle."""
    found = [frame.to_numpy(dtype=np.float64).ravel() for frame in frames]
    values = np.concatenate(found) if found else np.empty(0)
    values = values[np.isfinite(values)]
    middle = 0.0 if signed(measure) else None
    if measure.per == "pair" and measure.baseline == CHANCE:
        middle = CHANCE
    if middle is None and (values < 0).any():
        middle = 0.0
    if middle is None:
        return Range(0.0, rounded_up(float(values.max(initial=0.0))) or 1.0, diverging=False)
    furthest = rounded_up(float(np.abs(values - middle).max(initial=0.0)))
    limit = max(0.02, furthest)
    limit = min(limit, CHANCE) if middle == CHANCE else limit
    return Range(middle - limit, middle + limit, diverging=True)


def colouring(measure: Measure, ends: Range, theme: Theme = LIGHT) -> Colouring:
    """Colours of a measure: conflict of signs is blue above chance, as negative cosines are."""
    unit = "" if measure.unit == "1" else f" ({measure.unit})"
    if not ends.diverging:
        title = f"{measure.title}{unit}, range {ends.low:g} to {ends.high:g}"
        digits = decimals(ends.high) + 1
        return Colouring(ends.low, ends.high, theme.sequential, title, measure.title, digits)
    middle = (ends.low + ends.high) / 2
    limit = ends.high - middle
    at = f"{middle:g} " if middle else ""
    colours = theme.diverging[::-1] if middle == CHANCE else theme.diverging
    word = "cos" if measure.key.startswith("cosine") else measure.title
    title = f"{word}{unit}, range {at}{written(limit)}"
    return Colouring(ends.low, ends.high, colours, title, word, max(3, decimals(limit)))


def overview_heatmap(
    frame: pd.DataFrame,
    measure: Measure,
    ends: Range,
    title: str,
    theme: Theme = LIGHT,
) -> go.Figure:
    """Rows x blocks, every cell selectable; markers carry (row, block, number in words).

    Args:
        frame: From `overview`; its rows in the order they shall stand in.
        measure: What the numbers are.
        ends: Of the colour scale.
        title: What is seen.
        theme: Of the page.
    """
    names = [str(name) for name in frame.index]
    labels = [" × ".join(short(part, 12) for part in name.split(" × ")) for name in names]
    return cells(
        frame.to_numpy(dtype=np.float64),
        names,
        labels,
        [str(name) for name in frame.columns],
        colouring(measure, ends, theme),
        title,
        theme,
        "overview",
        110 + 20 * max(len(names), 4),
    )
