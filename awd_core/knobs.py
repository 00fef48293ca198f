"""Knobs of methods: their declarations, presets, and the check of what a recipe says."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any

from awd_core.errors import RecipeError

Value = bool | int | float | str


@dataclass(frozen=True)
class Preset:
    """Values that belong together, because a paper or a code base uses them.

    Attributes:
        knobs: Knobs that differ from their defaults.
        coefficient: lambda that goes with them; None for the method's own default.
        note: Where the values come from, or how that definition differs.
    """

    knobs: Mapping[str, Value] = field(default_factory=dict)
    coefficient: float | None = None
    note: str = ""


def knob(default: Value, *, help: str, **bounds: Any) -> Any:
    """A knob of a method: its default, what it does, and `low` and `high`, or `choices`.

    A whole number is declared by an `int` default, a switch by a `bool`.
    """
    if isinstance(default, bool):
        bounds = {"choices": (False, True)}
    return field(default=default, metadata={"help": help, **bounds})


def checked(method: str, knob: Field[Any], value: Value) -> Value:
    """The value as the knob has it.

    Raises:
        RecipeError: Out of range, or of another type.
    """
    bounds, whole = knob.metadata, isinstance(knob.default, int)
    if "choices" in bounds:
        if value not in bounds["choices"] or isinstance(value, bool) != isinstance(
            knob.default, bool
        ):
            raise _bad(method, knob.name, value, " or ".join(map(repr, bounds["choices"])))
        return value
    if (
        isinstance(value, bool | str)
        or not bounds["low"] <= value <= bounds["high"]
        or (whole and value != int(value))
    ):
        number = "a whole number" if whole else "a number"
        raise _bad(method, knob.name, value, f"{number} from {bounds['low']} to {bounds['high']}")
    return int(value) if whole else value


def _bad(method: str, name: str, value: object, expected: str) -> RecipeError:
    return RecipeError(
        f"Knob {name!r} of method {method!r} cannot have this value",
        where="knobs",
        received=repr(value),
        expected=expected,
    )
