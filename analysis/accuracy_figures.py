"""Accuracy relative to the experts, from expert to task, and from label to answer."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.drawing import Trace, categories, figure, level, names_in, numbers, only, short
from analysis.heatmaps import Colouring
from analysis.tables import MEAN
from analysis.theme import LIGHT, Theme
from awd_core.evaluation import TaskAccuracy

Results = Mapping[str, Sequence[TaskAccuracy]]


def normalised(settings: Results, experts: Sequence[TaskAccuracy]) -> pd.DataFrame:
    """[setting, task, normalised]: a_t / a_t of the task's own expert; the last task is the mean.

    Args:
        settings: For instance `base` and `this setting`; tasks in the order of `experts`.
        experts: Every task's own expert.
    """
    rows = []
    for setting, found in settings.items():
        shares = [
            one.accuracy / own.accuracy if own.accuracy else np.nan
            for one, own in zip(found, experts, strict=True)
        ]
        rows += [(setting, one.task, share) for one, share in zip(found, shares, strict=True)]
        rows.append((setting, MEAN, float(np.mean(shares))))
    return pd.DataFrame(rows, columns=["setting", "task", "normalised"])


def normalised_bars(
    table: pd.DataFrame,
    title: str = "Accuracy relative to each task's own expert",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Bars; 1 is the expert itself.

    Args:
        table: From `normalised`.
        title: What is seen.
        theme: Of the page.
    """
    tasks = [MEAN, *(name for name in names_in(table, "task") if name != MEAN)]
    traces = [
        {
            "type": "bar",
            "name": setting,
            "x": [str(name) for name in mine["task"]],
            "y": np.asarray(mine["normalised"], dtype=np.float32),
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}<br>{setting}<br>%{{y:.1%}} of the expert<extra></extra>",
        }
        for setting, mine, colour in _settings(table, theme)
    ]
    labels = [f"<b>{MEAN}</b>", *(short(name, 16) for name in tasks[1:])]
    return figure(
        traces,
        title,
        theme,
        key="normalised",
        height=340,
        legend=True,
        barmode="group",
        bargap=0.25,
        xaxis=categories(theme, tasks, labels),
        yaxis=numbers(theme, "share of the expert's accuracy")
        | {"tickformat": ".0%", "rangemode": "tozero"},
        shapes=[level(1.0, theme)],
    )


def radar(
    table: pd.DataFrame, title: str = "The same as a radar", theme: Theme = LIGHT
) -> go.Figure:
    """One line a setting around all tasks; the outer ring is the expert of each task.

    Args:
        table: From `normalised`.
        title: What is seen.
        theme: Of the page.
    """
    traces: list[Trace] = []
    for setting, mine, colour in _settings(table, theme):
        mine = mine.loc[mine["task"] != MEAN]
        tasks = [short(str(name), 16) for name in mine["task"]]
        values = np.asarray(mine["normalised"], dtype=np.float32)
        traces.append(
            {
                "type": "scatterpolar",
                "name": setting,
                "theta": [*tasks, tasks[0]],
                "r": np.append(values, values[0]),
                "mode": "lines+markers",
                "line": {"color": colour, "width": 2},
                "marker": {"size": 5},
                "hovertemplate": f"%{{theta}}<br>{setting}<br>%{{r:.1%}}<extra></extra>",
            }
        )
    high = max(1.05, float(np.nanmax(table["normalised"], initial=0.0)) * 1.05)
    axis = {"gridcolor": theme.grid, "linecolor": theme.grid}
    return figure(
        traces,
        title,
        theme,
        key="radar",
        height=400,
        margin={"l": 96, "r": 80, "t": 52, "b": 56},
        legend=True,
        polar={
            "bgcolor": "rgba(0,0,0,0)",
            "angularaxis": axis | {"tickfont": {"color": theme.text, "size": 11}},
            "radialaxis": axis
            | {
                "range": [0, high],
                "tickformat": ".0%",
                "tickfont": {"size": 10, "color": theme.muted},
                "tickvals": [0.5, 1.0],
                "angle": 22.5,
            },
        },
    )


def transfer(results: Results) -> pd.DataFrame:
    """Experts (rows) x tasks (columns): accuracy of every expert on every task."""
    tasks = [one.task for one in next(iter(results.values()))]
    values = [[one.accuracy for one in found] for found in results.values()]
    return pd.DataFrame(values, index=pd.Index(list(results)), columns=pd.Index(tasks))


def transfer_colouring(theme: Theme = LIGHT) -> Colouring:
    """From no right answer to all right."""
    return Colouring(0.0, 1.0, theme.sequential, "accuracy, range 0 to 1", "accuracy", 3)


def confusion(found: TaskAccuracy, labels: Sequence[str]) -> pd.DataFrame:
    """Labels (rows) x answers (columns): the share of the texts of a label with each answer.

    NaN in the row of a label without texts.

    Raises:
        ValueError: The answers were not counted.
    """
    if not found.confusion:
        raise ValueError(f"no confusion was counted for {found.task}")
    counts = np.array(found.confusion, dtype=np.float64)
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.where(totals > 0, totals, np.nan)
    return pd.DataFrame(shares, index=pd.Index(labels), columns=pd.Index(labels))


def confusion_colouring(theme: Theme = LIGHT) -> Colouring:
    """From never to always."""
    return Colouring(0.0, 1.0, theme.sequential, "share of the row's texts", "share", 3)


def _settings(table: pd.DataFrame, theme: Theme) -> list[tuple[str, pd.DataFrame, str]]:
    """Every setting with its rows and colour: grey for the base, the last one first in colour."""
    names = names_in(table, "setting")
    merges = [name for name in names if name != "base"]
    colours = {name: theme.expert(place) for place, name in enumerate(reversed(merges))}
    return [(name, only(table, "setting", name), colours.get(name, theme.quiet)) for name in names]
