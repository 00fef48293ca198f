"""A recipe: everything that decides a merge, as data, and its YAML."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from awd_core.disentangle import Settings
from awd_core.errors import RecipeError
from awd_core.lines import Lines
from awd_core.method import MergeMethod, build, find_preset
from awd_core.methods import find_method
from awd_core.validation import as_recipe_error

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a field that stands twice is an error; the last would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
        for position, name in enumerate(names):
            if name in names[:position]:
                raise yaml.MarkedYAMLError(
                    problem=f"{name!r} stands in it twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


class Recipe(BaseModel):
    """Base, experts, method and every number.

    Attributes:
        base: Folder or hub id.
        experts: Folders or hub ids, in order.
        method: A key of METHODS.
        preset: Name of a preset of the method: knobs and coefficient of a paper or a code base.
        coefficient: One lambda for all experts; the method's own when left out.
        coefficients: One lambda for each expert instead.
        block_factors: What every lambda is multiplied with in a block (`block 3`, `embedding`);
            1 in the others.
        disentangle: AWD in front of the method; none when left out.
        equalise_norms: Scale every task vector to their mean length before anything else.
        lines: LiNeS behind the method: what is merged grows with depth; none when left out.
        knobs: The method's own settings, on top of the preset.
        include: Patterns of tensors to merge; all when left out. The rest stays as in the base.
        exclude: Patterns of tensors that stay as they are in the base.
        vocabulary: `same`, or `common_rows` to merge embeddings and heads of other sizes than the
            base's in the rows that both have.
        dtype: Type of the merged floating-point tensors; `base` keeps each as it is.
        seed: For methods that draw at random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    experts: tuple[str, ...] = Field(min_length=1)
    method: str = "task_arithmetic"
    preset: str | None = None
    coefficient: Finite | None = None
    coefficients: tuple[Finite, ...] | None = None
    block_factors: dict[str, Finite] = Field(default_factory=dict)
    disentangle: Settings | None = None
    equalise_norms: bool = False
    lines: Lines | None = None
    knobs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    vocabulary: Literal["same", "common_rows"] = "same"
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    seed: int = 0

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise as_recipe_error(error, Recipe, "recipe") from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        chosen = self.build_method()
        given = self.coefficient is not None or self.coefficients is not None
        if given and not chosen.takes_coefficients:
            raise ValueError(f"method {self.method!r} takes no coefficient; leave it out")
        if self.coefficient is not None and self.coefficients is not None:
            raise ValueError("give either coefficient or coefficients, not both")
        if self.coefficients is not None and len(self.coefficients) != len(self.experts):
            raise ValueError(
                f"{len(self.coefficients)} coefficients for {len(self.experts)} experts"
            )
        if self.coefficients and chosen.one_coefficient and len(set(self.coefficients)) > 1:
            raise ValueError(f"method {self.method!r} has one coefficient for all experts")
        if self.block_factors and not (
            chosen.takes_coefficients and chosen.coefficients_are == "scales"
        ):
            raise ValueError(
                f"method {self.method!r} has no lambda to multiply in a block; leave out"
                " block_factors"
            )
        self._fits(chosen)
        awd = self.disentangle
        if self.equalise_norms and awd and (awd.leaves_span or awd.granularity == "spectral"):
            raise ValueError(
                "equalise_norms is for AWD in the span of the task vectors, at granularity"
                " model, block, tensor or row"
            )
        return self

    def _fits(self, method: MergeMethod) -> None:
        n_experts, least, most = len(self.experts), method.least_experts, method.most_experts
        if n_experts < least or (most is not None and n_experts > most):
            wanted = f"exactly {least}" if least == most else f"at least {least}"
            raise ValueError(f"method {self.method!r} merges {wanted} experts, not {n_experts}")
        if method.needs_task and not getattr(method, "task", 0) < n_experts:
            raise ValueError(f"knob 'task' counts the experts from 0 to {n_experts - 1}")
        if (self.disentangle or self.equalise_norms) and not method.takes_task_vectors:
            raise ValueError(
                f"method {self.method!r} works on whole weights, not on task vectors: leave out"
                " disentangle and equalise_norms, or choose a method on task vectors"
            )

    def build_method(self) -> MergeMethod:
        """The method with this recipe's preset and knobs."""
        return build(find_method(self.method), self.knobs, self.preset)

    def lambdas(self) -> np.ndarray:
        """lambda_k for every expert, (K,) float64."""
        if self.coefficients is not None:
            return np.array(self.coefficients, dtype=np.float64)
        value = self.coefficient
        if value is None:
            method = find_method(self.method)
            value = find_preset(method, self.preset).coefficient
            value = method.default_coefficient if value is None else value
        return np.full(len(self.experts), value, dtype=np.float64)

    @property
    def digest(self) -> str:
        """SHA-256 of the fields: equal recipes have equal digests."""
        return hashlib.sha256(json.dumps(self._fields(), sort_keys=True).encode()).hexdigest()

    def _fields(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)

    def to_yaml(self) -> str:
        """The recipe as YAML: what was chosen, defaults left out."""
        fields = {"method": self.method, **self._fields()}
        order = [name for name in type(self).model_fields if name in fields]
        return yaml.safe_dump({name: fields[name] for name in order}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe") -> "Recipe":
        """Read a recipe.

        Raises:
            RecipeError: Not YAML, an unknown field (with the nearest known), or a bad value.
        """
        try:
            fields = yaml.load(text, Loader=_UniqueKeys)
        except yaml.YAMLError as error:
            raise RecipeError(
                "The recipe is not YAML", where=where, received=str(error).replace("\n", " ")
            ) from error
        if not isinstance(fields, dict):
            raise RecipeError(
                "The recipe is not a list of fields",
                where=where,
                received=type(fields).__name__,
                expected="base, experts, method, ...",
            )
        return cls(**{str(name): value for name, value in fields.items()})

    @classmethod
    def load(cls, file: str | Path) -> "Recipe":
        """Read a recipe file.

        Raises:
            RecipeError: The file cannot be read or holds no recipe.
        """
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                "The recipe cannot be read",
                where=file,
                received=error,
                remedy="Point at a YAML file with base, experts and method.",
            ) from error
        return cls.from_yaml(text, str(file))
