"""Order and map of experts, and interference beside accuracy."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

import awd_core as awd
from analysis import accuracy_drop
from analysis.accuracy_drop import correlation, drop_scatter, drops, interference_of_experts
from analysis.clustering import clusters, expert_map, expert_tree
from analysis.view import View
from awd_core.evaluation import TaskAccuracy
from tests.analysis_studies import collected

NAME = "layer.0.dense.weight"


def view_of(folder: Path, tau: np.ndarray) -> View:
    study = collected(folder, {NAME: tau})
    return View(study, awd.no_redundancy(study), np.full(len(tau), 0.3))


def in_two_groups() -> np.ndarray:
    """Experts 0, 2, 4 are alike, and 1, 3."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2, 20, 20))
    own = 0.3 * rng.standard_normal((5, 20, 20))
    return np.round((own + centres[[0, 1, 0, 1, 0]]) * 256) / 256


def test_like_experts_are_neighbours_in_the_order(tmp_path: Path) -> None:
    found = clusters(view_of(tmp_path, in_two_groups()))
    group = [int(name[-1]) % 2 for name in found.ordered]
    assert sum(a != b for a, b in pairwise(group)) == 1
    assert sorted(found.order) == list(range(5))


def test_distances_are_those_of_vectors_of_length_one(tmp_path: Path) -> None:
    tau = in_two_groups()
    flat = tau.reshape(5, -1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    found = clusters(view_of(tmp_path, tau))
    np.testing.assert_allclose(found.distances, pairwise_distances(unit), atol=1e-7)


def test_three_experts_fit_a_plane_exactly(tmp_path: Path) -> None:
    found = clusters(view_of(tmp_path, in_two_groups()[:3]))
    np.testing.assert_allclose(pairwise_distances(found.places), found.distances, atol=1e-3)
    assert found.stress < 1e-3


def test_the_map_is_the_same_every_time_and_keeps_groups_apart(tmp_path: Path) -> None:
    view = view_of(tmp_path, in_two_groups())
    found, again = clusters(view), clusters(view)
    np.testing.assert_array_equal(found.places, again.places)
    drawn = pairwise_distances(found.places)
    assert max(drawn[0, 2], drawn[0, 4], drawn[1, 3]) < min(drawn[0, 1], drawn[2, 3], drawn[4, 1])


def test_figures_show_every_expert_in_order(tmp_path: Path) -> None:
    found = clusters(view_of(tmp_path, in_two_groups()))
    drawn = expert_map(found).to_dict()
    assert list(drawn["data"][0]["text"]) == list(found.experts)
    np.testing.assert_allclose(drawn["data"][0]["x"], found.places[:, 0])
    tree = expert_tree(found).to_dict()
    assert len(tree["data"]) == 4
    assert tuple(tree["layout"]["xaxis"]["ticktext"]) == found.ordered
    np.testing.assert_allclose(max(max(one["y"]) for one in tree["data"]), found.steps[-1, 2])
    assert list(found.table["expert"]) == list(found.experts)


def test_an_expert_that_moves_nothing_is_left_out(tmp_path: Path) -> None:
    tau = in_two_groups()[:2]
    tau[1] = 0
    found = clusters(view_of(tmp_path, tau))
    assert found.experts == ("task 0",)
    assert found.ordered == ("task 0",)
    expert_map(found)
    expert_tree(found)


def accuracies(values: list[float]) -> list[TaskAccuracy]:
    return [
        TaskAccuracy(f"t{k}", "test", 100_000, round(value * 100_000))
        for k, value in enumerate(values)
    ]


def test_interference_is_the_mean_with_the_others_over_blocks(tmp_path: Path) -> None:
    view = view_of(tmp_path, in_two_groups())
    cosines = np.abs(view.cosines("block", "before")[0])
    expected = [np.mean([cosines[k, j] for j in range(5) if j != k]) for k in range(5)]
    np.testing.assert_allclose(interference_of_experts(view), expected)


def test_a_correlation_is_that_of_scipy_and_draws_a_line(tmp_path: Path) -> None:
    view = view_of(tmp_path, in_two_groups())
    lost = 2 * interference_of_experts(view) + np.array([0, 1, -1, 1, -1]) * 1e-4
    table = drops(view, accuracies([0.9] * 5), accuracies([0.9 - one for one in lost]))
    np.testing.assert_allclose(table["drop"], lost, atol=1e-5)
    found = correlation(table)
    expected = np.corrcoef(table["interference"], table["drop"])[0, 1]
    assert found.pearson == pytest.approx(expected)
    assert found.verdict == "Correlation"
    assert "Experts that interfere more lose more here. 5 experts: Pearson r = +" in found.sentence
    assert len(drop_scatter(table).to_dict()["data"]) == 2


def test_no_correlation_is_said_and_no_line_drawn(tmp_path: Path) -> None:
    view = view_of(tmp_path, in_two_groups())
    table = drops(view, accuracies([0.9] * 5), accuracies([0.8, 0.6, 0.5, 0.9, 0.7]))
    found = correlation(table)
    assert found.pearson_p > accuracy_drop.SIGNIFICANT
    assert found.sentence.startswith("No correlation: on this model")
    drawn = drop_scatter(table).to_dict()
    assert len(drawn["data"]) == 1
    assert drawn["layout"]["annotations"][0]["text"] == f"No correlation: {found.coefficients}"


def test_few_or_constant_points_are_no_correlation(tmp_path: Path) -> None:
    view = view_of(tmp_path, in_two_groups()[:3])
    table = drops(view, accuracies([0.9] * 3), accuracies([0.8, 0.7, 0.6]))
    assert "Fewer than 5 experts" in correlation(table).sentence
    same = drops(view, accuracies([0.9] * 3), accuracies([0.8] * 3))
    assert np.isnan(correlation(same).pearson)
    assert "nan" not in correlation(same).sentence
    assert drop_scatter(same).to_dict()["layout"]["annotations"][0]["text"] == "Too few experts"
