"""Pydantic's findings as our errors: field, received, expected, and the nearest known name."""

from typing import get_args

from pydantic import BaseModel, ValidationError

from awd_core.errors import RecipeError, nearest


def as_recipe_error(error: ValidationError, model: type[BaseModel], where: str) -> RecipeError:
    """The first finding of `error` as a `RecipeError`.

    Args:
        error: What pydantic raised.
        model: The model that was being built; its fields are the known names.
        where: File or part of the recipe.
    """
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *parents, name = map(str, first["loc"])
        return RecipeError(
            f"Unknown field {field!r}",
            where=where,
            remedy=nearest(name, tuple(_inner(model, parents).model_fields)),
        )
    return RecipeError(
        f"Field {field!r} cannot be used" if field else "The settings contradict each other",
        where=where,
        received=repr(first["input"])[:200] if field else None,
        expected=first["msg"].removeprefix("Value error, "),
    )


def _inner(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model that stands in field `path` of `model`, where one of its types is a model."""
    for name in path:
        annotation = model.model_fields[name].annotation
        types = (annotation, *get_args(annotation))
        model = next(t for t in types if isinstance(t, type) and issubclass(t, BaseModel))
    return model
