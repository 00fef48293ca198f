"""Figures from the tables of `analysis.tables`: Plotly's, and matrices as coloured tables.

None of them knows an app. Every figure has a transparent background, takes the `Theme` of its page,
names its units, and is as wide as its place and as high as its rows need.
"""

from analysis.heatmaps import (
    norms_heatmap,
    pair_block_heatmap,
    pair_order,
    sign_heatmap,
)
from analysis.lines_and_bars import (
    accuracy_bars,
    alpha_path_lines,
    loss_trace,
    redundant_norm_bars,
    retained_bars,
    share_lines,
)
from analysis.matrices import cosine_matrices, number_tables, pair_matrices
from analysis.scales import by_size, symmetric_limit, without_diagonal
from analysis.theme import DARK, LIGHT, Theme

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "accuracy_bars",
    "alpha_path_lines",
    "by_size",
    "cosine_matrices",
    "loss_trace",
    "norms_heatmap",
    "number_tables",
    "pair_block_heatmap",
    "pair_matrices",
    "pair_order",
    "redundant_norm_bars",
    "retained_bars",
    "share_lines",
    "sign_heatmap",
    "symmetric_limit",
    "without_diagonal",
]
