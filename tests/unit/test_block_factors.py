"""lambda by block: in the merge, in the card, in every measure of the merge."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from analysis.measures import measure
from analysis.view import View
from awd_core.card import model_card
from awd_core.disentangle import Granularity
from awd_core.errors import RecipeError
from awd_core.merge import merged_state, plan_merge
from awd_core.mergekit import to_mergekit
from tests.helpers import BLOCKS, Family, family

FACTORS = {"block 0": 0.5, "embedding": -2.0, "other": 0.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(tmp_path_factory.mktemp("models"), n_experts=3)


def recipe(made: Family, **fields: Any) -> awd.Recipe:
    return awd.Recipe(
        base=str(made.base_path),
        experts=list(map(str, made.expert_paths)),
        **{"coefficients": (0.3, 0.5, -0.2), **fields},
    )


@pytest.mark.parametrize("granularity", [None, "model", "row"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_every_block_moves_by_its_factor(
    made: Family, granularity: Granularity | None, method: str
) -> None:
    disentangle = None if granularity is None else awd.Settings(granularity=granularity)
    fields = {"method": method, "disentangle": disentangle, "dtype": "float32"}
    plain = merged_state(plan_merge(recipe(made, **fields)))
    found = merged_state(plan_merge(recipe(made, block_factors=FACTORS, **fields)))
    base = awd.merged_state(awd.plan_merge(recipe(made, coefficients=(0.0, 0.0, 0.0))))
    for name, block in BLOCKS.items():
        factor = FACTORS.get(block, 1.0)
        expected = base[name].double() + factor * (plain[name].double() - base[name].double())
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=2e-6)
        if factor == 0.0:
            assert torch.equal(found[name], base[name])
        if factor == 1.0:
            assert torch.equal(found[name], plain[name])


def test_a_sole_expert_is_scaled_where_a_block_has_a_factor(made: Family) -> None:
    chosen = recipe(made, coefficients=(0.0, 1.0, 0.0), block_factors={"block 1": 0.0})
    found = merged_state(plan_merge(chosen))
    base = merged_state(plan_merge(recipe(made, coefficients=(0.0, 0.0, 0.0))))
    name = next(name for name, block in BLOCKS.items() if block == "block 1")
    assert torch.equal(found[name], base[name])


@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
def test_measures_of_the_merge_are_those_of_its_vectors(
    made: Family, granularity: Granularity, tmp_path: Path
) -> None:
    experts = [awd.open_checkpoint(path) for path in made.expert_paths]
    study = awd.collect(awd.open_checkpoint(made.base_path), experts, tmp_path / "study")
    settings = awd.Settings(granularity=granularity, alpha_relative=0.05, lr_relative=0.01)
    multipliers = np.array([0.3, 0.5, -0.2])
    factors = np.array([FACTORS.get(t.block, 1.0) for t in study.tensors])
    view = View(study, awd.solve(study, settings), multipliers, factors)
    fields = {"disentangle": settings, "dtype": "float32"}
    merged = merged_state(plan_merge(recipe(made, block_factors=FACTORS, **fields), study=study))
    states = [
        merged_state(plan_merge(recipe(made, coefficients=tuple(map(float, np.eye(3)[k])))))
        for k in range(3)
    ]
    base = merged_state(plan_merge(recipe(made, coefficients=(0.0, 0.0, 0.0))))
    names = [tensor.name for tensor in study.tensors]

    def whole(state: dict[str, torch.Tensor]) -> np.ndarray:
        return np.concatenate(
            [(state[n].double() - base[n].double()).ravel().numpy() for n in names]
        )

    tau_m, taus = whole(merged), np.stack([whole(state) for state in states])
    squares = (taus**2).sum(1)
    norm = measure("merged_norm").of(view, "model")[0]
    retained = measure("retained_signal").of(view, "model")[0]
    alignment = measure("alignment").of(view, "model")[0]
    np.testing.assert_allclose(norm, np.linalg.norm(tau_m), rtol=1e-5)
    np.testing.assert_allclose(retained, taus @ tau_m / squares, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        alignment, taus @ tau_m / np.sqrt(squares) / np.linalg.norm(tau_m), rtol=1e-4, atol=1e-5
    )


def test_card_and_yaml_say_it(made: Family) -> None:
    chosen = recipe(made, block_factors={"block 0": 0.5})
    assert awd.Recipe.from_yaml(chosen.to_yaml()) == chosen
    assert "block 0 × 0.5" in model_card(plan_merge(chosen))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_factors": {"blok 0": 0.5}}, "block 0"),
        ({"method": "average", "coefficients": None, "block_factors": {"block 0": 0.5}}, "lambda"),
    ],
)
def test_what_has_no_such_block_or_no_lambda_is_refused(
    made: Family, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        plan_merge(recipe(made, **fields))


def test_mergekit_refuses_it(made: Family) -> None:
    with pytest.raises(RecipeError, match="mergekit has no words"):
        to_mergekit(recipe(made, block_factors={"block 0": 0.5}))
