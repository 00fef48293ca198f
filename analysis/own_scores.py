"""Scores on texts of one's own: base, experts and merge side by side."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.drawing import categories, figure, names_in, numbers, only, short
from analysis.theme import LIGHT, Theme
from awd_core.evaluation.own import Score

UNITS = {"accuracy": "accuracy ± standard error", "loss": "loss (nats a token) ± standard error"}


def table(scores: Sequence[Score]) -> pd.DataFrame:
    """[model, task, metric, value, standard_error, perplexity, n, tokens], in the scores' order.

    Perplexity is exp(loss), NaN for an accuracy.
    """
    rows = [
        (s.model, s.task, s.metric, s.value, s.standard_error, s.perplexity, s.n, s.tokens)
        for s in scores
    ]
    columns = ["model", "task", "metric", "value", "standard_error", "perplexity", "n", "tokens"]
    return pd.DataFrame(rows, columns=columns)


def bars(found: pd.DataFrame, title: str = "On your own texts", theme: Theme = LIGHT) -> go.Figure:
    """A group of bars for every model, one bar a task.

    Args:
        found: From `table`.
        title: What is seen.
        theme: Of the page.
    """
    models, tasks = names_in(found, "model"), names_in(found, "task")
    metric = str(found["metric"].iloc[0])
    traces = []
    for position, task in enumerate(tasks):
        own = only(found, "task", task)
        errors = np.nan_to_num(np.asarray(own["standard_error"], dtype=np.float32))
        traces.append(
            {
                "type": "bar",
                "name": short(task, 24),
                "x": [str(model) for model in own["model"]],
                "y": np.asarray(own["value"], dtype=np.float32),
                "customdata": np.stack([errors, np.asarray(own["n"])], axis=1),
                "error_y": {"array": errors, "thickness": 1, "width": 2, "color": theme.text},
                "marker": {"color": theme.expert(position)},
                "hovertemplate": f"%{{x}}<br>{task}<br>{metric} %{{y:.4f}} ±"
                " %{customdata[0]:.4f}<br>n = %{customdata[1]:.0f}<extra></extra>",
            }
        )
    axis = numbers(theme, UNITS[metric])
    axis |= {"range": [0, 1.02]} if metric == "accuracy" else {"rangemode": "tozero"}
    return figure(
        traces,
        title,
        theme,
        key="own_scores",
        height=340,
        legend=len(tasks) > 1,
        barmode="group",
        bargap=0.25,
        xaxis=categories(theme, models, [short(name, 18) for name in models]),
        yaxis=axis,
    )
