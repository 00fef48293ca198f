"""Figures show exactly the tables, on scales that mean the same everywhere."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import awd_core as awd
from analysis import figures, tables
from analysis.drawing import endings
from analysis.scales import conflict_limit, decimals, rounded_up, written
from analysis.theme import DARK, LIGHT, Theme
from analysis.view import View
from awd_core.disentangle import alpha_path
from awd_core.evaluation.accuracy import TaskAccuracy
from tests.analysis_studies import collected, random_vectors

LABELS = ("law", "medicine", "a_rather_long_expert_name", "news")
PATH_COLUMNS = ("mean_absolute_cosine", "relative_redundant_norm", "retained_norm")


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    vectors = random_vectors(4, seed=5)
    vectors["embeddings.word_embeddings.weight"][:] = 0  # nobody moved it
    study = collected(tmp_path_factory.mktemp("figures"), vectors, LABELS)
    return View(study, awd.disentangle(study, "tensor", steps=40), np.full(4, 0.3))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> View:
    study = collected(tmp_path_factory.mktemp("alone"), random_vectors(1, seed=2), ("law",))
    return View(study, awd.disentangle(study), np.ones(1))


def all_figures(view: View, theme: Theme) -> dict[str, Any]:
    found = [TaskAccuracy(label, "test", 40, 30) for label in view.experts]
    accuracies = tables.accuracies({"base": found, "experts": found, "this setting": found})
    return {
        "pairs": figures.pair_block_heatmap(tables.pair_by_block(view), theme=theme),
        "kinds": figures.pair_block_heatmap(tables.pair_by_kind(view), theme=theme),
        "signs": figures.sign_heatmap(tables.pair_sign_by_block(view), theme=theme),
        "norms": figures.norms_heatmap(tables.norms_by_block(view), theme=theme),
        "redundant": figures.redundant_norm_bars(tables.redundant_by_block(view), theme=theme),
        "shares": figures.share_lines(tables.shares_by_block(view), theme=theme),
        "retained": figures.retained_bars(
            tables.retained(view), tables.retained(view.plain), theme=theme
        ),
        "loss": figures.loss_trace(tables.loss_trace(view), theme=theme),
        "accuracy": figures.accuracy_bars(accuracies, theme=theme),
        **{
            column: figures.alpha_path_lines(
                tables.alpha_path(alpha_path(view.study)),
                column,
                tables.alpha_setting(view),
                theme=theme,
            )
            for column in PATH_COLUMNS
        },
    }


def traces(figure: Any) -> list[Any]:
    return list(figure.data)


def heatmaps(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.type == "heatmap"]


def markers(figure: Any) -> Any:
    (found,) = [trace for trace in figure.data if trace.type == "scatter"]
    return found


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("which", ["view", "alone"])
def test_every_figure_can_be_drawn_on_any_page(
    which: str, theme: Theme, request: pytest.FixtureRequest
) -> None:
    for name, figure in all_figures(request.getfixturevalue(which), theme).items():
        drawn = json.loads(figure.to_json() or "")
        layout = drawn["layout"]
        assert layout["paper_bgcolor"] == "rgba(0,0,0,0)"
        assert layout["title"]["text"], name
        assert layout["title"]["font"]["color"] == theme.text
        assert layout["uirevision"], name
        assert layout["height"] >= 160
        assert "width" not in layout, "as wide as its place"
        assert len(figure.to_json() or "") < 40_000


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_axes_of_numbers_have_titles(view: View, theme: Theme) -> None:
    for name, figure in all_figures(view, theme).items():
        for axis in figure.select_yaxes():
            if axis.type != "category":
                assert axis.title.text, name


def test_pairs_show_the_table_with_most_cosine_on_top(view: View) -> None:
    table = tables.pair_by_block(view)
    figure: Any = figures.pair_block_heatmap(table)
    (heatmap,) = heatmaps(figure)
    assert heatmap.z.dtype == np.float32
    grid = table.pivot(index="pair", columns="block", values="cosine")
    shown = pd.DataFrame(heatmap.z, index=list(heatmap.y), columns=list(heatmap.x))
    pd.testing.assert_frame_equal(
        shown.astype(float), grid.loc[shown.index, shown.columns], check_names=False, rtol=1e-6
    )
    means = np.nanmean(np.abs(grid.loc[shown.index].to_numpy(float)), axis=1)
    assert (np.diff(means) <= 0).all()
    # Row 0 is drawn on top.
    assert list(figure.layout.yaxis.range) == [5.5, -0.5]
    assert list(heatmap.y) == figures.pair_order(table)


def test_same_range_symmetric_about_zero_before_and_after(view: View) -> None:
    before, after = tables.pair_by_block(view), tables.pair_by_block(view, "after")
    limit = figures.symmetric_limit(before, after)
    order = figures.pair_order(before)
    both = [figures.pair_block_heatmap(table, limit, order=order) for table in (before, after)]
    first, second = (heatmaps(figure)[0] for figure in both)
    assert (first.zmin, first.zmax) == (second.zmin, second.zmax) == (-limit, limit)
    assert first.colorscale == second.colorscale
    assert list(first.y) == list(second.y) == order
    assert written(limit) in first.colorbar.title.text


def test_the_middle_of_the_scale_has_no_colour() -> None:
    for theme in (LIGHT, DARK):
        middle = theme.diverging[len(theme.diverging) // 2].lstrip("#")
        channels = [int(middle[place : place + 2], 16) for place in (0, 2, 4)]
        assert max(channels) - min(channels) <= 16
        assert len(theme.diverging) % 2 == 1
        assert len(set(theme.experts)) == 8


def test_colour_bar_says_where_values_lie_beyond_it(view: View) -> None:
    table = tables.pair_by_block(view)
    (inside,) = heatmaps(figures.pair_block_heatmap(table, 1.0))
    (clipped,) = heatmaps(figures.pair_block_heatmap(table, 0.01))
    assert list(inside.colorbar.ticktext) == ["−1", "0", "1"]
    assert clipped.colorbar.ticktext[2] == "≥ 0.01"


def test_cells_can_be_selected_and_say_what_they_are(view: View) -> None:
    table = tables.pair_by_block(view)
    figure: Any = figures.pair_block_heatmap(table)
    cells = markers(figure)
    assert cells.marker.symbol == "square"
    assert len(cells.customdata) == len(table)
    found = {(pair, block): words for pair, block, words in cells.customdata}
    for pair, block, cosine in zip(table["pair"], table["block"], table["cosine"], strict=True):
        untouched = block == "embedding"
        expected = "no number: nothing to compare" if untouched else f"cos {cosine:.3f}"
        assert found[pair, block] == expected
    for x, y, (pair, block, _) in zip(cells.x, cells.y, cells.customdata, strict=True):
        assert (y, x) == (pair, block)


def test_too_many_cells_have_no_markers_but_a_hover() -> None:
    many = pd.DataFrame(
        {
            "pair": np.repeat([f"a × {k}" for k in range(64)], 64),
            "expert_i": "a",
            "expert_j": np.repeat([str(k) for k in range(64)], 64),
            "block": np.tile([f"block {number}" for number in range(64)], 64),
            "cosine": np.linspace(-0.5, 0.5, 4096),
        }
    )
    figure: Any = figures.pair_block_heatmap(many)
    assert [trace.type for trace in traces(figure)] == ["heatmap"]
    assert "cos" in traces(figure)[0].hovertemplate


def test_chance_is_the_middle_of_the_sign_scale(view: View) -> None:
    figure: Any = figures.sign_heatmap(tables.pair_sign_by_block(view))
    (heatmap,) = heatmaps(figure)
    assert heatmap.zmin + heatmap.zmax == pytest.approx(1.0)
    # Opposed is the same colour as in cosines: the scale runs the other way.
    cosines = heatmaps(figures.pair_block_heatmap(tables.pair_by_block(view)))[0]
    assert [c for _, c in heatmap.colorscale] == [c for _, c in cosines.colorscale][::-1]


@pytest.mark.parametrize("column", ["norm", "relative_norm", "rms"])
def test_norms_heatmap(view: View, column: str) -> None:
    table = tables.norms_by_block(view)
    (heatmap,) = heatmaps(figures.norms_heatmap(table, column))
    assert heatmap.zmin == 0
    assert heatmap.zmax >= table[column].max()
    row, block = list(heatmap.y).index("news"), list(heatmap.x).index("block 1")
    values = table.set_index(["expert", "block"])[column]
    assert heatmap.z[row, block] == pytest.approx(values.loc["news", "block 1"], rel=1e-6)


def test_bars_and_lines_show_their_tables(view: View) -> None:
    redundant = tables.redundant_by_block(view)
    (bars,) = traces(figures.redundant_norm_bars(redundant))
    assert list(bars.x) == list(redundant["block"])
    np.testing.assert_allclose(bars.y, redundant["relative_norm"], rtol=1e-6)

    shares = tables.shares_by_block(view)
    *lines, model = traces(figures.share_lines(shares))
    assert [line.name for line in lines] == list(LABELS)
    assert (
        [line.line.color for line in lines] == list(LIGHT.experts[:4]) == list(model.marker.color)
    )
    for line in lines:
        own = shares[(shares["expert"] == line.name) & (shares["block"] != "model")]
        np.testing.assert_allclose(line.y, own["share"], rtol=1e-6)
    np.testing.assert_allclose(model.y, shares[shares["block"] == "model"]["share"], rtol=1e-6)

    before, after = tables.retained(view.plain), tables.retained(view)
    for bar, table in zip(
        traces(figures.retained_bars(after, before)), (before, after), strict=True
    ):
        np.testing.assert_allclose(bar.y, table["retained"], rtol=1e-6)
    assert len(traces(figures.retained_bars(after))) == 1

    trace = tables.loss_trace(view)
    np.testing.assert_allclose(traces(figures.loss_trace(trace))[0].y, trace["loss"], rtol=1e-6)


def test_alpha_path_table_is_the_path_with_its_marks(view: View) -> None:
    path = alpha_path(view.study)
    table = tables.alpha_path(path)
    assert path.knee is not None
    np.testing.assert_array_equal(table["share"], path.alpha / path.critical)
    for column in PATH_COLUMNS:
        np.testing.assert_array_equal(table[column], getattr(path, column))
    marked = table[table["mark"] != ""].set_index("mark")
    assert marked.loc["alpha_crit", "share"] == 1.0
    assert marked.loc["knee", "alpha"] == path.alpha[path.knee]
    assert len(marked) == 2


def test_alpha_path_shows_its_table_alpha_crit_knee_and_this_setting(view: View) -> None:
    table = tables.alpha_path(alpha_path(view.study))
    solved = awd.disentangle(view.study, alpha_relative=0.3, lr_relative=0.01)
    setting = tables.alpha_setting(View(view.study, solved, np.full(4, 0.3)))
    knee = table.loc[table["mark"] == "knee", "share"].item()
    for column in PATH_COLUMNS:
        figure: Any = figures.alpha_path_lines(table, column, setting)
        line, point = traces(figure)
        np.testing.assert_allclose(line.x, table["share"], rtol=1e-6)
        np.testing.assert_allclose(line.y, table[column], rtol=1e-6)
        np.testing.assert_allclose(point.x, [0.3], rtol=1e-6)
        np.testing.assert_allclose(point.y, setting[column], rtol=1e-6)
        lines = [shape.x0 for shape in figure.layout.shapes]
        assert sorted(lines) == pytest.approx(sorted([knee, 1.0]))
        places = {note.text: 10**note.x for note in figure.layout.annotations}
        assert places == pytest.approx({"knee": knee, "α<sub>crit</sub>": 1.0})
        assert figure.layout.xaxis.type == "log"
    assert setting["mean_absolute_cosine"].item() == solved.mean_absolute_cosine[1]
    assert setting["relative_redundant_norm"].item() == solved.relative_redundant_norm
    assert setting["retained_norm"].item() == solved.retained_norm


@pytest.mark.parametrize(
    "settings",
    [
        {"granularity": "tensor"},
        {"penalty": "none", "radius": 0.1},
        {"penalty": "l2_squared"},
        {"steps": 0},
    ],
    ids=["another granularity", "bound", "another penalty", "AWD off"],
)
def test_what_has_no_place_on_the_alpha_path_is_not_on_it(
    view: View, settings: dict[str, Any]
) -> None:
    shown = View(view.study, awd.disentangle(view.study, **settings), np.full(4, 0.3))
    setting = tables.alpha_setting(shown)
    assert setting.empty
    table = tables.alpha_path(alpha_path(view.study))
    assert len(traces(figures.alpha_path_lines(table, "retained_norm", setting))) == 1
    assert list(setting.columns) == list(tables.alpha_path(alpha_path(view.study)).columns[:-1])


def test_alpha_zero_has_its_point_at_the_left_end(view: View) -> None:
    table = tables.alpha_path(alpha_path(view.study))
    shown = View(view.study, awd.disentangle(view.study, alpha=0.0), np.full(4, 0.3))
    figure = figures.alpha_path_lines(table, "retained_norm", tables.alpha_setting(shown))
    assert traces(figure)[1].x[0] == pytest.approx(table["share"].iloc[0])


def test_lambda_does_not_change_the_figure_of_the_alpha_path(view: View) -> None:
    table = tables.alpha_path(alpha_path(view.study))
    solved = awd.disentangle(view.study)
    first, second = (
        figures.alpha_path_lines(
            table,
            "retained_norm",
            tables.alpha_setting(View(view.study, solved, np.full(4, coefficient))),
        ).to_json()
        for coefficient in (0.3, 0.7)
    )
    assert first == second


def test_accuracy_bars_carry_their_errors() -> None:
    found = [TaskAccuracy("a", "test", 100, 50), TaskAccuracy("b", "test", 25, 20)]
    settings = ["base", "own expert", "last setting", "this setting"]
    table = tables.accuracies(dict.fromkeys(settings, found))
    figure: Any = figures.accuracy_bars(table)
    assert [bar.name for bar in traces(figure)] == settings
    assert len({bar.marker.color for bar in traces(figure)}) == 4
    assert traces(figure)[3].marker.color == LIGHT.experts[0]
    for bar in traces(figure):
        own = table[table["setting"] == bar.name]
        np.testing.assert_allclose(bar.error_y.array, own["standard_error"], rtol=1e-6)
        np.testing.assert_allclose(bar.y, own["accuracy"], rtol=1e-6)
    assert list(figure.layout.xaxis.categoryarray) == ["mean", "a", "b"]


def test_a_setting_keeps_its_colour_when_another_joins() -> None:
    found = [TaskAccuracy("a", "test", 100, 50)]

    def colours(*settings: str) -> dict[str, str]:
        figure = figures.accuracy_bars(tables.accuracies(dict.fromkeys(settings, found)))
        return {bar.name: bar.marker.color for bar in traces(figure)}

    for joined, alone in (
        (("base", "own expert", "last setting", "this setting"), ("own expert", "this setting")),
        (("base", "own expert", "last setting", "this setting"), ("own expert", "last setting")),
        (("base", "own expert", "A", "B", "now"), ("own expert", "A", "now")),
        (("base", "own expert", "A", "B", "now"), ("own expert", "B", "now")),
        (("base", "own expert", *"ABCDEF", "now"), ("own expert", "F", "C")),
    ):
        together = colours(*joined)
        assert colours("base", *alone) == {name: together[name] for name in ("base", *alone)}
        assert len(set(together.values())) == len(joined)


def test_names_of_experts_are_shortened_on_axes_only(view: View) -> None:
    figure: Any = figures.pair_block_heatmap(tables.pair_by_block(view))
    assert any("a_rather_lo…" in label for label in figure.layout.yaxis.ticktext)
    assert any("a_rather_long_expert_name" in pair for pair in figure.layout.yaxis.tickvals)
    inside: Any = figures.pair_block_heatmap(tables.pair_by_tensor(view, "block 1"))
    assert list(inside.layout.xaxis.ticktext) == [
        "attention.self.query.weight",
        "intermediate.dense.weight",
    ]


def test_endings_tell_tensors_apart() -> None:
    assert endings(["a.b.weight", "a.c.weight"], 28) == ["b.weight", "c.weight"]
    assert endings(["a.b", "a.b.c"], 28) == ["b", "b.c"]
    assert endings(["encoder.layer.0.weight"], 10) == ["….0.weight"]
    assert endings(["block 0", "embedding"], 28) == ["block 0", "embedding"]
    assert endings([], 28) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, 0.0), (0.34, 0.35), (0.35, 0.35), (0.011, 0.012), (0.96, 1.0), (7.2, 8.0), (1.0, 1.0)],
)
def test_rounded_up(value: float, expected: float) -> None:
    assert rounded_up(value) == expected


def test_symmetric_limit() -> None:
    table = pd.DataFrame({"cosine": [0.1, -0.32, np.nan]})
    other = pd.DataFrame({"cosine": [0.2]})
    assert figures.symmetric_limit(table, other, percentile=100) == 0.35
    assert figures.symmetric_limit(pd.DataFrame({"cosine": [1e-5]})) == 0.01
    assert figures.symmetric_limit(pd.DataFrame({"cosine": []})) == 0.01
    square = pd.DataFrame([[1.0, -0.05], [-0.05, 1.0]])
    assert figures.symmetric_limit(square, percentile=100) == 0.05
    spread = pd.DataFrame({"cosine": [0.01] * 999 + [0.9]})
    assert figures.symmetric_limit(spread) < 0.02


def test_ranges_are_written_as_people_write_them() -> None:
    assert written(0.35) == "±0.35"
    assert decimals(0.35) == 2
    assert decimals(0.01) == 3
    assert conflict_limit(np.array([0.5, np.nan, 0.31])) == 0.2
    assert conflict_limit(np.array([np.nan])) == 0.05


def test_figures_do_not_change_their_tables(view: View) -> None:
    makers: dict[Callable[[View], pd.DataFrame], Callable[[pd.DataFrame], go.Figure]] = {
        tables.pair_by_block: figures.pair_block_heatmap,
        tables.norms_by_block: figures.norms_heatmap,
        tables.shares_by_block: figures.share_lines,
    }
    for make, draw in makers.items():
        table = make(view)
        kept = table.copy(deep=True)
        draw(table)
        pd.testing.assert_frame_equal(table, kept)
