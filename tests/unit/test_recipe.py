"""A recipe: everything that decides a merge, there and back through YAML, nothing guessed."""

import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

import awd_core as awd

FULL: dict[str, Any] = {
    "base": "models/base",
    "experts": ["a", "owner/name@v2", "c"],
    "method": "ties",
    "coefficients": [0.25, -1.0, 1e-3],
    "disentangle": {"granularity": "row", "alpha_relative": 0.2, "steps": 7, "penalty": "none"},
    "knobs": {"density": 0.1},
    "include": ["encoder.*"],
    "exclude": ["*.bias"],
    "dtype": "bfloat16",
    "seed": 3,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"base": "b", "experts": ["a"]},
        {"base": "b", "experts": ["a"], "method": "average"},
        {"base": "b", "experts": ["a", "b"], "coefficient": 0.1 + 0.2},
        {"base": "b", "experts": ["a"], "disentangle": {}},
        {"base": "123", "experts": ["null", "1e5", "ä b: #x"]},
        FULL,
    ],
)
def test_yaml_there_and_back_is_the_same_recipe(fields: dict[str, Any], tmp_path: Path) -> None:
    recipe = awd.Recipe(**fields)
    assert awd.Recipe.from_yaml(recipe.to_yaml()) == recipe
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    loaded = awd.Recipe.load(tmp_path / "recipe.yaml")
    assert loaded == recipe
    assert loaded.digest == recipe.digest


def test_yaml_has_the_fields_that_were_chosen_in_the_order_of_the_recipe() -> None:
    assert awd.Recipe(base="b", experts=["a"]).to_yaml() == (
        "base: b\nexperts:\n- a\nmethod: task_arithmetic\n"
    )


def test_every_field_changes_the_digest() -> None:
    plain = {"base": "b", "experts": ["a", "c", "d"], "method": "ties"}
    changes: list[dict[str, Any]] = [{}]
    changes += [{name: value} for name, value in FULL.items() if name != "method"]
    changes += [{"method": "average"}, {"coefficient": 0.0}, {"disentangle": {}}]
    digests = {awd.Recipe(**plain | change).digest for change in changes}
    assert len(digests) == len(changes)


def test_spelled_out_defaults_are_the_same_recipe() -> None:
    short = awd.Recipe(base="b", experts=["a"])
    assert awd.Recipe(base="b", experts=["a"], dtype="base", seed=0).digest == short.digest


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.3, 0.3]),
        ({"coefficient": 0.7}, [0.7, 0.7]),
        ({"coefficient": 0.0}, [0.0, 0.0]),
        ({"coefficients": [0.1, 0.2]}, [0.1, 0.2]),
        ({"method": "ties"}, [1.0, 1.0]),
    ],
)
def test_lambda_is_one_for_all_or_one_for_each(
    fields: dict[str, Any], expected: list[float]
) -> None:
    recipe = awd.Recipe(base="b", experts=["a", "c"], **fields)
    np.testing.assert_array_equal(recipe.lambdas(), expected)


def ties(**knobs: Any) -> dict[str, Any]:
    return {"method": "ties", "knobs": knobs}


DENSITY = r"'density' of method 'ties' cannot have this value.*{}.*from 0\.0 to 1\.0"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coefficent": 1}, r"Unknown field 'coefficent'.*Did you mean 'coefficient'.*Known: base"),
        ({"disentangle": {"alhpa": 1}}, r"Unknown field 'disentangle\.alhpa'.*mean 'alpha'"),
        ({"method": "tie"}, r"Unknown merge method.*Did you mean 'ties'.*Known: task_arithmetic"),
        (ties(density=1.5), DENSITY.format(r"1\.5")),
        (ties(density=-0.1), DENSITY.format(r"-0\.1")),
        (ties(density="all"), DENSITY.format("'all'")),
        (ties(density=True), DENSITY.format("True")),
        (ties(density=float("nan")), DENSITY.format("nan")),
        (ties(desity=0.1), r"no knob 'desity'.*Did you mean 'density'"),
        ({"knobs": {"density": 0.1}}, r"'task_arithmetic' has no knob 'density'.*no knobs at all"),
        ({"coefficient": 0.3, "coefficients": [0.1, 0.2]}, r"either coefficient or .*, not both"),
        ({"coefficients": [0.1]}, r"1 coefficients for 2 experts"),
        ({"coefficients": [0.1, 0.2, 0.3]}, r"3 coefficients for 2 experts"),
        ({"coefficient": float("nan")}, r"'coefficient' cannot be used.*finite"),
        ({"coefficients": [0.1, float("inf")]}, r"'coefficients\.1' cannot be used.*finite"),
        ({"coefficient": "much"}, r"'coefficient' cannot be used.*'much'.*valid number"),
        ({"method": "average", "coefficient": 0.3}, r"'average' takes no coefficient; leave it"),
        ({"experts": []}, r"'experts' cannot be used.*at least 1"),
        ({"experts": "a"}, r"'experts' cannot be used"),
        ({"dtype": "int8"}, r"'dtype' cannot be used.*'int8'.*'bfloat16'"),
        ({"disentangle": {"alpha": -1}}, r"'disentangle\.alpha' cannot be used.*greater than"),
        ({"disentangle": {"alpha": 1, "alpha_relative": 1}}, r"either alpha.*or alpha_relative"),
    ],
)
def test_a_recipe_without_meaning_is_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"base": "b", "experts": ["a", "c"]}
    awd.Recipe(**good)
    with pytest.raises(awd.AwdError, match=message):
        awd.Recipe(**good | fields)


def test_a_base_is_needed() -> None:
    with pytest.raises(awd.AwdError, match=r"'base' cannot be used.*required"):
        awd.Recipe(experts=["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [", r"The recipe is not YAML"),
        ("- a\n- b", r"not a list of fields.*Received: list.*base, experts, method"),
        ("", r"not a list of fields.*Received: NoneType"),
        ("base: !!python/object/apply:os.system ['true']", r"The recipe is not YAML"),
        ("base: b\nexperts: [a]\nmehtod: ties", r"Unknown field 'mehtod'.*Did you mean 'method'"),
        ("base: b\nexperts: [a]\n1: 2", r"Unknown field '1'"),
        ("base: b\nexperts: [a]\nbase: c", r"The recipe is not YAML.*'base' stands in it twice"),
    ],
)
def test_text_that_is_no_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(awd.AwdError, match=message):
        awd.Recipe.from_yaml(text)


def test_numbers_may_be_written_as_people_write_them() -> None:
    recipe = awd.Recipe.from_yaml("base: b\nexperts: [a]\ncoefficient: 1e-4")
    assert recipe.coefficient == 1e-4


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(awd.AwdError, match=r"recipe cannot be read.*recipe\.yaml.*Point at a YAML"):
        awd.Recipe.load(file)


def fields_in_docs(heading: str) -> list[str]:
    """Names in the first column of the table under a line that starts like this."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    lines = text[text.index(f"\n{heading}") :].splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("|"))
    rows = takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    return [name for row in rows for name in re.findall("`(.+?)`", row.split("|")[1])]


@pytest.mark.parametrize(
    ("heading", "model"),
    [("## Recipe", awd.Recipe), ("Fields of `disentangle`", awd.Settings)],
    ids=["recipe", "disentangle"],
)
def test_the_docs_name_every_field(heading: str, model: type[BaseModel]) -> None:
    assert sorted(fields_in_docs(heading)) == sorted(model.model_fields)
