"""LoRA experts as the products that they are: the same task vectors, the same merges, cheaper."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core import planned_vectors
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
