"""The one protocol of merge methods: `prepare` sees the vectors, `combine` the coefficients.

What costs time depends on the task vectors and is done once in `prepare`; the coefficients enter
only in `combine`, so that moving them never prepares anything anew.
"""

import abc
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch

from awd_core.errors import RecipeError, nearest


@dataclass(frozen=True)
class Vectors:
    """The (disentangled) task vectors of a whole model as a stream that can be started anew.

    Attributes:
        n_experts: K.
        n_elements: Merged elements of one expert.
        sweep: Starts the stream; yields (K, rows, columns) float64 pieces in file order.
    """

    n_experts: int
    n_elements: int
    sweep: Callable[[], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class MergeMethod(abc.ABC):
    """A way to turn task vectors into one merged task vector.

    Subclasses are final; their fields are their knobs, made by `knob`.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    formula: ClassVar[str]
    # Whether the method reads coefficients at all, and the one a user starts from.
    takes_coefficients: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 0.3

    @abc.abstractmethod
    def prepare(self, vectors: Vectors) -> Any:
        """Whatever `combine` needs to know of the vectors; None for most."""

    @abc.abstractmethod
    def combine(
        self, prepared: Any, task_vectors: torch.Tensor, coefficients: np.ndarray
    ) -> torch.Tensor:
        """The merged task vector of one piece.

        Args:
            prepared: What `prepare` returned.
            task_vectors: (K, rows, columns) float64.
            coefficients: lambda_k, (K,) float64.

        Returns:
            (rows, columns) float64, to be added to theta_0.
        """

    @classmethod
    def knobs(cls) -> tuple[Field[Any], ...]:
        """The fields, each with `low`, `high` and `help` in its metadata."""
        return fields(cls)


@dataclass(frozen=True)
class LinearMethod(MergeMethod):
    """A method whose result is `sum_k l_k tau_k`: Grams are enough to study it."""

    @abc.abstractmethod
    def multipliers(self, coefficients: np.ndarray) -> np.ndarray:
        """l_k for given lambda_k, (K,)."""

    def prepare(self, vectors: Vectors) -> None:
        """Nothing."""

    def combine(
        self, prepared: None, task_vectors: torch.Tensor, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`sum_k l_k tau_k`, summed in expert order."""
        merged = torch.zeros_like(task_vectors[0])
        for multiplier, vector in zip(self.multipliers(coefficients), task_vectors, strict=True):
            merged.add_(vector, alpha=float(multiplier))
        return merged


def sum_over_experts(vectors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum over the first axis in expert order, whatever the shape of a piece.

    `vectors.sum(0)` chooses its order by shape, so its last bit depends on the chunk size. Give
    products as a generator: they are then never all in memory.
    """
    remaining = iter(vectors)
    total = next(remaining).clone()
    for vector in remaining:
        total += vector
    return total


def knob(default: float | str, *, help: str, **bounds: Any) -> Any:
    """A knob of a method: its default, what it does, and `low`, `high` or `choices`."""
    return field(default=default, metadata={"help": help, **bounds})


def build(method: type[MergeMethod], values: dict[str, Any]) -> MergeMethod:
    """The method with these knobs.

    Raises:
        RecipeError: A knob is unknown or out of its range.
    """
    knobs = {knob.name: knob for knob in method.knobs()}
    for name, value in values.items():
        if name not in knobs:
            known = tuple(knobs)
            raise RecipeError(
                f"Method {method.key!r} has no knob {name!r}",
                where="knobs",
                remedy=nearest(name, known) if known else "It has no knobs at all.",
            )
        _check(method.key, knobs[name], value)
    return method(**values)


def _check(method: str, knob: Field[Any], value: Any) -> None:
    bounds = knob.metadata
    if "choices" in bounds:
        if value not in bounds["choices"]:
            expected = " or ".join(map(repr, bounds["choices"]))
            raise _bad_knob(method, knob.name, value, expected)
    elif (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not bounds["low"] <= value <= bounds["high"]
    ):
        raise _bad_knob(
            method, knob.name, value, f"a number from {bounds['low']} to {bounds['high']}"
        )


def _bad_knob(method: str, name: str, value: Any, expected: str) -> RecipeError:
    return RecipeError(
        f"Knob {name!r} of method {method!r} cannot have this value",
        where="knobs",
        received=repr(value),
        expected=expected,
    )
