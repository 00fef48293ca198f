"""Does the expert that interferes more lose more? Interference beside accuracy, with its doubts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy import stats

from analysis.arithmetic import mean
from analysis.drawing import figure, numbers
from analysis.theme import LIGHT, Theme
from analysis.view import View
from awd_core.evaluation import TaskAccuracy

# Below this two-sided p value a correlation is taken for one.
SIGNIFICANT = 0.05
# Fewer points than this can line up by accident at any p value.
FEWEST = 5
MEANINGS = {
    "Too few experts": f"Fewer than {FEWEST} experts cannot tell a correlation from an accident.",
    "No correlation": "No correlation: on this model interference of weights does not tell which"
    " task loses accuracy.",
    "Negative correlation": "The correlation is negative: experts that interfere more lose less"
    " here.",
    "Correlation": "Experts that interfere more lose more here.",
}


@dataclass(frozen=True)
class Correlation:
    """Pearson's r and Spearman's rho of interference and drop, with two-sided p values."""

    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float
    n: int

    @property
    def is_known(self) -> bool:
        """Whether there are coefficients: enough points, and both numbers vary."""
        return not np.isnan(self.pearson)

    @property
    def verdict(self) -> str:
        """One of `MEANINGS`, short enough to stand in a narrow picture."""
        if self.n < FEWEST:
            return "Too few experts"
        if not self.pearson_p < SIGNIFICANT:
            return "No correlation"
        return "Correlation" if self.pearson > 0 else "Negative correlation"

    @property
    def holds(self) -> bool:
        """Whether experts that interfere more do lose more."""
        return self.verdict == "Correlation"

    @property
    def coefficients(self) -> str:
        """Pearson's in figures; nothing where it is not known."""
        return f"r = {self.pearson:+.2f}, p = {self.pearson_p:.2g}" if self.is_known else ""

    @property
    def sentence(self) -> str:
        """What the coefficients allow to say, and both of them."""
        meaning = MEANINGS[self.verdict]
        if not self.is_known:
            return meaning
        rank = f"Spearman ρ = {self.spearman:+.2f}, p = {self.spearman_p:.2g}"
        return f"{meaning} {self.n} experts: Pearson {self.coefficients}; {rank}."


def interference_of_experts(view: View) -> np.ndarray:
    """Mean over blocks and other experts of |cos| before AWD, (K,); NaN for one that moved none."""
    sizes = np.abs(view.cosines("block", "before"))
    others = np.where(np.eye(view.n_experts, dtype=bool), np.nan, sizes)
    return mean(mean(others).T)


def drops(
    view: View, experts: Sequence[TaskAccuracy], merged: Sequence[TaskAccuracy]
) -> pd.DataFrame:
    """[expert, task, interference, own, merged, drop]: accuracy lost from expert to merge.

    Args:
        view: What interferes.
        experts: Accuracy of every expert on its own task, in the experts' order.
        merged: Accuracy of the merge on the same tasks.
    """
    rows = zip(view.experts, interference_of_experts(view), experts, merged, strict=True)
    return pd.DataFrame(
        [
            (expert, own.task, size, own.accuracy, after.accuracy, own.accuracy - after.accuracy)
            for expert, size, own, after in rows
        ],
        columns=["expert", "task", "interference", "own", "merged", "drop"],
    )


def correlation(table: pd.DataFrame) -> Correlation:
    """Of the columns `interference` and `drop`; NaN where one of them does not vary."""
    x, y = (np.asarray(table[name], dtype=np.float64) for name in ("interference", "drop"))
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, np.nan, np.nan, np.nan, len(x))
    (r, p), (rho, q) = tuple(stats.pearsonr(x, y)), tuple(stats.spearmanr(x, y))
    return Correlation(float(r), float(p), float(rho), float(q), len(x))


def drop_scatter(
    table: pd.DataFrame,
    title: str = "Does the expert that interferes more lose more?",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Interference against accuracy lost, one point for each expert; the verdict stands in it.

    A line is drawn only where there is a correlation to draw.

    Args:
        table: From `drops`.
        title: What is seen.
        theme: Of the page.
    """
    found = correlation(table)
    x, y = (np.asarray(table[name], dtype=np.float64) for name in ("interference", "drop"))
    traces = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": x.tolist(),
            "y": y.tolist(),
            "text": list(table["expert"]),
            "textposition": "top center",
            "textfont": {"color": theme.text, "size": 11},
            "cliponaxis": False,
            "marker": {"size": 11, "color": [theme.expert(k) for k in range(len(table))]},
            "hovertemplate": "%{text}<br>mean |cos| %{x:.4f}<br>accuracy lost %{y:.3f}"
            "<extra></extra>",
        }
    ]
    if found.holds:
        known = ~(np.isnan(x) | np.isnan(y))
        slope, start = np.polyfit(x[known], y[known], 1)
        ends = np.array([x[known].min(), x[known].max()])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": ends,
                "y": start + slope * ends,
                "line": {"color": theme.muted, "dash": "dash"},
                "hoverinfo": "skip",
            }
        )
    note = {
        "text": ": ".join(filter(None, (found.verdict, found.coefficients))),
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"color": theme.muted if found.holds else theme.text, "size": 12},
    }
    return figure(
        traces,
        title,
        theme,
        key="drops",
        height=400,
        xaxis=numbers(theme, "mean |cos| with the other experts, over blocks"),
        yaxis=numbers(theme, "accuracy lost from expert to merge") | {"tickformat": ".2f"},
        annotations=[note],
        margin={"l": 8, "r": 8, "t": 64, "b": 8},
    )
