"""One setting of the sliders: a study, its redundant vector and the multipliers of a linear merge.

Every number follows from a few sums per tensor, added up over a scope: the whole model, its
blocks, kinds or tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, TypeVar

import numpy as np

from analysis.arithmetic import diagonal
from awd_core.disentangle import Disentangled, Moments, cosines
from awd_core.disentangle.objective import left_of_experts
from awd_core.elements import ElementCounts
from awd_core.method import LinearMethod, MergeMethod
from awd_core.study import Study

# `cell`: the tensors of one kind in one block.
Scope = Literal["model", "block", "kind", "tensor", "cell"]
SCOPES: tuple[Scope, ...] = ("model", "block", "kind", "tensor")
When = Literal["before", "after"]

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class View:
    """The merge `tau_M = sum_k l_k (tau_k - delta)` and everything that is summed up from it.

    Attributes:
        study: What the one pass over the weights left.
        disentangled: The redundant vector delta; `awd_core.no_redundancy(study)` for delta = 0.
        multipliers: l_k of the linear merge, (K,) float64.
        factors: What every l_k is multiplied with in each tensor, (tensors,); None for nothing.
        method: The merge method in force; None for a weighted sum. The merge of one that is not
            linear is not seen here: it needs the weights.
    """

    study: Study
    disentangled: Disentangled
    multipliers: np.ndarray
    factors: np.ndarray | None = None
    method: type[MergeMethod] | None = None
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def experts(self) -> tuple[str, ...]:
        """Labels of the experts, in order."""
        return self.study.experts

    @property
    def n_experts(self) -> int:
        """K."""
        return self.study.n_experts

    @property
    def is_of_merge(self) -> bool:
        """Whether tau_M is the merge of the method in force, which is then a linear one."""
        return self.method is None or issubclass(self.method, LinearMethod)

    @cached_property
    def plain(self) -> "View":
        """The same merge without AWD: delta = 0."""
        found = self.disentangled
        moments = found.by_tensor
        nothing = Moments(
            moments.grams, np.zeros_like(moments.products), np.zeros_like(moments.squares)
        )
        zeros = np.zeros_like(found.span_coefficients)
        without = replace(found, span_coefficients=zeros, by_tensor=nothing)
        return View(self.study, without, self.multipliers, self.factors, self.method)

    @cached_property
    def _labels(self) -> dict[Scope, tuple[str, ...]]:
        """The label every tensor has in each scope."""
        tensors = self.study.tensors
        return {
            "model": ("model",) * len(tensors),
            "block": tuple(tensor.block for tensor in tensors),
            "kind": tuple(tensor.kind for tensor in tensors),
            "tensor": tuple(tensor.name for tensor in tensors),
            "cell": tuple(f"{tensor.block}, {tensor.kind}" for tensor in tensors),
        }

    def labels(self, scope: Scope) -> tuple[str, ...]:
        """The parts of a scope once each, in file order."""
        return tuple(dict.fromkeys(self._labels[scope]))

    def positions(self, scope: Scope) -> np.ndarray:
        """For every tensor, the position of its part in `labels(scope)`."""

        def find() -> np.ndarray:
            position = {label: number for number, label in enumerate(self.labels(scope))}
            return np.array([position[label] for label in self._labels[scope]], dtype=np.int64)

        return self.once(("positions", scope), find)

    def summed(self, values: np.ndarray, scope: Scope) -> np.ndarray:
        """Sums of per-tensor `values` over the tensors of every part, (parts, ...)."""
        if scope == "tensor":
            return values
        if scope == "model":
            return values.sum(0, keepdims=True)
        order, starts = self.once(("parts", scope), lambda: _parts(self.positions(scope)))
        return np.add.reduceat(values[order], starts)

    def moments(self, scope: Scope, power: int = 0) -> Moments:
        """G, p = <delta, tau_k> and q = ||delta||^2 of every part.

        Args:
            scope: Of the parts.
            power: Of the factors that every tensor counts with: 2 where the merge enters twice, as
                in its norm, 1 where it enters once, as in <tau_M, tau_k>.
        """
        tensors = self.disentangled.by_tensor
        power = power if self.factors is not None else 0

        def weighted(values: np.ndarray) -> np.ndarray:
            if not power or self.factors is None:
                return values
            return values * (self.factors**power).reshape(-1, *[1] * (values.ndim - 1))

        return self.once(
            ("moments", scope, power),
            lambda: Moments(
                self.summed(weighted(tensors.grams), scope),
                self.summed(weighted(tensors.products), scope),
                self.summed(weighted(tensors.squares), scope),
            ),
        )

    def grams(self, scope: Scope, when: When) -> np.ndarray:
        """Gram of the task vectors before AWD, of the disentangled vectors after; (parts, K, K).

        A vector that is zero stays zero: an expert without a task vector in a part has none after
        AWD either (there it is -delta, which says nothing of the expert), nor has one that delta
        swallowed, of which only rounding is left.
        """
        moments = self.moments(scope)
        if when == "before":
            return moments.grams
        return self.once(
            ("grams after", scope), lambda: left_of_experts(moments.grams, moments.disentangled)
        )

    def cosines(self, scope: Scope, when: When) -> np.ndarray:
        """`cos(v_i, v_j)`, (parts, K, K); NaN where a vector is zero, 1 on the diagonal."""
        return self.once(("cosines", scope, when), lambda: cosines(self.grams(scope, when)))

    def elements(self, scope: Scope) -> ElementCounts:
        """What was counted element by element, of the task vectors before AWD, in every part."""
        counts = vars(self.study.elements).items()
        return self.once(
            ("elements", scope),
            lambda: ElementCounts(**{name: self.summed(of, scope) for name, of in counts}),
        )

    def base_squares(self, scope: Scope) -> np.ndarray:
        """`||theta_0||^2`, (parts,)."""
        return self.summed(self.study.base_squared_norms, scope)

    def n_elements(self, scope: Scope) -> np.ndarray:
        """Number of elements, (parts,)."""
        sizes = self.once(
            "sizes", lambda: np.array([prod(tensor.shape) for tensor in self.study.tensors])
        )
        return self.summed(sizes, scope)

    def redundant_energies(self, scope: Scope, power: int = 0) -> np.ndarray:
        """`sum_g c_gk ||tau_gk||^2` over the groups g of AWD, (parts, K); `power` as in moments."""
        by_tensor = self.once("redundant energies", self._redundant_energies)
        if power and self.factors is not None:
            by_tensor = by_tensor * (self.factors**power)[:, None]
        return self.summed(by_tensor, scope)

    def _redundant_energies(self) -> np.ndarray:
        groups = self.disentangled.groups
        starts = np.array([groups_of.start for groups_of in groups.of_tensor], dtype=np.int64)
        if not groups.by_row:
            c = self.disentangled.span_coefficients[starts]
            return c * diagonal(self.disentangled.by_tensor.grams)
        energies = self.disentangled.span_coefficients * diagonal(groups.grams)
        return np.add.reduceat(energies, starts)

    def once(self, key: Any, compute: Callable[[], Result]) -> Result:
        """What was worked out under this key before, or `compute()`."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def factors_by_tensor(study: Study, by_block: Mapping[str, float]) -> np.ndarray | None:
    """lambda by block as `View` takes it: a factor for every tensor; None without any."""
    if not by_block:
        return None
    return np.array([by_block.get(tensor.block, 1.0) for tensor in study.tensors])


def _parts(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tensors part by part, and where each part starts."""
    order = np.argsort(positions, kind="stable")
    return order, np.searchsorted(positions[order], np.arange(positions.max() + 1))
