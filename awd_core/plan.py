"""A merge as a value: everything it will do, before it does anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from awd_core.checkpoints import Checkpoint, StoredTensor
from awd_core.disentangle import Disentangled
from awd_core.dtypes import BY_NAME, Dtype
from awd_core.lazy import torch
from awd_core.method import LinearMethod, MergeMethod
from awd_core.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """Everything a merge will do, before it does anything.

    Attributes:
        recipe: What was asked for.
        base: The base, opened.
        experts: The experts, opened, in order.
        method: The method with its knobs.
        coefficients: lambda_k, (K,).
        tensors: Every tensor of the base, in file order; all are written.
        excluded: Names that stay as they are in the base.
        redundant: c for every merged tensor, (1, K) or (rows, K); None without AWD.
        disentangled: The AWD solution behind `redundant`.
        dense: delta of every merged tensor, where it is no combination of task vectors.
        device: Where the arithmetic runs.
        scales: What every task vector is multiplied with first, (K,); None for nothing.
        factors: What every lambda is multiplied with in a tensor, where that is not 1.
    """

    recipe: Recipe
    base: Checkpoint
    experts: tuple[Checkpoint, ...]
    method: MergeMethod
    coefficients: np.ndarray
    tensors: tuple[StoredTensor, ...]
    excluded: frozenset[str]
    redundant: dict[str, np.ndarray] | None
    disentangled: Disentangled | None
    device: str
    dense: dict[str, torch.Tensor] | None = None
    scales: np.ndarray | None = None
    factors: Mapping[str, float] = field(default_factory=dict)

    def coefficients_of(self, tensor: StoredTensor) -> np.ndarray:
        """lambda_k in one tensor, (K,)."""
        return self.coefficients * self.factors.get(tensor.name, 1.0)

    @property
    def merged(self) -> tuple[StoredTensor, ...]:
        """The tensors that an expert changes; the others are copied from the base."""
        return tuple(
            tensor
            for tensor in self.tensors
            if tensor.is_float
            and tensor.name not in self.excluded
            and any(expert.touches(tensor.name) for expert in self.experts)
        )

    @cached_property
    def merged_names(self) -> frozenset[str]:
        """Their names."""
        return frozenset(tensor.name for tensor in self.merged)

    @property
    def n_elements(self) -> int:
        """Elements of one task vector, zeros included, as methods that rank them count them."""
        return sum(
            tensor.n_elements
            for tensor in self.tensors
            if tensor.is_float and tensor.name not in self.excluded
        )

    @property
    def sole_expert(self) -> int | None:
        """The one expert that the result is, when all multipliers but one are 0 and that is 1.

        Its weights are then copied: theta_0 + (theta_k - theta_0) differs from theta_k in the last
        bit where theta_k is more than 2^29 times smaller than theta_0.
        """
        recipe = self.recipe
        changed = recipe.disentangle or recipe.equalise_norms or recipe.lines or self.factors
        if changed or not isinstance(self.method, LinearMethod):
            return None
        multipliers = self.method.multipliers(self.coefficients)
        index = int(np.argmax(multipliers))
        alone = multipliers[index] == 1.0 and np.count_nonzero(multipliers) == 1
        return index if alone else None

    def out_dtype(self, tensor: StoredTensor) -> Dtype:
        """Type that a tensor is written in."""
        return out_dtype(self.recipe, tensor)


def out_dtype(recipe: Recipe, tensor: StoredTensor) -> Dtype:
    """Type that a recipe writes a tensor in."""
    if recipe.dtype == "base" or not tensor.is_float:
        return tensor.dtype
    return BY_NAME[recipe.dtype]
