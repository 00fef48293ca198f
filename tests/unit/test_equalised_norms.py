"""Task vectors of one length: the study, the merge and the export say the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import awd_core as awd
from awd_core.errors import RecipeError
from awd_core.mergekit import to_mergekit
from tests.helpers import Family, base_state, expert_states, family, save


@pytest.fixture
def uneven(tmp_path: Path) -> Family:
    """Four experts whose task vectors have the lengths 1 : 2 : 4 : 8, and a copy of the base."""
    base = base_state()
    experts = expert_states(base, 4)
    for k, expert in enumerate(experts):
        for name, tensor in expert.items():
            if tensor.is_floating_point():
                tensor.copy_(base[name] + 2**k * (tensor - base[name]))
    return Family(tmp_path, base, [*experts, {name: t.clone() for name, t in base.items()}])


def scales(made: Family) -> np.ndarray:
    norms = np.linalg.norm(made.flat_task_vectors(), axis=1)
    return np.divide(norms.mean(), norms, out=np.zeros_like(norms), where=norms > 0)


def test_only_lengths_change(uneven: Family) -> None:
    study = uneven.study()
    equal = awd.equalise_norms(study)
    assert equal.scales is not None
    np.testing.assert_allclose(equal.scales, scales(uneven), rtol=1e-12)
    norms = np.sqrt(np.diag(equal.grams.sum(0)))
    np.testing.assert_allclose(norms[:4], norms[0], rtol=1e-12)
    assert norms[4] == 0
    for name in ("encoder.layer.0.attention.self.query.weight", study.tensors[0].name):
        if name in study.index:
            np.testing.assert_allclose(equal.row_gram(name).sum(0), equal.gram(name), rtol=1e-10)
    assert awd.equalise_norms(equal) is equal
    assert equal.digest != study.digest == equal.collected_digest


@pytest.mark.parametrize("disentangle", [None, "model", "tensor", "row"])
def test_a_merge_is_that_of_the_scaled_task_vectors(
    tmp_path: Path, disentangle: str | None
) -> None:
    base = base_state(dtype=torch.float64)
    experts = expert_states(base, 3)
    made = Family(tmp_path / "a", base, experts)
    d = scales(made)
    scaled = [
        {
            name: base[name] + d[k] * (tensor - base[name])
            if tensor.is_floating_point()
            else tensor
            for name, tensor in expert.items()
        }
        for k, expert in enumerate(experts)
    ]
    fields: dict[str, Any] = {"coefficient": 0.4}
    if disentangle:
        fields["disentangle"] = {"granularity": disentangle, "steps": 40}
    found = made.state(**fields, equalise_norms=True)
    expected = Family(tmp_path / "b", base, scaled).state(**fields)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)
    plain = made.state(**fields)
    assert any(not torch.allclose(plain[name], found[name]) for name in found)


def test_any_study_of_the_inputs_will_do(uneven: Family) -> None:
    recipe = uneven.recipe(equalise_norms=True, disentangle={"granularity": "tensor"})
    plain = uneven.study()
    for study in (plain, awd.equalise_norms(plain), None):
        plan = awd.plan_merge(recipe, study=study, device="cpu")
        assert plan.scales is not None
        np.testing.assert_allclose(plan.scales, scales(uneven), rtol=1e-12)
    unscaled = uneven.recipe(disentangle={"granularity": "tensor"})
    plan = awd.plan_merge(unscaled, study=awd.equalise_norms(plain), device="cpu")
    assert plan.scales is None
    assert plan.disentangled is not None
    np.testing.assert_allclose(plan.disentangled.by_tensor.grams, plain.grams)


def test_one_expert_at_lambda_one_is_that_expert(tmp_path: Path) -> None:
    made = family(tmp_path, 1)
    found = made.state(coefficient=1.0, equalise_norms=True)
    for name, tensor in made.expert_states[0].items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_mergekit_gets_the_scaled_weights(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"a.weight": torch.zeros(2, 3)})
    experts = [
        save(tmp_path / "one", {"a.weight": torch.tensor([[1.0, 0, 0], [0, 0, 0]])}),
        save(tmp_path / "two", {"a.weight": torch.tensor([[0, 3.0, 0], [0, 0, 0]])}),
    ]
    recipe = awd.Recipe(
        base=str(base),
        experts=[str(path) for path in experts],
        coefficient=0.5,
        equalise_norms=True,
    )
    opened = [awd.open_checkpoint(path) for path in experts]
    study = awd.collect(awd.open_checkpoint(base), opened, device="cpu")
    models = yaml.safe_load(to_mergekit(recipe, study))["models"]
    weights = [model["parameters"]["weight"] for model in models]
    np.testing.assert_allclose(weights, [0.5 * 2 / 1, 0.5 * 2 / 3])
    with pytest.raises(RecipeError, match="needs the study"):
        to_mergekit(recipe)


@pytest.mark.parametrize(
    "disentangle", [{"granularity": "spectral"}, {"optimizer": "adam"}, {"penalty": "l1"}]
)
def test_what_does_not_go_together_is_refused(disentangle: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="equalise_norms is for"):
        awd.Recipe(base="b", experts=["a"], disentangle=disentangle, equalise_norms=True)


def test_the_spectral_level_is_refused(tmp_path: Path) -> None:
    made = family(tmp_path, 3)
    equal = awd.equalise_norms(made.study(spectral=True))
    assert not equal.has_spectral
    with pytest.raises(awd.AwdError, match="spectral"):
        awd.disentangle(equal, granularity="spectral")
