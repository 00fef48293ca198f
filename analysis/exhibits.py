"""What a review looks at: one picture, its sentence and its numbers each, in a fixed order.

Pages show them one at a time, and every table can be had as CSV, Parquet or JSON.
"""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd
import plotly.graph_objects as go

from analysis import element_figures, figures, spectral_figures, tables
from analysis.measure import Needs
from analysis.measures import measure
from analysis.overview import overview, overview_heatmap, shared_range
from analysis.theme import Theme
from analysis.view import Scope, View
from analysis.words import group_noun

Format = Literal["csv", "parquet", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
MIME = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "json": "application/json",
}


@dataclass(frozen=True)
class Exhibit:
    """One picture with what it says.

    Attributes:
        key: Its name in files and links.
        title: What is asked.
        sentence: What the numbers say; from a view.
        table: The numbers.
        draw: A Plotly figure, or HTML.
        pairs: Whether it needs two experts.
        needs: What of the study it is made from.
    """

    key: str
    title: str
    sentence: Callable[[View], str]
    table: Callable[[View], pd.DataFrame]
    draw: Callable[[View, Theme], go.Figure | str]
    pairs: bool = False
    needs: Needs = "gram"


def exhibits(view: View) -> tuple[Exhibit, ...]:
    """Those that this view can show."""
    moved = view.n_experts > 1 and bool(tables.pair_by_block(view)["cosine"].notna().any())
    return tuple(
        one
        for one in EXHIBITS
        if (moved or not one.pairs) and (one.needs != "spectra" or _has_matrix(view))
    )


def as_file(table: pd.DataFrame, form: Format) -> bytes:
    """A table in one of the formats; JSON is a list of rows with NaN as null."""
    if form == "csv":
        return table.to_csv(index=False).encode()
    if form == "json":
        return (table.to_json(orient="records", indent=1) or "[]").encode()
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    return stream.getvalue()


