"""Whether and how checkpoints merge, from headers only: seconds before anything is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from awd_core.checkpoints.base_fit import BaseFit
from awd_core.checkpoints.checkpoint import Checkpoint
from awd_core.checkpoints.estimate import Estimate, estimate
from awd_core.checkpoints.folder import inside
from awd_core.checkpoints.header import StoredTensor, samples
from awd_core.checkpoints.lora import LoraCheckpoint
from awd_core.checkpoints.quantised import loads_quantised, quantisation
from awd_core.checkpoints.vocabulary import is_vocabulary, same_but_for_rows, tied_embedding
from awd_core.checkpoints.weights import WeightCheckpoint
from awd_core.dtypes import Dtype
from awd_core.errors import CheckpointError, MismatchError


@dataclass(frozen=True)
class Problem:
    """One row of the preflight table.

    Attributes:
        severity: `error` stops; `warning` is worth a look.
        where: Checkpoint and tensor.
        received: What was found.
        expected: What should be there.
        remedy: What to do.
        kind: What it is about: missing, extra, shape, dtype, tied, vocabulary, quantised, base,
            architecture, experts, licence, finite, exclude.
    """

    severity: Literal["error", "warning"]
    where: str
    received: str
    expected: str
    remedy: str
    kind: str


@dataclass(frozen=True)
class Preflight:
    """The report: `ok` when nothing stops a merge.

    Attributes:
        problems: Every row of the table, errors first.
        estimate: What the work needs against what is free.
        licences: What each model card says, by label; None where it says nothing.
    """

    problems: tuple[Problem, ...]
    estimate: Estimate
    licences: tuple[tuple[str, str | None], ...]

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
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    exclude: Sequence[str] = (),
    out: Path | None = None,
) -> Preflight:
    """Compare headers of base and experts.

    Args:
        base: The base, with whole weights.
        experts: Experts in the order of the recipe.
        exclude: Names of tensors that are kept from the base, so may differ.
        out: Where the merge will be written, for the estimate; the working folder when left out.

    Returns:
        Every problem found, errors first, and the size of the work.
    """
    left_out = frozenset(exclude)
    problems = [*_base_problems(base), *_set_problems(base, experts)]
    for expert in experts:
        if found := quantisation(expert):
            problems.append(_quantised(f"expert {expert.label!r}", found))
        elif isinstance(expert, LoraCheckpoint):
            problems += _lora_problems(base, expert, left_out)
        else:
            assert isinstance(expert, WeightCheckpoint)
            problems += _weight_problems(base, expert, left_out)
    for one in (base, *experts):
        problems += _tied_problems(one)
    labelled = [(f"base {base.label}", base), *((f"expert {one.label}", one) for one in experts)]
    licences = tuple((label, licence(one)) for label, one in labelled)
    problems += _licence_problems(licences)
    if not any(one.is_float and one.name not in left_out for one in base.stored.values()):
        remedy = "Leave out fewer tensors: see `exclude` and `include`."
        problems.append(
            Problem("error", "tensors", "none to merge", "one or more", remedy, "exclude")
        )
    problems.sort(key=lambda problem: problem.severity)
    return Preflight(tuple(problems), estimate(base, experts, out), licences)


def _tied_problems(checkpoint: Checkpoint) -> Iterator[Problem]:
    if isinstance(checkpoint, WeightCheckpoint) and checkpoint.config.get("tie_word_embeddings"):
        for name, kept in checkpoint.shared.items():
            yield Problem(
                "warning",
                f"tensor {name!r} of {checkpoint.label!r}",
                f"stored beside {kept!r}, to which the configuration ties it",
                "tied tensors once",
                f"{kept!r} is merged and written once, and is both when the model is loaded.",
                "tied",
            )


def _base_problems(base: Checkpoint) -> Iterator[Problem]:
    where = f"base {base.label!r}"
    if base.kind != "weights":
        remedy = "Give the model the adapters were trained on as the base."
        yield Problem("error", where, "a LoRA adapter", "whole weights", remedy, "base")
    elif found := quantisation(base):
        yield _quantised(where, found)
    elif method := loads_quantised(base):
        yield Problem(
            "warning",
            f"config.json of {where}",
            f"whole weights that are to be quantised with {method} on loading",
            "a configuration without quantization_config",
            "The merged model is copied with it, and will be loaded quantised.",
            "quantised",
        )


def _quantised(where: str, found: str) -> Problem:
    return Problem(
        "error",
        where,
        f"quantised weights: {found}",
        "floating-point weights",
        "Merge the model that it was quantised from, and quantise the merged one.",
        "quantised",
    )


def _set_problems(base: Checkpoint, experts: Sequence[Checkpoint]) -> Iterator[Problem]:
    if not experts:
        remedy = "Give at least two experts fine-tuned from the base."
        yield Problem("error", "experts", "none", "two or more", remedy, "experts")
    if len(experts) == 1:
        yield Problem(
            "warning",
            f"expert {experts[0].label!r}",
            "one expert only",
            "two or more",
            "One expert interferes with nothing: cosines are undefined and AWD does nothing.",
            "experts",
        )
    looks: dict[str, list[Checkpoint]] = {_look(base): [base]}
    for expert in experts:
        alike = looks.setdefault(_look(expert), [])
        twin = next((one for one in alike if one.fingerprint == expert.fingerprint), None)
        if twin is base:
            yield Problem(
                "warning",
                f"expert {expert.label!r}",
                "the same weights as the base",
                "a model fine-tuned from the base",
                "Leave it out: its task vector is zero and has no direction.",
                "experts",
            )
        elif twin is not None:
            yield Problem(
                "warning",
                f"expert {expert.label!r}",
                f"the same weights as expert {twin.label!r}",
                "each expert once",
                "Remove one of the two: a redundant vector cannot separate equal experts.",
                "experts",
            )
        alike.append(expert)


def _look(checkpoint: Checkpoint) -> str:
    """A few kilobytes of a checkpoint: experts that look alike are compared by fingerprint."""
    digest = hashlib.sha256()
    tensors = list(checkpoint.stored.values())
    for tensor, blocks in samples(tensors[:: max(1, len(tensors) // 4)][:5], 256):
        digest.update(f"{tensor.name}|{tensor.shape}|{tensor.dtype}".encode())
        digest.update(b"".join(blocks))
    return digest.hexdigest()


def _weight_problems(
    base: Checkpoint, expert: WeightCheckpoint, exclude: frozenset[str]
) -> Iterator[Problem]:
    yield from _architecture(base, expert)
    for name, tensor in base.stored.items():
        if tensor.is_float and name not in exclude:
            yield from _tensor_problems(base, expert, tensor)
    for name, tensor in expert.stored.items():
        if name not in base.stored:
            yield _extra(base, expert, tensor)
    shared = [one for name, one in expert.stored.items() if name in base.stored]
    odd = [one for one in shared if one.is_float and one.name not in exclude]
    odd = [one for one in odd if one.dtype != base.stored[one.name].dtype]
    if odd:
        yield Problem(
            "warning",
            f"{len(odd)} tensors of expert {expert.label!r}",
            f"type {_named({one.dtype for one in odd})}",
            f"type {_named({base.stored[one.name].dtype for one in odd})}, as in the base",
            "They are merged from what is stored; the rounding of the coarser type is in the task"
            " vectors.",
            "dtype",
        )


def _named(types: set[Dtype]) -> str:
    return ", ".join(sorted(map(str, types)))


def _architecture(base: Checkpoint, expert: Checkpoint) -> Iterator[Problem]:
    # A weight file by itself has no configuration, and so no architecture to compare.
    model_types = base.config.get("model_type"), expert.config.get("model_type")
    if base.config and expert.config and model_types[0] != model_types[1]:
        architectures = base.config.get("architectures"), expert.config.get("architectures")
        yield Problem(
            "error",
            f"config.json of expert {expert.label!r}",
            f"architecture {model_types[1]} ({architectures[1]})",
            f"architecture {model_types[0]} ({architectures[0]}), as in the base",
            "Merge only experts that were fine-tuned from this base.",
            "architecture",
        )


_REMEDY = "Merge experts of the same base, or list the tensor under `exclude`."


def _tensor_problems(
    base: Checkpoint, expert: WeightCheckpoint, tensor: StoredTensor
) -> Iterator[Problem]:
    other = expert.counterpart(tensor.name)
    where = f"tensor {tensor.name!r} of expert {expert.label!r}"
    shape = f"shape {list(tensor.shape)}"
    if other is None:
        yield Problem("error", where, "no such tensor", shape, _REMEDY, "missing")
        return
    if not other.is_float:
        yield Problem("error", where, f"type {other.dtype}", "floats", _REMEDY, "dtype")
    if other.name != tensor.name:
        yield Problem(
            "warning",
            where,
            f"tied to {other.name!r}",
            "a tensor of its own, as in the base",
            f"{other.name!r} is merged in its place.",
            "tied",
        )
    if other.shape == tensor.shape:
        return
    received, expected = f"shape {list(other.shape)}", f"{shape}, as in the base"
    if not same_but_for_rows(tensor.name, other.shape, tensor.shape):
        yield Problem("error", where, received, expected, _REMEDY, "shape")
        return
    common = min(other.shape[0], tensor.shape[0])
    tokens = f"tokens 0 to {common - 1:,}"
    if expert.common_rows:
        remedy = f"{tokens.capitalize()} are merged; both tokenizers must mean the same by them."
        yield Problem("warning", where, received, expected, remedy, "vocabulary")
        return
    tables = [name for name, one in base.stored.items() if one.is_float and is_vocabulary(name)]
    yield Problem(
        "error",
        where,
        received,
        expected,
        f"Choose: `vocabulary: common_rows` merges {tokens}, if both tokenizers mean the same by"
        f" them; `exclude: [{tensor.name}]` keeps the base's; `exclude: [{', '.join(tables)}]`"
        " merges the backbone only.",
        "vocabulary",
    )


def _extra(base: Checkpoint, expert: WeightCheckpoint, tensor: StoredTensor) -> Problem:
    tied = tied_embedding(tensor.name, base.stored, base.config)
    where = f"tensor {tensor.name!r} of expert {expert.label!r}"
    if tied is not None:
        return Problem(
            "warning",
            where,
            "an output head of its own",
            f"none: the base's is tied to {tied.name!r}",
            "It is left out, and the merged embedding is the head. Untie the base first if the"
            " expert's head differs from its embedding.",
            "tied",
        )
    return Problem(
        "warning",
        where,
        "a tensor that the base does not have",
        "the tensors of the base",
        "It is left out of the merge; heads of single tasks usually are.",
        "extra",
    )


def _lora_problems(
    base: Checkpoint, expert: LoraCheckpoint, exclude: frozenset[str]
) -> Iterator[Problem]:
    remedy = f"Use the base the adapter names: {expert.base_name or 'not recorded'}"
    for name, factors in expert.factors.items():
        target = base.stored.get(name)
        if name in exclude:
            continue
        if target is None or factors.is_transposed(target.shape) is None:
            yield Problem(
                "error",
                f"weight {name!r} adapted by expert {expert.label!r}",
                f"a LoRA product of shape {[factors.b.shape[0], factors.a.shape[1]]}",
                "no such weight in the base"
                if target is None
                else f"shape {list(target.shape)}, as in the base",
                f"{remedy}."
                if target is None
                else f"{remedy}; or list the tensor under `exclude`.",
                "missing" if target is None else "shape",
            )
        elif not target.is_float:
            yield Problem(
                "error",
                f"weight {name!r} in the base, adapted by expert {expert.label!r}",
                f"type {target.dtype}",
                "floats",
                "Use the base before it was quantised.",
                "quantised",
            )
    for name, tensor in expert.replaced.items():
        target = base.stored.get(name)
        where = f"tensor {name!r} of expert {expert.label!r}, saved whole"
        if target is None:
            yield Problem(
                "warning",
                where,
                "a tensor that the base does not have",
                "the tensors of the base",
                "It is left out of the merge; heads of single tasks usually are.",
                "extra",
            )
        elif target.shape != tensor.shape and name not in exclude:
            received, expected = f"shape {list(tensor.shape)}", f"shape {list(target.shape)}"
            kind = "vocabulary" if is_vocabulary(name) else "shape"
            yield Problem("error", where, received, f"{expected}, as in the base", _REMEDY, kind)


# A fine-tuned model is a few hundredths of its base away; half is another model.
FAR, COMMON_DRIFT, CLEARLY_NEARER = 0.5, 0.5, 0.7


def base_problems(fits: Sequence[BaseFit]) -> list[Problem]:
    """What looking at a few rows says against the first base, the others being candidates."""
    first = fits[0]
    problems = [
        Problem(
            "error",
            one,
            "a NaN or an infinity in the rows that were looked at",
            "finite weights",
            "Train or export it again: nothing finite can be computed from such weights.",
            "finite",
        )
        for one in first.not_finite
    ]
    nearest = min(fits, key=lambda fit: fit.mean_relative_norm or 0.0)
    own, best = first.mean_relative_norm, nearest.mean_relative_norm
    far = own is not None and own > FAR
    drift = first.mean_cosine is not None and first.mean_cosine > COMMON_DRIFT
    if own is not None and best is not None and best < CLEARLY_NEARER * own:
        problems.append(
            Problem(
                "warning",
                f"base {first.base!r}",
                f"experts at {own:.3g} times its norm, mean cosine {_number(first.mean_cosine)}",
                f"a base as near as {nearest.base!r}: {best:.3g}, {_number(nearest.mean_cosine)}",
                f"Use {nearest.base!r} as the base.",
                "base",
            )
        )
    elif far or drift:
        problems.append(
            Problem(
                "warning",
                f"base {first.base!r}",
                f"experts at {own:.3g} times its norm, mean cosine {_number(first.mean_cosine)}",
                "a few hundredths, and cosines well below 0.5",
                "The experts share a large drift: probably they were fine-tuned from another base."
                " Compare with --candidate-base.",
                "base",
            )
        )
    return problems


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


# YAML between two lines of dashes, where a model card begins; `huggingface_hub.ModelCard` reads it
# too, but takes 0.2 seconds to load.
_FRONT_MATTER = re.compile(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)


def licence(checkpoint: Checkpoint) -> str | None:
    """What the model card in the folder says; None where there is no card, or it says nothing."""
    card = checkpoint.path / "README.md"
    if not card.is_file():
        return None
    try:
        inside(card.parent, card.name)
        front = _FRONT_MATTER.match(card.read_text(encoding="utf-8"))
        data = yaml.safe_load(front[1]) if front else None
    except (CheckpointError, ValueError, OSError, RecursionError, yaml.YAMLError):
        return None  # a card that cannot be read says nothing; it decides nothing else
    found = data.get("license_name") or data.get("license") if isinstance(data, dict) else None
    return str(found) if found else None


def _licence_problems(licences: Sequence[tuple[str, str | None]]) -> Iterator[Problem]:
    known: dict[str, list[str]] = {}
    for label, its in licences:
        if its is not None:
            known.setdefault(its, []).append(label)
    if len(known) > 1:
        found = "; ".join(f"{one}: {', '.join(labels)}" for one, labels in known.items())
        yield Problem(
            "warning",
            "model cards",
            found,
            "one licence",
            "The merge is bound by all of them; check that they go together before you share it.",
            "licence",
        )
