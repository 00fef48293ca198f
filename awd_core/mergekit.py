"""A recipe as a mergekit configuration that gives the same weights.

AWD + task arithmetic is a weighted task arithmetic, `theta_0 + sum_k w_k tau_k` with
`w_k = l_k - (sum_i l_i) c_k`: one weight for each expert at granularity `model`, and one for each
expert and tensor at `block` and `tensor`, where mergekit takes a list of weights with filters.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

from awd_core.disentangle import Disentangled, solve
from awd_core.errors import RecipeError
from awd_core.method import LinearMethod
from awd_core.recipe import Recipe
from awd_core.study import SourceInfo, Study, equalise_norms

EXPORTED = ("model", "block", "tensor")


def to_mergekit(recipe: Recipe, study: Study | None = None) -> str:
    """The recipe as YAML for `mergekit-yaml` (method `task_arithmetic`).

    Args:
        recipe: Task arithmetic or another linear method, with AWD or without.
        study: The study of its base and experts; needed with AWD.

    Raises:
        RecipeError: mergekit has no words for this recipe.
    """
    _require_exportable(recipe, study)
    method = recipe.build_method()
    assert isinstance(method, LinearMethod)
    multipliers = method.multipliers(recipe.lambdas())
    solved = None
    if study is not None and recipe.equalise_norms:
        study = equalise_norms(study)
    if recipe.disentangle is not None and study is not None:
        solved = solve(study, recipe.disentangle)
    weights = [_weight(multipliers, solved, study, k) for k in range(len(recipe.experts))]
    configuration = {
        "merge_method": "task_arithmetic",
        "base_model": _base(recipe, study),
        "models": [
            {"model": model, "parameters": {"weight": weight}}
            for model, weight in zip(_models(recipe, study), weights, strict=True)
        ],
        "parameters": {"normalize": False, "lambda": 1.0},
        # theta_0 + sum w tau is summed in float32; the sum in bfloat16 would be off by more.
        "dtype": "float32",
    }
    if recipe.dtype != "float32":
        configuration["out_dtype"] = _out_dtype(recipe, study)
    return yaml.safe_dump(configuration, sort_keys=False)


def _base(recipe: Recipe, study: Study | None) -> str:
    """The base as mergekit finds it, which does not know `zoo:base`."""
    return recipe.base if study is None else _place(study.base)


def _models(recipe: Recipe, study: Study | None) -> list[str]:
    """The experts as mergekit finds them: an adapter is `BASE+ADAPTER` there."""
    if study is None:
        return list(recipe.experts)
    base = f"{_place(study.base)}+"
    return [f"{base * (one.kind == 'lora')}{_place(one)}" for one in study.sources]


def _place(one: SourceInfo) -> str:
    return one.path if one.source.startswith("zoo:") else one.source


def _weight(
    multipliers: np.ndarray, solved: Disentangled | None, study: Study | None, expert: int
) -> float | list[dict[str, Any]]:
    """The weight of one expert: a number, or one for each tensor by name."""
    scale = 1.0 if study is None or study.scales is None else study.scales[expert]
    if solved is None or study is None:
        return float(multipliers[expert] * scale)
    weights = solved.weights(multipliers) * scale
    if solved.settings.granularity == "model":
        return float(weights[0, expert])
    named = _by_name(solved, study, weights[:, expert])
    return [{"filter": name, "value": value} for name, value in named] + [{"value": 0.0}]


def _by_name(
    solved: Disentangled, study: Study, weights: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Every tensor and its weight, longest names first.

    mergekit takes the first filter that is a part of the tensor's name, so a name that is part of
    a longer one has to come after it.
    """
    entries = zip(study.tensors, solved.groups.of_tensor, strict=True)
    for tensor, groups_of in sorted(entries, key=lambda entry: -len(entry[0].name)):
        yield tensor.name, float(weights[groups_of.start])


def _out_dtype(recipe: Recipe, study: Study | None) -> str:
    if recipe.dtype != "base":
        return recipe.dtype
    stored = {tensor.dtype for tensor in study.tensors} if study is not None else set()
    if len(stored) != 1:
        raise RecipeError(
            "mergekit writes every tensor in one type",
            where="dtype",
            received=", ".join(sorted(stored)) or "no study to look it up in",
            expected="one type",
            remedy="Set dtype in the recipe.",
        )
    return stored.pop()


def _require_exportable(recipe: Recipe, study: Study | None) -> None:
    if not isinstance(recipe.build_method(), LinearMethod):
        raise _refusal("method", recipe.method, "task_arithmetic or average")
    if recipe.lines is not None:
        raise _refusal("lines", "LiNeS", "a recipe without `lines`")
    if recipe.vocabulary != "same":
        raise _refusal("vocabulary", recipe.vocabulary, "experts with the tokens of the base")
    if recipe.include or recipe.exclude:
        raise _refusal("include, exclude", "patterns", "a recipe that merges every tensor")
    if recipe.block_factors:
        raise _refusal("block_factors", "factors by block", "the same lambda in every block")
    settings = recipe.disentangle
    if settings is None and not recipe.equalise_norms:
        return
    if settings is not None and (settings.leaves_span or settings.granularity not in EXPORTED):
        received = f"granularity {settings.granularity}, {settings.optimizer}, {settings.penalty}"
        raise _refusal(
            "disentangle",
            received,
            "granularity model, block or tensor: a weight inside of a tensor cannot be written",
        )
    if study is None or study.n_experts != len(recipe.experts):
        raise RecipeError(
            "The export of this recipe needs the study of its base and experts",
            where="study",
            remedy="Run `awd collect` on them.",
        )


def _refusal(where: str, received: str, expected: str) -> RecipeError:
    return RecipeError(
        "mergekit has no words for this recipe",
        where=where,
        received=received,
        expected=expected,
        remedy="Merge it here with `awd merge`, or choose what mergekit can say.",
    )
