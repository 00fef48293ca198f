"""The numbers of the mergekit export, read as mergekit reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import awd_core as awd
from awd_core.errors import RecipeError
from awd_core.mergekit import to_mergekit
from tests.helpers import Family, base_state, expert_states

COEFFICIENTS = (0.3, -0.1, 0.5)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Family:
    base = base_state()
    # A name that is part of another one: filters are found anywhere in a name.
    base["query.weight"] = base["encoder.layer.1.output.dense.weight"].clone()
    return Family(tmp_path_factory.mktemp("kit"), base, expert_states(base, 3))


@pytest.fixture(scope="module")
def study(experts: Family) -> awd.Study:
    return experts.study(out=experts.root / "study")


def weight(parameter: Any, tensor: str) -> float:
    """mergekit's rule: a number, or the first entry without a filter or with one in the name."""
    if not isinstance(parameter, list):
        return parameter
    return next(
        entry["value"]
        for entry in parameter
        if entry.get("filter") is None or entry["filter"] in tensor
    )


@pytest.mark.parametrize("granularity", [None, "model", "block", "tensor"])
def test_weights_give_the_merged_tensors(
    experts: Family, study: awd.Study, granularity: str | None
) -> None:
    fields: dict[str, Any] = {"coefficients": COEFFICIENTS}
    if granularity:
        fields["disentangle"] = {"granularity": granularity}
    written = yaml.safe_load(to_mergekit(experts.recipe(**fields), study))
    assert written["merge_method"] == "task_arithmetic"
    assert written["base_model"] == str(experts.base_path)
    assert written["parameters"] == {"normalize": False, "lambda": 1.0}
    assert [model["model"] for model in written["models"]] == [str(p) for p in experts.expert_paths]
    merged = experts.state(**fields)
    for name, tau in experts.task_vectors().items():
        weights = [weight(model["parameters"]["weight"], name) for model in written["models"]]
        explicit = experts.base_state[name].double().numpy() + np.tensordot(weights, tau, 1)
        np.testing.assert_allclose(merged[name].double().numpy(), explicit, rtol=1e-6, atol=1e-6)


def test_average_needs_no_study(experts: Family) -> None:
    written = yaml.safe_load(to_mergekit(experts.recipe(method="average", dtype="float32")))
    assert [model["parameters"]["weight"] for model in written["models"]] == [1 / 3] * 3


def test_types(experts: Family, study: awd.Study) -> None:
    written = yaml.safe_load(to_mergekit(experts.recipe(dtype="bfloat16"), study))
    assert (written["dtype"], written["out_dtype"]) == ("float32", "bfloat16")
    with pytest.raises(RecipeError, match="Set dtype in the recipe"):
        to_mergekit(experts.recipe())


@pytest.mark.parametrize(
    "fields",
    [
        {"disentangle": {"granularity": "row"}},
        {"disentangle": {"granularity": "tensor", "optimizer": "adam"}},
        {"method": "ties"},
        {"exclude": ["*.bias"]},
        {"lines": {"slope": 0.5}},
    ],
)
def test_what_mergekit_cannot_say_is_refused(
    experts: Family, study: awd.Study, fields: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="mergekit has no words for this recipe"):
        to_mergekit(experts.recipe(**fields), study)


def test_awd_without_a_study_is_refused(experts: Family) -> None:
    with pytest.raises(RecipeError, match="needs the study"):
        to_mergekit(experts.recipe(disentangle={}))


def test_command_line(experts: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from awd_core.__main__ import app

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(experts.recipe(disentangle={}, coefficient=0.3).to_yaml(), encoding="utf-8")
    study = experts.root / "study"
    command = ["convert", str(recipe), "--to", "mergekit", "--study", str(study)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    assert yaml.safe_load(shown.output)["merge_method"] == "task_arithmetic"
    out = tmp_path / "kit.yaml"
    assert CliRunner().invoke(app, [*command, "-o", str(out)]).exit_code == 0
    assert out.read_text(encoding="utf-8") == shown.output
    assert CliRunner().invoke(app, ["convert", str(recipe), "--to", "other"]).exit_code == 2
