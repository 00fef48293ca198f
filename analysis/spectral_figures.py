"""Direction by direction: how strong each expert's are, and what the merge makes of them."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.drawing import Trace, figure, names_in, numbers, only, short
from analysis.heatmaps import Colouring, cells
from analysis.measures.spectral_overcounting import directions
from analysis.spectral import (
    matrix_energies,
    matrix_multipliers,
    matrix_positions,
    rotated_matrix,
    spectra,
)
from analysis.tables import MODEL
from analysis.theme import LIGHT, Theme
from analysis.view import Scope, View

# Directions of a heatmap: the strongest ones, which is where experts meet.
MOST_DIRECTIONS = 32
# Singular values below this share of an expert's largest are rounding, and left out of lines.
NEGLIGIBLE = 1e-6


def most_moved_matrix(view: View, scope: Scope = "model", name: str = MODEL) -> str | None:
    """The matrix of a part that the experts move most, by energy; None where it has none.

    Raises:
        StudyError: The study holds no spectra.
    """
    positions = matrix_positions(view)
    inside = view.positions(scope)[positions] == view.labels(scope).index(name)
    if not inside.any():
        return None
    energies = np.where(inside, matrix_energies(view).sum(1), -1.0)
    return view.study.tensors[positions[int(energies.argmax())]].name


def _place(view: View, tensor: str) -> int:
    """Where the spectra hold this matrix."""
    return list(matrix_positions(view)).index(view.study.index[tensor])


def spectrum(view: View, tensor: str) -> pd.DataFrame:
    """Singular values of every expert in one matrix, falling: [expert, direction, value, kept].

    `kept` marks the floor(r/K) leading ones that singular task interference compares. What is
    rounding is left out.

    Raises:
        StudyError: The study holds no spectra.
        ValueError: The matrix was not decomposed.
    """
    at = _place(view, tensor)
    rows = []
    for expert, values, count in zip(
        view.experts, spectra(view).values[at], spectra(view).counts[at], strict=True
    ):
        largest = np.nanmax(values, initial=0.0)
        found = values[values > NEGLIGIBLE * largest].astype(np.float64)
        rows += [(expert, r + 1, value, r < count) for r, value in enumerate(found)]
    return pd.DataFrame(rows, columns=["expert", "direction", "value", "kept"])


def spectrum_sentence(view: View, tensor: str) -> str:
    """What the spectra of one matrix say."""
    table, half = spectrum(view, tensor), {}
    for expert in names_in(table, "expert"):
        energies = np.asarray(only(table, "expert", expert)["value"]) ** 2
        half[expert] = int((np.cumsum(energies) < 0.5 * energies.sum()).sum()) + 1
    if not half:
        return f"No expert moves {tensor}."
    few, many = min(half, key=lambda name: half[name]), max(half, key=lambda name: half[name])
    return (
        f"Half of an expert's energy in {tensor} lies in {half[few]} ({few}) to {half[many]}"
        f" ({many}) directions."
    )


def spectrum_lines(
    table: pd.DataFrame, title: str = "Singular values of each expert", theme: Theme = LIGHT
) -> go.Figure:
    """A line an expert on a logarithmic axis; a dot is the last direction that is compared.

    Args:
        table: From `spectrum`.
        title: What is seen.
        theme: Of the page.
    """
    traces: list[Trace] = []
    for position, expert in enumerate(names_in(table, "expert")):
        own = only(table, "expert", expert)
        last = only(own, "kept", True).tail(1)
        line = {
            "type": "scatter",
            "name": short(expert, 20),
            "legendgroup": expert,
            "hovertemplate": f"{expert}<br>direction %{{x}}<br>s %{{y:.4g}}<extra></extra>",
        }
        colour = theme.expert(position)
        traces.append(
            line
            | {
                "mode": "lines",
                "x": np.asarray(own["direction"], dtype=np.int32),
                "y": np.asarray(own["value"], dtype=np.float32),
                "line": {"color": colour, "width": 2, "dash": _dash(position)},
            }
        )
        traces.append(
            line
            | {
                "mode": "markers",
                "x": np.asarray(last["direction"], dtype=np.int32),
                "y": np.asarray(last["value"], dtype=np.float32),
                "marker": {"color": colour, "size": 8},
                "showlegend": False,
            }
        )
    return figure(
        traces,
        title,
        theme,
        key="spectrum",
        height=340 + 24 * -(-len(names_in(table, "expert")) // 4),
        legend=True,
        xaxis=numbers(theme, "direction, strongest first") | {"zeroline": False},
        yaxis=numbers(theme, "singular value (weight units)")
        | {"type": "log", "tickformat": "~g", "zeroline": False},
    )


def _dash(position: int) -> str:
    """Lines differ in more than colour."""
    return ("solid", "dash", "dot", "dashdot")[position % 4]


def overcounting(view: View, tensor: str) -> pd.DataFrame:
    """What the merge makes of every expert along its directions: [direction, expert, scale].

    `scale` is s_r^k of `measures.spectral_overcounting` at the multipliers of the merge: 1 as the
    expert itself, more counted several times, less attenuated, below 0 reversed; NaN where the
    expert does not move along the direction. The strongest `MOST_DIRECTIONS` of the summed task
    vectors.

    Raises:
        StudyError: The study holds no spectra.
        ValueError: The matrix was not decomposed.
    """
    at = _place(view, tensor)
    one = rotated_matrix(view, view.study.index[tensor])
    scales = directions(one, matrix_multipliers(view)[at])[:MOST_DIRECTIONS]
    n_directions, n_experts = scales.shape
    return pd.DataFrame(
        {
            "direction": np.repeat(np.arange(1, n_directions + 1), n_experts),
            "expert": list(view.experts) * n_directions,
            "scale": scales.ravel(),
        }
    )


def overcounting_sentence(view: View, tensor: str) -> str:
    """How many of the strongest directions of a matrix are counted several times, or reversed."""
    table = overcounting(view, tensor)
    known = table.dropna()
    if known.empty:
        return f"No expert moves along the merge's directions in {tensor}."
    scales = np.asarray(known["scale"])
    several, reversed_ = float((scales > 1).mean()), float((scales < 0).mean())
    worst = known.iloc[int(np.abs(scales - 1).argmax())]
    return (
        f"Along the {table['direction'].max()} strongest directions of {tensor} the merge goes"
        f" further than the expert itself in {several:.0%} of the cells and backwards in"
        f" {reversed_:.0%}; furthest off is {worst['expert']} in direction {worst['direction']},"
        f" {worst['scale']:+.2f} of its own step."
    )


def overcounting_heatmap(
    table: pd.DataFrame,
    title: str = "The merge along each direction, in steps of the expert",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Experts x directions, centred at 1: the merge does what the expert does.

    Args:
        table: From `overcounting`.
        title: What is seen.
        theme: Of the page.
    """
    experts = names_in(table, "expert")
    names = [str(one) for one in table["direction"].unique()]
    values = np.asarray(table["scale"], dtype=np.float64).reshape(len(names), len(experts)).T
    colouring = Colouring(
        0.0,
        2.0,
        theme.diverging,
        "s, 1: as the expert",
        "share of the expert's own step",
        2,
    )
    labels = [short(name, 18) for name in experts]
    height = 130 + 24 * max(len(experts), 4)
    drawn = cells(values, experts, labels, names, colouring, title, theme, "overcounting", height)
    axis = {"text": "direction of Σ τ, strongest first"}
    drawn.update_xaxes(title=axis | {"font": {"color": theme.muted, "size": 12}, "standoff": 6})
    return drawn
