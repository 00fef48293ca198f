"""Tables: their shape, their order, and that they say what the measures say."""

from math import sqrt

import numpy as np
import pandas as pd
import pytest

import awd_core as awd
from analysis import tables
from analysis.measures import measure
from analysis.view import View
from awd_core.evaluation.accuracy import TaskAccuracy
from tests.analysis_studies import SHAPES, collected, random_vectors

LABELS = ("law", "medicine", "code", "news")
BLOCKS = ("block 0", "block 1", "embedding")


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    study = collected(tmp_path_factory.mktemp("tables"), random_vectors(4, seed=2), LABELS)
    return View(study, awd.disentangle(study, "row", steps=40), np.array([0.3, 0.5, 0.2, 0.4]))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> View:
    study = collected(tmp_path_factory.mktemp("alone"), random_vectors(1, seed=2), ("law",))
    return View(study, awd.disentangle(study), np.ones(1))


def value(table: pd.DataFrame, column: str, **where: str) -> float:
    for name, wanted in where.items():
        table = pd.DataFrame(table[table[name] == wanted])
    assert len(table) == 1
    return float(table[column].iloc[0])


def by_key(summary: pd.DataFrame) -> dict[str, dict[str, float]]:
    rows = zip(summary["key"], summary["before"], summary["after"], strict=True)
    return {key: {"before": before, "after": after} for key, before, after in rows}


@pytest.mark.parametrize("when", ["before", "after"])
def test_pairs_by_block_hold_the_matrices_of_the_blocks(view: View, when: tables.When) -> None:
    table = tables.pair_by_block(view, when)
    assert list(table.columns) == ["pair", "expert_i", "expert_j", "block", "cosine"]
    assert len(table) == 6 * 3
    assert list(table["pair"].unique()) == [
        "law × medicine",
        "law × code",
        "law × news",
        "medicine × code",
        "medicine × news",
        "code × news",
    ]
    for block in BLOCKS:
        square = tables.matrix(view, "block", block, when)
        assert list(square.index) == list(square.columns) == list(LABELS)
        np.testing.assert_array_equal(np.diag(square), 1.0)
        np.testing.assert_allclose(square, square.T, rtol=1e-15)
        for _, row in table[table["block"] == block].iterrows():
            assert row["cosine"] == square.loc[row["expert_i"], row["expert_j"]]


def test_pairs_by_kind_and_by_tensor(view: View) -> None:
    kinds = tables.pair_by_kind(view, "after")
    assert (
        value(kinds, "cosine", pair="law × code", kind="mlp.up")
        == (tables.matrix(view, "kind", "mlp.up", "after").loc["law", "code"])
    )
    inside = tables.pair_by_tensor(view, "block 1")
    assert list(inside["tensor"].unique()) == [
        name for name in view.labels("tensor") if ".layer.1." in name
    ]
    name = "encoder.layer.1.attention.self.query.weight"
    assert (
        value(inside, "cosine", pair="medicine × news", tensor=name)
        == (tables.matrix(view, "tensor", name).loc["medicine", "news"])
    )


def test_signs(view: View) -> None:
    table = tables.pair_sign_by_block(view, 1.0)
    square = tables.sign_matrix(view, "block 0", 1.0)
    assert value(table, "conflict", pair="law × news", block="block 0") == square.loc["law", "news"]
    np.testing.assert_array_equal(np.diag(square), 0.0)
    whole = measure("sign_conflict_of_largest").of(view, "model")[0]
    np.testing.assert_array_equal(tables.sign_matrix(view), whole)


def test_norms_by_block(view: View) -> None:
    table = tables.norms_by_block(view)
    assert list(table.columns) == ["block", "expert", "norm", "relative_norm", "rms"]
    for column, key in (
        ("norm", "task_vector_norm"),
        ("relative_norm", "relative_task_vector_norm"),
        ("rms", "task_vector_rms"),
    ):
        expected = measure(key).of(view, "block")[view.labels("block").index("block 1"), 2]
        assert value(table, column, block="block 1", expert="code") == expected


def test_tables_by_block_end_with_the_model(view: View) -> None:
    for table in (tables.redundant_by_block(view), tables.merged_norm_by_block(view)):
        assert list(table["block"]) == [*view.labels("block"), "model"]
    redundant = tables.redundant_by_block(view)
    assert value(redundant, "norm", block="model") == pytest.approx(
        view.disentangled.redundant_norm, rel=1e-12
    )
    assert value(redundant, "relative_norm", block="model") == pytest.approx(
        view.disentangled.relative_redundant_norm, rel=1e-12
    )
    shares = tables.shares_by_block(view)
    assert list(shares.columns) == ["block", "expert", "share", "multiplier"]
    assert list(shares["block"].unique()) == [*view.labels("block"), "model"]
    assert (
        value(shares, "share", block="model", expert="code")
        == (measure("multiplier_share").of(view, "model")[0, 2])
    )


