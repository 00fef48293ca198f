"""lambda by block: a curve of factors, and the one that makes up for interference."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.arithmetic import diagonal, mean, ratio
from analysis.drawing import categories, figure, level, numbers
from analysis.theme import LIGHT, Theme
from analysis.view import View

# A suggestion stays within these; more would be a guess.
LEAST, MOST = 0.25, 2.0


def suggested(view: View) -> dict[str, float]:
    r"""Factors with which every block keeps the same share of the experts' own steps.

    r_b is the mean over experts of `<sum_j v_j, tau_k> / ||tau_k||^2` in block b: 1 where they do
    not interfere, more where directions are counted twice, less where they cancel. The factor is
    the mean of r over the blocks, by energy, over r_b; blocks that nobody moves are left out.
    """
    moments = view.moments("block")
    energies = diagonal(moments.grams)
    ones = np.ones(view.n_experts)
    share = mean(ratio(moments.merged_products(ones), energies))
    weight = np.where(np.isnan(share), 0.0, energies.sum(1))
    if not weight.any():
        return {}
    whole = float((weight * np.nan_to_num(share)).sum() / weight.sum())
    factors = {}
    for block, found in zip(view.labels("block"), share, strict=True):
        if np.isnan(found):
            continue
        factor = whole / found if found * whole > 0 else MOST
        factors[block] = round(float(np.clip(factor, LEAST, MOST)), 3)
    return {block: factor for block, factor in factors.items() if factor != 1.0}


def table(blocks: tuple[str, ...], factors: dict[str, float]) -> pd.DataFrame:
    """[block, factor], 1 where nothing else was said."""
    return pd.DataFrame(
        {"block": list(blocks), "factor": [factors.get(block, 1.0) for block in blocks]}
    )


def curve(
    factors: pd.DataFrame, title: str = "λ by block, as a multiple", theme: Theme = LIGHT
) -> go.Figure:
    """The factor of every block; 1 is λ itself.

    Args:
        factors: From `table`.
        title: What is seen.
        theme: Of the page.
    """
    blocks = [str(block) for block in factors["block"]]
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": blocks,
        "y": np.asarray(factors["factor"], dtype=np.float32),
        "line": {"color": theme.expert(0), "width": 2, "shape": "hvh"},
        "hovertemplate": "%{x}<br>λ × %{y:.3g}<extra></extra>",
    }
    return figure(
        [trace],
        title,
        theme,
        key="factors",
        height=260,
        xaxis=categories(theme, blocks),
        yaxis=numbers(theme, "factor of λ") | {"rangemode": "tozero"},
        shapes=[level(1.0, theme)],
    )
