"""Plotly figures from the tables of `analysis.tables`. None of them knows an app.

Every figure has a transparent background, takes the `Theme` of its page, names its units, and is
as wide as its place and as high as its rows need.
"""

from analysis.heatmaps import (
    before_after,
    cosine_matrix,
    norms_heatmap,
    pair_block_heatmap,
    pair_order,
    sign_heatmap,
    sign_matrix,
)
from analysis.lines_and_bars import (
    accuracy_bars,
    loss_trace,
    redundant_norm_bars,
    retained_bars,
    share_lines,
)
from analysis.scales import symmetric_limit
from analysis.theme import DARK, LIGHT, Theme

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "accuracy_bars",
    "before_after",
    "cosine_matrix",
    "loss_trace",
    "norms_heatmap",
    "pair_block_heatmap",
    "pair_order",
    "redundant_norm_bars",
    "retained_bars",
    "share_lines",
    "sign_heatmap",
    "sign_matrix",
    "symmetric_limit",
]
