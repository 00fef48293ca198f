"""LoRA experts as the products that they are: the same task vectors, the same merges, cheaper."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from analysis.measures import measure
from analysis.view import View
from awd_core import planned_vectors, spectra_level, spectral
from awd_core.common_bases import in_common_bases
from awd_core.linear_algebra import LowRank, product_triplets, singular_triplets
from tests.unit.test_lora import QUERY, merged, save_adapter, save_base

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
RECIPES: list[dict[str, Any]] = [
    {},
    {"equalise_norms": True},
    {"disentangle": {"granularity": "tensor", "steps": 20}},
    {"disentangle": {"granularity": "row", "steps": 20}, "equalise_norms": True},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("low-rank")
    base = save_base(folder / "base", torch.float32)
    return [base, *(save_adapter(folder / str(seed), base, seed) for seed in (1, 2, 3))]


@pytest.mark.parametrize("fields", RECIPES)
def test_the_product_is_the_task_vector(models: list[Path], fields: dict[str, Any]) -> None:
    base, *adapters = map(str, models)
    plan = awd.plan_merge(awd.Recipe(base=base, experts=adapters, **fields), device="cpu")
    stored = next(tensor for tensor in plan.tensors if tensor.name == QUERY)
    tensor = planned_vectors.tensor_vectors(plan, stored)
    for index in range(3):
        product = tensor.low_rank(index)
        assert product is not None
        assert product.left.shape[1] <= 9
        whole = tensor.matrix(index)
        gap = (product.left @ product.right - whole).abs().max()
        assert gap <= 1e-12 * whole.abs().max()


def test_what_no_adapter_touches_is_a_product_of_nothing(models: list[Path]) -> None:
    base, *adapters = map(str, models)
    plan = awd.plan_merge(awd.Recipe(base=base, experts=adapters), device="cpu")
    stored = next(t for t in plan.tensors if t.name == "embeddings.word_embeddings.weight")
    product = planned_vectors.tensor_vectors(plan, stored).low_rank(0)
    assert product is not None
    assert product.left.shape[1] == product.right.shape[0] == 0


@pytest.mark.parametrize("granularity", ["spectral"])
def test_awd_that_leaves_the_rows_is_no_product(models: list[Path], granularity: str) -> None:
    base, *adapters = map(str, models)
    settings = {"granularity": granularity, "steps": 5}
    recipe = awd.Recipe(base=base, experts=adapters, disentangle=settings)
    plan = awd.plan_merge(recipe, device="cpu")
    stored = next(tensor for tensor in plan.tensors if tensor.name == QUERY)
    assert planned_vectors.tensor_vectors(plan, stored).low_rank(0) is None


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts", "knots", "rtsvm_style", "tsv_c"])
def test_merges_from_products_are_those_from_whole_matrices(
    models: list[Path], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"method": method, "disentangle": {"granularity": "row", "steps": 5}}
    cheap = merged(*models, **fields)
    monkeypatch.setattr(planned_vectors, "_low_rank", lambda *_: None)
    for name, expected in merged(*models, **fields).items():
        torch.testing.assert_close(cheap[name], expected, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def unlike(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of other ranks, one of a single layer's kind, that are small beside the base."""
    folder = tmp_path_factory.mktemp("unlike")
    base = models[0]
    options: list[dict[str, Any]] = [{"r": 2}, {"r": 1, "target_modules": ["query"]}, {"r": 3}]
    return [
        base,
        *(save_adapter(folder / str(seed), base, seed, **one) for seed, one in enumerate(options)),
    ]


def spectra_of(
    folder: Path, models: list[Path]
) -> tuple[awd.Study, dict[str, np.ndarray], dict[str, np.ndarray]]:
    base, *experts = map(awd.open_checkpoint, models)
    study = awd.collect_spectra(awd.collect(base, experts, folder, device="cpu"), device="cpu")
    names = [study.tensors[position].name for position in study.spectra[0]]
    return study, vars(study.spectra[1]), {name: study.spectral_gram(name) for name in names}


def test_spectra_in_common_bases_are_those_of_whole_matrices(
    unlike: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, small, small_grams = spectra_of(tmp_path / "small", unlike)
    base, *experts = map(awd.open_checkpoint, unlike)
    held = in_common_bases(base.stored[QUERY], experts)
    assert held is not None
    assert held.vectors.shape == (3, 6, 6)
    for module in (spectra_level, spectral):
        monkeypatch.setattr(module, "in_common_bases", lambda *_: None)
    _, whole, whole_grams = spectra_of(tmp_path / "whole", unlike)
    for field, expected in whole.items():
        scale = np.nanmax(np.abs(expected))
        np.testing.assert_allclose(small[field], expected, atol=1e-6 * scale, err_msg=field)
    for name, expected in whole_grams.items():
        np.testing.assert_allclose(small_grams[name], expected, atol=1e-12 * expected.max())
        own = study.grams[study.index[name]]
        np.testing.assert_allclose(small_grams[name].sum(0), own, atol=1e-12 * own.max())


def test_the_entropy_rank_of_adapters_is_that_of_the_full_spectrum(
    unlike: list[Path], tmp_path: Path
) -> None:
    study, _, _ = spectra_of(tmp_path / "study", unlike)
    view = View(study, awd.no_redundancy(study), np.ones(3))
    found = measure("entropy_rank").of(view, "tensor")[study.index[QUERY]]
    base, *experts = map(awd.open_checkpoint, unlike)
    for expert, rank in zip(experts, found, strict=True):
        product = expert.tensor(base.stored[QUERY]).low_rank()
        assert product is not None
        values = np.linalg.svdvals((product.left @ product.right).numpy())
        shares = values[values > 1e-9] / values[values > 1e-9].sum()
        assert rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


def test_the_spectral_level_is_the_same_whenever_it_is_collected(
    unlike: list[Path], tmp_path: Path
) -> None:
    base, *experts = map(awd.open_checkpoint, unlike)
    _, _, later = spectra_of(tmp_path / "later", unlike)
    study = awd.collect(base, experts, tmp_path / "at once", device="cpu", spectral=True)
    for name, expected in later.items():
        np.testing.assert_array_equal(study.spectral_gram(name), expected)


def test_awd_along_common_directions_is_that_of_whole_matrices(
    unlike: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"disentangle": {"granularity": "spectral", "steps": 20}}
    small = merged(*unlike, **fields)
    monkeypatch.setattr(spectral, "in_common_bases", lambda *_: None)
    for name, expected in merged(*unlike, **fields).items():
        torch.testing.assert_close(small[name], expected, rtol=1e-6, atol=1e-7)


def test_ranks_that_fill_a_side_are_taken_as_whole_matrices(models: list[Path]) -> None:
    base, *experts = map(awd.open_checkpoint, models)
    many = experts * 8
    assert in_common_bases(base.stored[QUERY], many) is None
    assert in_common_bases(base.stored["embeddings.word_embeddings.weight"], experts) is None


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (4, 30), (30, 4)])
@pytest.mark.parametrize("rank", [None, 2])
def test_triplets_of_a_product_are_those_of_the_matrix(shape, rank) -> None:
    rng = np.random.default_rng(0)
    left = torch.from_numpy(rng.standard_normal((shape[0], 6)))
    right = torch.from_numpy(rng.standard_normal((6, shape[1])))
    found = product_triplets(LowRank(left, right), rank)
    expected = singular_triplets(left @ right, rank)
    torch.testing.assert_close(found.s, expected.s, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.matrix(), expected.matrix(), rtol=0, atol=1e-9)
