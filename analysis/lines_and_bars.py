"""Figures of lines and bars: norms, shares, signal, loss, accuracy."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.drawing import Trace, categories, figure, level, names_in, numbers, only, short
from analysis.tables import CRITICAL, KNEE, MEAN, MODEL
from analysis.theme import LIGHT, Theme


def redundant_norm_bars(
    table: pd.DataFrame,
    title: str = "Redundant vector by block",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Norm of the redundant vector relative to the mean task-vector norm, by block and model.

    Args:
        table: From `tables.redundant_by_block`.
        title: What is seen.
        theme: Of the page.
    """
    names = names_in(table, "block")
    trace = {
        "type": "bar",
        "x": names,
        "y": _numbers(table, "relative_norm"),
        "customdata": _numbers(table, "norm"),
        "marker": {"color": [theme.muted if name == MODEL else theme.expert(0) for name in names]},
        "hovertemplate": "%{x}<br>‖δ‖ / mean ‖τ‖ %{y:.4f}<br>‖δ‖ %{customdata:.4g}<extra></extra>",
    }
    return figure(
        [trace],
        title,
        theme,
        key="redundant",
        height=280,
        xaxis=categories(theme, names),
        yaxis=numbers(theme, "‖δ‖ / mean ‖τ‖") | {"rangemode": "tozero"},
    )


