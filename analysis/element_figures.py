"""Weight by weight: do the experts agree on directions, and who needs which weights?"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.drawing import categories, figure, names_in, numbers, short
from analysis.measures import element_agreement, tall_masks
from analysis.tables import MODEL
from analysis.theme import LIGHT, Theme
from analysis.view import Scope, View

# Parts of the moved weights, by how many experts need them where the merge puts them.
CLASSES = {"general": "several experts", "selfish": "one expert alone", "catastrophic": "no expert"}


def agreement(
    view: View, scope: Scope = "model", name: str = MODEL, density: float = 0.2
) -> pd.DataFrame:
    """|p - m| / (p + m) of the weights that two experts move: [from, to, share, share_of_model].

    One row a bin; both shares sum to 1. NaN where no two experts move a weight.

    Args:
        view: What is looked at; only its study counts.
        scope: Of the part.
        name: Of the part.
        density: How many of the largest entries of every task vector count, one of
            `awd_core.elements.DENSITIES`.
    """
    part = element_agreement.histogram(view, scope, density)[view.labels(scope).index(name)]
    edges = np.linspace(0, 1, element_agreement.N_BINS + 1)
    return pd.DataFrame(
        {
            "from": edges[:-1],
            "to": edges[1:],
            "share": part,
            "share_of_model": element_agreement.histogram(view, "model", density)[0],
        }
    )


def agreement_sentence(table: pd.DataFrame) -> str:
    """What the histogram says of its part."""
    if np.isnan(table["share"]).any():
        return "No two experts move the same weight."
    same, torn = table["share"].iloc[-1], table.loc[table["to"] <= 0.5, "share"].sum()
    return (
        f"On {same:.1%} of the weights that several experts move, (almost) all move the same way;"
        f" on {torn:.1%} they are torn, agreement below one half."
    )


def agreement_bars(
    table: pd.DataFrame,
    part: str = MODEL,
    title: str = "Agreement on direction, weight by weight",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Histogram of agreement; beside a part stands the whole model.

    Args:
        table: From `agreement`.
        part: What the table's part is called.
        title: What is seen.
        theme: Of the page.
    """
    names = [
        f"{low:.1f} to {high:.1f}" for low, high in zip(table["from"], table["to"], strict=True)
    ]
    shown = [(part, "share", theme.expert(0))]
    if part != MODEL:
        shown.append(("whole model", "share_of_model", theme.quiet))
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": names,
            "y": np.asarray(table[column], dtype=np.float32),
            "marker": {"color": colour},
            "hovertemplate": f"agreement %{{x}}<br>{name}<br>%{{y:.1%}} of the weights"
            "<extra></extra>",
        }
        for name, column, colour in shown
    ]
    axis = categories(theme, names)
    axis["title"] = {
        "text": "0: as many up as down. 1: all the same way",
        "font": {"color": theme.muted, "size": 12},
        "standoff": 6,
    }
    legend = len(shown) > 1
    return figure(
        traces,
        title,
        theme,
        key="agreement",
        height=300 + 24 * legend,
        legend=legend,
        barmode="group",
        xaxis=axis,
        yaxis=numbers(theme, "share of the weights") | {"tickformat": ".0%", "rangemode": "tozero"},
    )


def masks(view: View, share: float = tall_masks.DEFAULT_SHARE) -> pd.DataFrame:
    """[block, general, selfish, catastrophic], shares of the moved weights; `model` comes last.

    A block that nobody moves has no shares, NaN.

    Args:
        view: What is looked at; only its study counts.
        share: lambda of the masks, one of `awd_core.elements.MASK_SHARES`.
    """
    found = np.concatenate([tall_masks.profile(view, scope, share) for scope in ("block", "model")])
    return pd.DataFrame(
        {
            "block": [*view.labels("block"), MODEL],
            "general": found[:, 2:].sum(1) + 0.0 * found[:, 0],
            "selfish": found[:, 1],
            "catastrophic": found[:, 0],
        }
    )


def mask_densities(
    view: View, share: float = tall_masks.DEFAULT_SHARE, scope: Scope = "model", name: str = MODEL
) -> pd.DataFrame:
    """[expert, density]: share of the part's weights that each expert's mask keeps."""
    found = tall_masks.density(view, scope, share)[view.labels(scope).index(name)]
    return pd.DataFrame({"expert": list(view.experts), "density": found})


def mask_sentence(view: View, share: float = tall_masks.DEFAULT_SHARE) -> str:
    """What the masks say of the whole model."""
    whole = masks(view, share).iloc[-1]
    if np.isnan(whole["selfish"]):
        return "No expert moves a weight."
    return (
        f"Of the moved weights, several experts need {whole['general']:.1%}, one alone needs"
        f" {whole['selfish']:.1%}, and {whole['catastrophic']:.1%} serve nobody where the merge"
        " puts them."
    )


def mask_bars(
    table: pd.DataFrame,
    densities: pd.DataFrame,
    part: str = MODEL,
    title: str = "Who needs the weights that moved, by block",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Stacked shares over the blocks, and the density of every expert's mask in a part.

    Args:
        table: From `masks`.
        densities: From `mask_densities`.
        part: What the part of the densities is called.
        title: What is seen.
        theme: Of the page.
    """
    blocks, experts = names_in(table, "block"), names_in(densities, "expert")
    colours = {
        "general": theme.expert(0),
        "selfish": theme.quiet,
        "catastrophic": theme.expert(1),
    }
    traces = [
        {
            "type": "bar",
            "name": f"{name}: {who}",
            "x": blocks,
            "y": np.asarray(table[name], dtype=np.float32),
            "marker": {"color": colours[name]},
            "hovertemplate": f"%{{x}}<br>{name}: {who}<br>%{{y:.1%}} of the moved weights"
            "<extra></extra>",
        }
        for name, who in CLASSES.items()
    ]
    traces.append(
        {
            "type": "bar",
            "x": experts,
            "y": np.asarray(densities["density"], dtype=np.float32),
            "xaxis": "x2",
            "yaxis": "y2",
            "marker": {"color": theme.muted},
            "showlegend": False,
            "hovertemplate": f"%{{x}}<br>its mask keeps %{{y:.1%}} of {part}<extra></extra>",
        }
    )
    right = categories(theme, experts, [short(name, 12) for name in experts])
    share = {"tickformat": ".0%", "rangemode": "tozero"}
    return figure(
        traces,
        title,
        theme,
        key="masks",
        height=380,
        legend=True,
        barmode="stack",
        xaxis=categories(theme, blocks) | {"domain": [0.0, 0.62]},
        xaxis2=right | {"domain": [0.74, 1.0], "anchor": "y2"},
        yaxis=numbers(theme, "share of the moved weights") | share | {"range": [0, 1]},
        yaxis2=numbers(theme, "") | share | {"anchor": "x2"},
        margin={"l": 8, "r": 8, "t": 60, "b": 8},
        annotations=[
            {
                "text": "kept by its mask",
                "xref": "x2 domain",
                "yref": "y2 domain",
                "x": 0.5,
                "y": 1,
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": theme.muted, "size": 11},
            }
        ],
    )
