"""Methods that make one model a task."""

from pathlib import Path

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core.methods.emr import Emr
from awd_core.methods.rmm import Rmm
from awd_core.methods.tall_masks import TallMasks
from awd_core.methods.tsv_c import TsvC
from tests.helpers import family, load
from tests.method_runs import run
from tests.reference import several_models as reference
from tests.reference.spectral_methods import truncated
from tests.unit.test_spectral_methods import close, low_rank, task_vectors

SHAPES = {"a.weight": (6, 9), "a.bias": (11,), "conv.weight": (3, 2, 2, 2), "scale": ()}
TASKS = [0, 1, 3]
KINDS = [Emr, TallMasks, TsvC, Rmm]
BY_KEY = pytest.mark.parametrize("kind", KINDS, ids=[kind.key for kind in KINDS])


def model(n_experts: int = 4) -> dict[str, np.ndarray]:
    return {
        name: task_vectors(shape, n_experts, seed)
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rescale", ["paper", "code"])
def test_emr_is_its_formula(task: int, rescale: str) -> None:
    found = run(Emr(task=task, rescale=rescale), model(), 0.8)
    for name, expected in reference.emr(model(), rescale)[task].items():
        close(found[name], 0.8 * expected, 1e-12)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mask", [0.2, 0.6])
def test_tall_masks_are_their_formula(task: int, mask: float) -> None:
    found = run(TallMasks(task=task, mask=mask), model(), 0.8)
    for name, expected in reference.tall_masks(model(), mask)[task].items():
        close(found[name], 0.8 * expected, 1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_tsv_c_cuts_matrices_and_keeps_the_rest_of_its_expert(task: int) -> None:
    found = run(TsvC(task=task), model(), 0.8)
    for name, taus in model().items():
        expected = truncated(taus[task], 1) if name == "a.weight" else taus[task]
        close(found[name], 0.8 * expected, 1e-9)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("components", [0, 1, 2])
def test_rmm_is_the_principal_components_of_every_row(task: int, components: int) -> None:
    found = run(Rmm(task=task, components=components), model())
    expected = reference.rebuilt(model()["a.weight"], components)[task]
    close(found["a.weight"], expected, 1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_rmm_with_all_components_gives_every_expert_back(task: int) -> None:
    found = run(Rmm(task=task, components=3), model())
    for name, taus in model().items():
        close(found[name], taus[task], 1e-12)


@BY_KEY
def test_one_expert_comes_back(kind) -> None:
    vectors = model(1)
    for name, found in run(kind(), vectors).items():
        close(found, vectors[name][0], 1e-12)


@BY_KEY
def test_a_model_for_each_task_is_never_sold_as_one(kind) -> None:
    assert kind.needs_task
    models = [run(kind(task=task), model()) for task in range(2)]
    assert np.abs(models[0]["a.weight"] - models[1]["a.weight"]).max() > 1e-4


@pytest.mark.parametrize("kind", [Emr, TallMasks, Rmm], ids=["emr", "tall_masks", "rmm"])
def test_pieces_never_change_a_bit(kind) -> None:
    vectors = {"a.weight": task_vectors((40, 33), 4), "b.weight": task_vectors((17, 8), 4)}
    whole, cut = (run(kind(task=2), vectors, rows=rows) for rows in (None, 3))
    for name in vectors:
        assert np.array_equal(whole[name], cut[name])


@BY_KEY
def test_a_merge_writes_a_whole_model_for_each_task_or_the_one_that_is_named(
    kind, tmp_path: Path
) -> None:
    one = family(tmp_path, 3)
    out = awd.merge(one.recipe(method=kind.key), tmp_path / "all", device="cpu")
    labels = [expert.label for expert in one.experts]
    assert sorted(path.name for path in out.iterdir()) == sorted(labels)
    for task, label in enumerate(labels):
        alone = one.recipe(method=kind.key, knobs={"task": task})
        folder = awd.merge(alone, tmp_path / f"task-{task}", device="cpu")
        found, expected = load(out / label), load(folder)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert awd.verify(out / label, load=False).ok


# Traps of published code


def test_emr_rescalers_of_paper_and_code_differ() -> None:
    paper, code = (run(Emr(rescale=which), model()) for which in ("paper", "code"))
    ratio = paper["a.weight"] / np.where(code["a.weight"], code["a.weight"], 1)
    kept = ratio[code["a.weight"] != 0]
    np.testing.assert_allclose(kept, kept[0])
    assert abs(kept[0] - 1) > 1e-3


def test_tall_masks_compare_task_vectors_and_not_weights() -> None:
    # A published class passes tau_k where theta_k is meant, and compares |theta_0 - tau_k|.
    rng, taus = np.random.default_rng(0), task_vectors((60, 70), 8)
    kept = np.count_nonzero(run(TallMasks(mask=0.6), {"a.weight": taus})["a.weight"]) / (60 * 70)
    base = rng.standard_normal((60, 70))
    wrong = np.abs(base - taus[0]) > 0.6 * np.abs(base + taus.sum(0) - taus[0])
    assert kept < 0.2
    assert wrong.mean() > 0.95


def test_emr_where_no_expert_agrees_with_the_sum_is_zero() -> None:
    taus = {"a.weight": np.stack([np.full((2, 3), 1.0), np.full((2, 3), -1.0)])}
    # The sum is zero, which counts as negative: only the second expert agrees.
    assert not run(Emr(task=0), taus)["a.weight"].any()
    assert np.array_equal(run(Emr(task=1), taus)["a.weight"], taus["a.weight"][1])


def test_zero_task_vectors_give_the_base() -> None:
    taus = {"a.weight": np.zeros((3, 5, 6))}
    for kind in KINDS:
        assert not run(kind(), taus)["a.weight"].any()


def test_tsv_c_keeps_a_direction_where_a_share_leaves_none() -> None:
    taus = {"a.weight": low_rank((3, 9), 8, 2)}
    found = run(TsvC(task=1), taus)["a.weight"]
    close(found, truncated(taus["a.weight"][1], 1), 1e-9)