def share_lines(
    table: pd.DataFrame,
    title: str = "Share of λ that each expert keeps, by block",
    theme: Theme = LIGHT,
) -> go.Figure:
    """w_k / lambda of every expert over the blocks, and bars for the whole model; 1 is untouched.

    Args:
        table: From `tables.shares_by_block`.
        title: What is seen.
        theme: Of the page.
    """
    experts, whole = names_in(table, "expert"), only(table, "block", MODEL)
    blocks = [name for name in names_in(table, "block") if name != MODEL]
    # The rows of the model come last.
    shares = _numbers(table, "share")[: len(blocks) * len(experts)].reshape(len(blocks), -1)
    colours = [theme.expert(position) for position in range(len(experts))]
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": expert,
            "x": blocks,
            "y": shares[:, position],
            "line": {"color": colours[position], "width": 2},
            "marker": {"size": 5},
            "hovertemplate": f"{expert}<br>%{{x}}<br>w/λ %{{y:.3f}}<extra></extra>",
        }
        for position, expert in enumerate(experts)
    ]
    traces.append(
        {
            "type": "bar",
            "x": experts,
            "y": _numbers(whole, "share"),
            "xaxis": "x2",
            "marker": {"color": colours},
            "showlegend": False,
            "hovertemplate": "%{x}<br>whole model<br>w/λ %{y:.3f}<extra></extra>",
        }
    )
    model = categories(theme, experts) | {
        "domain": [0.78, 1.0],
        "showticklabels": False,
        "title": {"text": "model", "font": {"color": theme.muted, "size": 11}, "standoff": 4},
    }
    return figure(
        traces,
        title,
        theme,
        key="shares",
        height=340 + 24 * -(-len(experts) // 3),
        legend=True,
        xaxis=categories(theme, blocks) | {"domain": [0.0, 0.75]},
        xaxis2=model,
        yaxis=numbers(theme, "w / λ"),
        shapes=[level(1.0, theme)],
    )


def retained_bars(
    table: pd.DataFrame,
    before: pd.DataFrame | None = None,
    title: str = "How much of each expert is in the merge",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Retained signal of every expert; 1 is the expert's own step.

    Args:
        table: From `tables.retained`.
        before: The same for the merge without AWD, `tables.retained(view.plain)`.
        title: What is seen.
        theme: Of the page.
    """
    settings = [("with AWD", table, theme.expert(0))]
    if before is not None:
        settings.insert(0, ("without AWD", before, theme.quiet))
    names = names_in(table, "expert")
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": names,
            "y": _numbers(found, "retained"),
            "customdata": _numbers(found, "alignment"),
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}<br>{name}<br>retained %{{y:.3f}}"
            "<br>cos with the merge %{customdata:.3f}<extra></extra>",
        }
        for name, found, colour in settings
    ]
    return figure(
        traces,
        title,
        theme,
        key="retained",
        height=320,
        legend=before is not None,
        barmode="group",
        xaxis=categories(theme, names, [short(name, 14) for name in names]),
        yaxis=numbers(theme, "⟨τ<sub>M</sub>, τ<sub>k</sub>⟩ / ‖τ<sub>k</sub>‖²"),
    )


def loss_trace(
    table: pd.DataFrame, title: str = "Descent of AWD's objective", theme: Theme = LIGHT
) -> go.Figure:
    """The loss over the steps, averaged over AWD's groups.

    Args:
        table: From `tables.loss_trace`.
        title: What is seen.
        theme: Of the page.
    """
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": np.asarray(table["step"], dtype=np.int32),
        "y": _numbers(table, "loss"),
        "line": {"color": theme.expert(0), "width": 2},
        "hovertemplate": "step %{x}<br>loss %{y:.5f}<extra></extra>",
    }
    return figure(
        [trace],
        title,
        theme,
        key="loss",
        height=260,
        xaxis=numbers(theme, "step") | {"zeroline": False},
        yaxis=numbers(theme, "mean |cos| + penalty") | {"zeroline": False},
    )


# Column of `tables.alpha_path`: title of its figure, of its axis, how its numbers are written.
_OVER_ALPHA = {
    "mean_absolute_cosine": ("Cosine of two experts", "mean |cos|", ".4f"),
    "relative_redundant_norm": ("Length of the redundant vector", "‖δ‖ / mean ‖τ‖", ".1%"),
    "retained_norm": ("Length that the sum keeps", "‖Σ v‖ / ‖Σ τ‖", ".2%"),
}
_ALPHA_TICKS = {
    "type": "log",
    "tickvals": [0.001, 0.01, 0.1, 1],
    "ticktext": ["0.001", "0.01", "0.1", "1"],
    "ticklabelstandoff": 4,
    "zeroline": False,
}


def alpha_path_lines(
    table: pd.DataFrame,
    column: str,
    setting: pd.DataFrame | None = None,
    title: str | None = None,
    theme: Theme = LIGHT,
) -> go.Figure:
    """One of mean |cos|, redundant norm and retained norm over alpha / alpha_crit.

    alpha_crit and the knee are lines, this setting is a point; alpha = 0 has its point at the left
    end of the logarithmic axis.

    Args:
        table: From `tables.alpha_path`.
        column: `mean_absolute_cosine`, `relative_redundant_norm` or `retained_norm`.
        setting: From `tables.alpha_setting`.
        title: What is seen; None for the column's own.
        theme: Of the page.
    """
    shares = _numbers(table, "share")
    own_title, name, form = _OVER_ALPHA[column]
    words = f"α %{{customdata:.3g}} = %{{x:.3g}} α<sub>crit</sub><br>{name} %{{y:{form}}}"
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": shares,
            "y": _numbers(table, column),
            "customdata": _numbers(table, "alpha"),
            "line": {"color": theme.expert(0), "width": 2},
            "hovertemplate": f"{words}<extra></extra>",
        }
    ]
    if setting is not None and len(setting):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": np.maximum(_numbers(setting, "share"), shares[0]),
                "y": _numbers(setting, column),
                "customdata": _numbers(setting, "alpha"),
                "marker": {"size": 11, "color": theme.expert(1)},
                "cliponaxis": False,
                "hovertemplate": f"this setting: α %{{customdata:.3g}}<br>{name}"
                f" %{{y:{form}}}<extra></extra>",
            }
        )
    lines, names = _alpha_marks(table, theme)
    return figure(
        traces,
        title or own_title,
        theme,
        key="alpha",
        height=280,
        margin={"l": 8, "r": 8, "t": 60, "b": 8},
        shapes=lines,
        annotations=names,
        xaxis=numbers(theme, "α / α<sub>crit</sub>") | _ALPHA_TICKS,
        yaxis=numbers(theme, name)
        | {"tickformat": ".4~f" if form == ".4f" else ".1~%", "zeroline": False},
    )


def _alpha_marks(table: pd.DataFrame, theme: Theme) -> tuple[list[Trace], list[Trace]]:
    """Lines at alpha_crit and at the knee, and their names above."""
    lines: list[Trace] = []
    names: list[Trace] = []
    marks = ((CRITICAL, "α<sub>crit</sub>", "left", "dash"), (KNEE, "knee", "right", "dot"))
    for mark, name, side, dash in marks:
        for share in _numbers(only(table, "mark", mark), "share"):
            lines.append(
                {
                    "type": "line",
                    "yref": "paper",
                    "x0": float(share),
                    "x1": float(share),
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": theme.muted, "width": 1, "dash": dash},
                }
            )
            names.append(
                {
                    "text": name,
                    "yref": "paper",
                    # Annotations of a logarithmic axis are placed by the exponent.
                    "x": float(np.log10(share)),
                    "y": 1,
                    "xanchor": side,
                    "yanchor": "bottom",
                    "showarrow": False,
                    "font": {"color": theme.muted, "size": 11},
                }
            )
    return lines, names


# Colours by place in `Theme.experts`: a pin never stands beside the last setting.
_PLACES_OF_PINS = {letter: place for place, letter in enumerate("ABCDEF", start=1)}


def accuracy_bars(
    table: pd.DataFrame, title: str = "Accuracy on each task", theme: Theme = LIGHT
) -> go.Figure:
    """Bars with standard errors: the mean first, then a group a task; one colour a setting.

    Args:
        table: From `tables.accuracies`.
        title: What is seen.
        theme: Of the page.
    """
    tasks = [MEAN, *(name for name in names_in(table, "task") if name != MEAN)]
    settings = names_in(table, "setting")
    traces = [
        _accuracies(only(table, "setting", setting), setting, colour, theme)
        for setting, colour in zip(settings, _setting_colours(settings, theme), strict=True)
    ]
    labels = [f"<b>{MEAN}</b>", *(short(name, 16) for name in tasks[1:])]
    return figure(
        traces,
        title,
        theme,
        key="accuracy",
        height=360,
        legend=True,
        barmode="group",
        bargap=0.25,
        xaxis=categories(theme, tasks, labels),
        yaxis=numbers(theme, "accuracy ± standard error") | {"range": [0, 1.02]},
    )


def _accuracies(table: pd.DataFrame, setting: str, colour: str, theme: Theme) -> Trace:
    errors = _numbers(table, "standard_error")
    return {
        "type": "bar",
        "name": setting,
        "x": [str(name) for name in table["task"]],
        "y": _numbers(table, "accuracy"),
        "customdata": np.stack([errors, _numbers(table, "n")], axis=1),
        "error_y": {"array": errors, "thickness": 1, "width": 2, "color": theme.text},
        "marker": {"color": colour},
        "hovertemplate": f"%{{x}}<br>{setting}<br>accuracy %{{y:.3f}} ± %{{customdata[0]:.3f}}"
        "<br>n = %{customdata[1]:.0f}<extra></extra>",
    }


def _setting_colours(settings: Sequence[str], theme: Theme) -> list[str]:
    """One colour for each setting, whichever others stand beside it or are still awaited.

    Base and experts do not change and are grey; a pin has the colour of its letter.
    """
    greys = {"base": theme.quiet, "own expert": theme.muted}
    places = {"this setting": 0, "now": 0, "last setting": 1, **_PLACES_OF_PINS}
    return [
        greys.get(setting) or theme.expert(places.get(setting, place))
        for place, setting in enumerate(settings)
    ]


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    return np.asarray(table[column], dtype=np.float32)
