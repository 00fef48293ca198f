"""Whether and how checkpoints merge, from headers only: seconds before anything is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from awd_core.checkpoints.checkpoint import Checkpoint
from awd_core.checkpoints.lora import LoraCheckpoint
from awd_core.errors import MismatchError


@dataclass(frozen=True)
class Problem:
    """One row of the preflight table.

    Attributes:
        severity: `error` stops; `warning` is worth a look.
        where: Checkpoint and tensor.
        received: What was found.
        expected: What should be there.
        remedy: What to do.
    """

    severity: Literal["error", "warning"]
    where: str
    received: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class Estimate:
    """What the pass and a merge will cost, from sizes alone.

    Attributes:
        parameters: Elements of the base that can be merged.
        bytes_to_read: Bytes of base and experts, read once by the pass and once by a merge.
        bytes_to_write: Bytes of the merged weights in the base's own types.
    """

    parameters: int
    bytes_to_read: int
    bytes_to_write: int


@dataclass(frozen=True)
class Preflight:
    """The report: `ok` when nothing stops a merge."""

    problems: tuple[Problem, ...]
    estimate: Estimate

    @property
    def ok(self) -> bool:
        """No row of severity `error`."""
        return not any(problem.severity == "error" for problem in self.problems)

    def require_ok(self) -> None:
        """Raise the first error, saying how many there are.

        Raises:
            MismatchError: When not `ok`.
        """
        errors = [problem for problem in self.problems if problem.severity == "error"]
        if errors:
            more = f" ({len(errors) - 1} more like this)" if len(errors) > 1 else ""
            raise MismatchError(
                f"Base and experts do not match{more}",
                where=errors[0].where,
                received=errors[0].received,
                expected=errors[0].expected,
                remedy=errors[0].remedy,
            )


def preflight(
    base: Checkpoint, experts: Sequence[Checkpoint], exclude: Sequence[str] = ()
) -> Preflight:
    """Compare headers of base and experts.

    Args:
        base: The base, with whole weights.
        experts: Experts in the order of the recipe.
        exclude: Names of tensors that are kept from the base, so may differ.

    Returns:
        Every problem found, errors first, and the size of the work.
    """
    problems = _base_problems(base) + _set_problems(experts)
    for expert in experts:
        if isinstance(expert, LoraCheckpoint):
            problems += _lora_problems(base, expert, frozenset(exclude))
        else:
            problems += _weight_problems(base, expert, frozenset(exclude))
    problems.sort(key=lambda problem: problem.severity)
    floats = [tensor for tensor in base.stored.values() if tensor.is_float]
    estimate = Estimate(
        parameters=sum(tensor.n_elements for tensor in floats),
        bytes_to_read=sum(
            tensor.n_bytes for one in (base, *experts) for tensor in one.stored.values()
        ),
        bytes_to_write=sum(tensor.n_bytes for tensor in base.stored.values()),
    )
    return Preflight(tuple(problems), estimate)


def _base_problems(base: Checkpoint) -> list[Problem]:
    if base.kind == "weights":
        return []
    return [
        Problem(
            "error",
            f"base {base.label!r}",
            "a LoRA adapter",
            "whole weights",
            "Give the model the adapters were trained on as the base.",
        )
    ]


def _set_problems(experts: Sequence[Checkpoint]) -> list[Problem]:
    problems = []
    if not experts:
        remedy = "Give at least two experts fine-tuned from the base."
        problems.append(Problem("error", "experts", "none", "two or more", remedy))
    if len(experts) == 1:
        problems.append(
            Problem(
                "warning",
                f"expert {experts[0].label!r}",
                "one expert only",
                "two or more",
                "One expert interferes with nothing: cosines are undefined and AWD does nothing.",
            )
        )
    seen: dict[str, str] = {}
    for expert in experts:
        if expert.fingerprint in seen:
            problems.append(
                Problem(
                    "warning",
                    f"expert {expert.label!r}",
                    f"the same weights as expert {seen[expert.fingerprint]!r}",
                    "each expert once",
                    "Remove one of the two: a redundant vector cannot separate equal experts.",
                )
            )
        seen.setdefault(expert.fingerprint, expert.label)
    return problems


def _weight_problems(
    base: Checkpoint, expert: Checkpoint, exclude: frozenset[str]
) -> list[Problem]:
    problems = []
    architectures = base.config.get("architectures"), expert.config.get("architectures")
    model_types = base.config.get("model_type"), expert.config.get("model_type")
    if model_types[0] != model_types[1]:
        problems.append(
            Problem(
                "error",
                f"config.json of expert {expert.label!r}",
                f"architecture {model_types[1]} ({architectures[1]})",
                f"architecture {model_types[0]} ({architectures[0]}), as in the base",
                "Merge only experts that were fine-tuned from this base.",
            )
        )
    remedy = "Merge experts of the same base, or list the tensor under `exclude`."
    for name, tensor in base.stored.items():
        if not tensor.is_float or name in exclude:
            continue
        other = expert.stored.get(name)
        where = f"tensor {name!r} of expert {expert.label!r}"
        if other is None:
            problems.append(
                Problem("error", where, "no such tensor", f"shape {list(tensor.shape)}", remedy)
            )
        elif other.shape != tensor.shape:
            received, expected = f"shape {list(other.shape)}", f"shape {list(tensor.shape)}"
            problems.append(
                Problem("error", where, received, f"{expected}, as in the base", remedy)
            )
        elif not other.is_float:
            problems.append(Problem("error", where, f"type {other.dtype}", "floats", remedy))
    for name in expert.stored:
        if name not in base.stored:
            problems.append(
                Problem(
                    "warning",
                    f"tensor {name!r} of expert {expert.label!r}",
                    "a tensor that the base does not have",
                    "the tensors of the base",
                    "It is left out of the merge; heads of single tasks usually are.",
                )
            )
    return problems


def _lora_problems(
    base: Checkpoint, expert: LoraCheckpoint, exclude: frozenset[str]
) -> list[Problem]:
    problems = []
    for name, factors in expert.factors.items():
        if name in exclude:
            continue
        shape = (factors.b.shape[0], factors.a.shape[1])
        target = base.stored.get(name)
        if target is None or factors.is_transposed(target.shape) is None:
            problems.append(
                Problem(
                    "error",
                    f"weight {name!r} adapted by expert {expert.label!r}",
                    f"a LoRA product of shape {list(shape)}",
                    "no such weight in the base"
                    if target is None
                    else f"shape {list(target.shape)}, as in the base",
                    f"Use the base the adapter names: {expert.base_name or 'not recorded'}"
                    + ("." if target is None else "; or list the tensor under `exclude`."),
                )
            )
        elif not target.is_float:
            problems.append(
                Problem(
                    "error",
                    f"weight {name!r} in the base, adapted by expert {expert.label!r}",
                    f"type {target.dtype}",
                    "floats",
                    "Use the base before it was quantised.",
                )
            )
    return problems