def all_files(view: View, form: Format) -> bytes:
    """Every table of every exhibit in a zip, `KEY.FORMAT` each."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in exhibits(view):
            archive.writestr(f"{one.key}.{form}", as_file(one.table(view), form))
    return stream.getvalue()


# --- the exhibits --------------------------------------------------------------------------------


def _strongest(view: View) -> str:
    pairs = tables.pair_by_block(view)
    row = pairs.loc[pairs["cosine"].abs().idxmax()]
    way = "pull the same way" if row["cosine"] > 0 else "pull against each other"
    return f"{row['pair']} {way} most, in {row['block']}: cos {row['cosine']:+.3f}."


def _overview(view: View, theme: Theme) -> go.Figure:
    shown = measure("cosine_before")
    frame = overview(view, shown, "pairs")
    ends = shared_range(shown, frame)
    title = "Cosine of task vectors, pairs by blocks"
    return overview_heatmap(frame.loc[figures.by_size(frame)], shown, ends, title, theme)


def _cosines(view: View) -> str:
    before, after = view.disentangled.objective
    granularity = view.disentangled.settings.granularity
    of = "the whole model" if granularity == "model" else f"every {group_noun(granularity)}"
    return f"AWD takes the mean |cos| over {of} from {before:.4f} to {after:.4f}."


def _matrices(view: View, theme: Theme) -> str:
    found = {f"{when} AWD": tables.matrix(view, when=when) for when in ("before", "after")}
    return figures.cosine_matrices(
        found, title="Cosine of every two experts over the whole model", theme=theme
    )


def _matrix_table(view: View) -> pd.DataFrame:
    both = [
        tables.pair_by(view, "model", when).rename(columns={"cosine": f"cosine_{when}"})
        for when in ("before", "after")
    ]
    return (
        both[0].merge(both[1], on=["pair", "expert_i", "expert_j", "model"]).drop(columns="model")
    )


def _redundant(view: View) -> str:
    share = view.disentangled.relative_redundant_norm
    return f"The redundant vector is {share:.1%} as long as a mean task vector."


def _shares(view: View) -> str:
    whole = tables.shares_by_block(view)
    whole = whole.loc[whole["block"] == tables.MODEL].sort_values(by="share")
    least, most = whole.iloc[0], whole.iloc[-1]
    return (
        f"{least['expert']} enters the merge with {least['share']:.2f} λ,"
        f" {most['expert']} with {most['share']:.2f} λ."
    )


def _signs(view: View) -> str:
    conflict = tables.pair_sign_by_block(view)
    row = conflict.loc[(conflict["conflict"] - 0.5).abs().idxmax()]
    return (
        f"{row['pair']} is furthest from chance in {row['block']}:"
        f" {row['conflict']:.1%} opposite signs among the largest weights; 50% is chance."
    )


def _norms(view: View) -> str:
    norms = tables.norms_by_block(view).dropna(subset=["relative_norm"])
    row = norms.loc[norms["relative_norm"].idxmax()]
    return (
        f"{row['expert']} moved furthest in {row['block']}: by {row['relative_norm']:.2%} of the"
        " base's norm."
    )


def _retained(view: View) -> str:
    found = tables.retained(view).sort_values(by="retained")
    least, most = found.iloc[0], found.iloc[-1]
    return (
        f"The merge goes {most['retained']:.2f} of {most['expert']}'s own step,"
        f" and {least['retained']:.2f} of {least['expert']}'s."
    )


def _has_matrix(view: View) -> bool:
    return view.study.has_spectra and spectral_figures.most_moved_matrix(view) is not None


def _matrix(view: View) -> str:
    """The matrix that stands for the others: the one that the experts move most."""
    found = spectral_figures.most_moved_matrix(view)
    assert found is not None  # `exhibits` offers nothing else
    return found


def _mask_table(view: View) -> pd.DataFrame:
    """Shares by block, and how much of each block the mask of every expert keeps."""
    table = element_figures.masks(view)
    parts: list[tuple[Scope, str]] = [("block", block) for block in view.labels("block")]
    parts.append(("model", tables.MODEL))
    for k, expert in enumerate(view.experts):
        table[f"mask of {expert}"] = [
            element_figures.mask_densities(view, scope=scope, name=name)["density"][k]
            for scope, name in parts
        ]
    return table


EXHIBITS = (
    Exhibit(
        "cosines_by_block",
        "Where do the experts interfere?",
        _strongest,
        tables.pair_by_block,
        _overview,
        pairs=True,
    ),
    Exhibit(
        "cosines",
        "Which experts interfere, before and after AWD?",
        _cosines,
        _matrix_table,
        _matrices,
        pairs=True,
    ),
    Exhibit(
        "sign_conflict",
        "Do they pull in opposite directions?",
        _signs,
        tables.pair_sign_by_block,
        lambda view, theme: figures.sign_heatmap(tables.pair_sign_by_block(view), theme=theme),
        pairs=True,
    ),
    Exhibit(
        "agreement",
        "Do they agree, weight by weight?",
        lambda view: element_figures.agreement_sentence(element_figures.agreement(view)),
        element_figures.agreement,
        lambda view, theme: element_figures.agreement_bars(
            element_figures.agreement(view), theme=theme
        ),
        pairs=True,
        needs="elements",
    ),
    Exhibit(
        "masks",
        "Who needs the weights that moved?",
        element_figures.mask_sentence,
        _mask_table,
        lambda view, theme: element_figures.mask_bars(
            element_figures.masks(view), element_figures.mask_densities(view), theme=theme
        ),
        needs="elements",
    ),
    Exhibit(
        "spectrum",
        "In how many directions does each expert move?",
        lambda view: spectral_figures.spectrum_sentence(view, _matrix(view)),
        lambda view: spectral_figures.spectrum(view, _matrix(view)),
        lambda view, theme: spectral_figures.spectrum_lines(
            spectral_figures.spectrum(view, _matrix(view)), theme=theme
        ),
        needs="spectra",
    ),
    Exhibit(
        "overcounting",
        "Which directions does the merge count several times?",
        lambda view: spectral_figures.overcounting_sentence(view, _matrix(view)),
        lambda view: spectral_figures.overcounting(view, _matrix(view)),
        lambda view, theme: spectral_figures.overcounting_heatmap(
            spectral_figures.overcounting(view, _matrix(view)), theme=theme
        ),
        needs="spectra",
    ),
    Exhibit(
        "norms",
        "How far did each expert move?",
        _norms,
        tables.norms_by_block,
        lambda view, theme: figures.norms_heatmap(tables.norms_by_block(view), theme=theme),
    ),
    Exhibit(
        "redundant",
        "How much does AWD take away?",
        _redundant,
        tables.redundant_by_block,
        lambda view, theme: figures.redundant_norm_bars(
            tables.redundant_by_block(view), theme=theme
        ),
    ),
    Exhibit(
        "shares",
        "What does AWD do to each expert?",
        _shares,
        tables.shares_by_block,
        lambda view, theme: figures.share_lines(tables.shares_by_block(view), theme=theme),
    ),
    Exhibit(
        "retained",
        "How much of each expert is in the merge?",
        _retained,
        tables.retained,
        lambda view, theme: figures.retained_bars(
            tables.retained(view), tables.retained(view.plain), theme=theme
        ),
    ),
    Exhibit(
        "loss",
        "How did AWD get there?",
        lambda view: str(view.disentangled.outcome),
        tables.loss_trace,
        lambda view, theme: figures.loss_trace(tables.loss_trace(view), theme=theme),
    ),
)
KEYS: Sequence[str] = tuple(one.key for one in EXHIBITS)