def test_retained_and_loss(view: View) -> None:
    table = tables.retained(view)
    assert list(table["expert"]) == list(LABELS)
    np.testing.assert_array_equal(
        table["retained"], measure("retained_signal").of(view, "model")[0]
    )
    trace = tables.loss_trace(view)
    assert list(trace["step"]) == list(range(41))
    np.testing.assert_array_equal(trace["loss"], view.disentangled.losses)


def test_one_row_a_tensor(view: View) -> None:
    table = tables.tensor_table(view)
    assert list(table["tensor"]) == list(view.labels("tensor"))
    assert dict(zip(table["tensor"], table["elements"], strict=True)) == {
        name: int(np.prod(shape)) for name, shape in SHAPES.items()
    }
    block = tables.tensor_table(view, "block 1")
    assert set(block["block"]) == {"block 1"}
    assert list(block["shape"]) == ["4 × 4", "6 × 4"]
    name = block["tensor"].iloc[0]
    square = tables.matrix(view, "tensor", name, "after").to_numpy()
    assert block["cosine_after"].iloc[0] == pytest.approx(
        np.abs(square[np.triu_indices(4, 1)]).mean(), rel=1e-12
    )
    assert block["cosine_by_chance"].iloc[0] == pytest.approx(sqrt(2 / (np.pi * 16)))


def test_summary_compares_with_the_merge_without_awd(view: View) -> None:
    table = by_key(tables.summary(view))
    before, after = view.disentangled.mean_absolute_cosine
    assert table["mean_absolute_cosine_after"]["before"] == pytest.approx(before, rel=1e-12)
    assert table["mean_absolute_cosine_after"]["after"] == pytest.approx(after, rel=1e-12)
    assert table["relative_redundant_norm"]["before"] == 0
    plain = tables.merged_norm_by_block(view.plain)
    assert table["merged_norm"]["before"] == value(plain, "norm", block="model")
    assert table["retained_signal"]["after"] == pytest.approx(
        tables.retained(view)["retained"].mean(), rel=1e-12
    )


def test_one_expert_gives_empty_pairs_and_no_warning(alone: View) -> None:
    for table in (
        tables.pair_by_block(alone),
        tables.pair_by_kind(alone, "after"),
        tables.pair_by_tensor(alone, "block 0"),
        tables.pair_sign_by_block(alone),
    ):
        assert len(table) == 0
        assert list(table.columns)[:3] == ["pair", "expert_i", "expert_j"]
    assert tables.matrix(alone).shape == (1, 1)
    assert np.isnan(tables.tensor_table(alone)["cosine_before"].to_numpy(float)).all()
    summary = by_key(tables.summary(alone))
    assert np.isnan(summary["mean_absolute_cosine_after"]["before"])
    assert summary["alignment"]["after"] == pytest.approx(1.0)


def test_unknown_part(view: View) -> None:
    with pytest.raises(ValueError, match="tuple"):
        tables.matrix(view, "block", "block 9")
    with pytest.raises(ValueError, match="tuple"):
        tables.tensor_table(view, "block 9")


def test_accuracies_and_their_mean() -> None:
    found = [TaskAccuracy("a", "test", 100, 50), TaskAccuracy("b", "test", 25, 20)]
    table = tables.accuracies({"base": found, "this setting": found[:1], "not run": []})
    assert list(table["task"]) == ["a", "b", "mean", "a", "mean"]
    assert value(table, "accuracy", setting="base", task="mean") == pytest.approx(0.65)
    assert value(table, "standard_error", setting="base", task="mean") == pytest.approx(
        sqrt(0.05**2 + 0.08**2) / 2
    )
    assert value(table, "n", setting="base", task="mean") == 125
    assert "not run" not in set(table["setting"])


def test_tables_do_not_share_what_a_reader_may_change(view: View) -> None:
    first = tables.pair_by_block(view)
    first.loc[0, "pair"] = "changed"
    first["cosine"] = 0.0
    assert tables.pair_by_block(view).loc[0, "pair"] == "law × medicine"
    assert tables.pair_by_block(view)["cosine"].to_numpy(float).any()
    square = tables.matrix(view)
    square.iloc[0, 1] = 9.0
    assert tables.matrix(view).iloc[0, 1] != 9.0


def test_a_study_opened_again_says_the_same(view: View) -> None:
    assert view.study.path
    moved = awd.open_study(view.study.path)
    again = View(moved, awd.disentangle(moved, "row", steps=40), view.multipliers)
    pd.testing.assert_frame_equal(tables.summary(again), tables.summary(view))
