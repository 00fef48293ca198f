"""Run a recipe: the main path. A plan is made as a value, then streamed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from awd_core import files
from awd_core.checkpoints import (
    Checkpoint,
    StoredTensor,
    common_rows,
    open_checkpoint,
    preflight,
)
from awd_core.collect import collect, study_digest
from awd_core.devices import resolve_device
from awd_core.disentangle import solve, solve_dense
from awd_core.dropping import row_sums, total
from awd_core.errors import OutputError, RecipeError, nearest
from awd_core.final_type import added_to_base, copied, in_final_type, joined, numbers
from awd_core.layout import blocks as block_names
from awd_core.lazy import torch
from awd_core.lines import block_scales
from awd_core.method import sum_over_experts
from awd_core.naming import matching, with_distinct_labels
from awd_core.parallel import Engine, in_order
from awd_core.plan import Plan
from awd_core.planned_vectors import is_kept, model_vectors, tensor_vectors
from awd_core.progress import CancelFn, ProgressFn, Reporter
from awd_core.recipe import Recipe
from awd_core.stream import read_base, row_blocks, spans
from awd_core.study import Study, equalise_norms
from awd_core.vectors import Piece, TensorVectors, Update
from awd_core.weighted import Tensors, is_weighted_sum, weighted_tensors
from awd_core.writer import Shard, shards, write_model

Result = TypeVar("Result")


def merge(
    recipe: Recipe,
    out: str | Path,
    *,
    study: Study | None = None,
    device: str = "auto",
    shard_bytes: int | None = None,
    progress: ProgressFn | None = None,
    cancel: CancelFn | None = None,
    checkpoints: tuple[Checkpoint, Sequence[Checkpoint]] | None = None,
    engine: Engine | None = None,
) -> Path:
    """Merge and write an ordinary Hugging Face folder, whole or not at all.

    Killed, or stopped by a disk that is full or cannot be read, it goes on from the last finished
    tensor when it is run again; the bytes are those of a run that was never stopped.

    A method that makes a model for each task writes the one that the recipe's knob `task` names;
    without it, all of them, each as a whole model in a folder that has its expert's name.

    Args:
        recipe: What to merge.
        out: Folder that does not exist yet.
        study: The study of the same base and experts, when it is at hand; AWD needs one and
            collects it otherwise.
        device: `auto`, `cpu` or `cuda`.
        shard_bytes: Largest size of a weight file; the files of the base when left out.
        progress: Called after each block.
        cancel: Polled after each block.
        checkpoints: Base and experts, when the caller has opened them already.
        engine: Where tensors are made, such as `awd_core.cluster.ray_cluster`; the threads of this
            process when left out. Changes time, never a result.

    Returns:
        `out`.

    Raises:
        AwdError: Each kind says where, what and what to do; nothing is left at `out`.
    """
    out = Path(out).expanduser().absolute()
    files.require_new(out)
    options: dict[str, Any] = {"device": device, "progress": progress, "cancel": cancel}
    plan = plan_merge(recipe, study=study, checkpoints=checkpoints, engine=engine, **options)
    _refuse_own_inputs(plan, out)
    models = _models(plan)
    n_bytes = sum(tensor.n_elements * plan.out_dtype(tensor).itemsize for tensor in plan.tensors)
    files.require_space(out, len(models) * n_bytes)
    report = Reporter("Merging", len(models) * n_bytes, progress, cancel)
    layout = shards(plan, shard_bytes)
    with files.whole_folder(out, _digest(plan, layout)) as folder:
        for name, model in models.items():
            (folder / name).mkdir(exist_ok=True)
            tensors = partial(merged_tensors, model)
            if engine is not None:
                tensors = partial(spread_tensors, model, engine)
            with files.Journal(folder / name) as journal:
                write_model(folder / name, model, layout, tensors, journal, report)
                journal.flush()
    return out


def _digest(plan: Plan, layout: Sequence[Shard]) -> str:
    """SHA-256 of what decides the bytes of the result."""
    parts = {
        "recipe": plan.recipe.digest,
        "inputs": [(one.label, one.fingerprint) for one in (plan.base, *plan.experts)],
        "paths": [str(one.path) for one in (plan.base, *plan.experts)],
        "layout": [(shard.name, [tensor.name for tensor in shard.tensors]) for shard in layout],
        "device": plan.device.split(":")[0],
        "torch": version("torch"),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _models(plan: Plan) -> dict[str, Plan]:
    """The plan of every model that is written, by its folder inside the output."""
    recipe, method = plan.recipe, plan.method
    if not method.needs_task or "task" in recipe.knobs:
        return {".": plan}
    models = {}
    for task, expert in enumerate(plan.experts):
        own = recipe.model_copy(update={"knobs": {**recipe.knobs, "task": task}})
        chosen = replace(plan, recipe=own, method=own.build_method())
        models[expert.label.replace("/", "--")] = chosen
    return models


def plan_merge(
    recipe: Recipe,
    *,
    study: Study | None = None,
    device: str = "auto",
    progress: ProgressFn | None = None,
    cancel: CancelFn | None = None,
    checkpoints: tuple[Checkpoint, Sequence[Checkpoint]] | None = None,
    engine: Engine | None = None,
) -> Plan:
    """Open everything, check it, and solve AWD where the recipe asks for it.

    Args:
        recipe: What to merge.
        study: A study of the same inputs, if at hand.
        device: Where the arithmetic will run.
        progress: For the pass, where AWD needs one that was never made.
        cancel: For the same.
        checkpoints: Base and experts, when the caller has opened them already.
        engine: For the pass.

    Raises:
        AwdError: The recipe cannot be merged.
    """
    if checkpoints is None:
        checkpoints = open_checkpoint(recipe.base), [open_checkpoint(e) for e in recipe.experts]
    base, experts = checkpoints[0], with_distinct_labels(checkpoints[1])
    if recipe.vocabulary == "common_rows":
        experts = tuple(map(common_rows, experts))
    excluded = _excluded(tuple(base.stored), recipe)
    preflight(base, experts, tuple(excluded)).require_ok()
    plan = Plan(
        recipe=recipe,
        base=base,
        experts=experts,
        method=recipe.build_method(),
        coefficients=recipe.lambdas(),
        tensors=tuple(base.stored.values()),
        excluded=excluded,
        redundant=None,
        disentangled=None,
        device=resolve_device(device),
        factors=_factors(base, excluded, recipe),
    )
    options: dict[str, Any] = {"device": device, "progress": progress, "cancel": cancel}
    if recipe.disentangle is not None and recipe.disentangle.leaves_span:
        found = solve_dense(plan.merged, experts, recipe.disentangle, **options)
        return replace(plan, dense=found.redundant)
    if recipe.disentangle is None and not recipe.equalise_norms:
        return plan
    study = _study_of(plan, study, {**options, "engine": engine})
    if recipe.equalise_norms:
        study = equalise_norms(study)
        plan = replace(plan, scales=study.scales)
    if recipe.disentangle is None:
        return plan
    disentangled = solve(study, recipe.disentangle)
    redundant = {
        tensor.name: disentangled.coefficients_of(position)
        for position, tensor in enumerate(study.tensors)
    }
    return replace(plan, redundant=redundant, disentangled=disentangled)


def _study_of(plan: Plan, study: Study | None, options: dict[str, Any]) -> Study:
    """The given study if it is of the plan's inputs, else one that is collected now."""
    settings = plan.recipe.disentangle
    spectral = settings is not None and settings.granularity == "spectral"
    left_out = tuple(name for name in plan.base.stored if name in plan.excluded)
    # A study with the spectral level serves every granularity.
    digests = {
        study_digest(plan.base, plan.experts, plan.excluded, spectral=level)
        for level in (spectral, True)
    }
    if study is not None and study.collected_digest in digests:
        unscaled = study.scales is None
        if unscaled or plan.recipe.equalise_norms:
            return study
    return collect(plan.base, plan.experts, spectral=spectral, exclude=left_out, **options)


def merged_tensors(plan: Plan, tensors: Sequence[StoredTensor] | None = None) -> Tensors:
    """Tensors of the result in order, each as the bytes of its pieces in its final type.

    Args:
        plan: The merge.
        tensors: Which; all of them when left out.
    """
    tensors = plan.tensors if tensors is None else tensors
    if is_weighted_sum(plan):
        yield from weighted_tensors(plan, tensors)
        return
    survey = _survey(plan, tensors)
    for kept, group in groupby(tensors, key=partial(is_kept, plan)):
        if kept:
            # A thread for each: none waits for the last piece of a tensor before the next sweep.
            own = list(group)
            made = in_order(partial(_whole_tensor, plan, survey, kept=True), own)
            yield from zip(own, map(iter, made), strict=True)
        else:
            for tensor in group:
                yield tensor, _final_blocks(plan, survey, tensor)


@dataclass(frozen=True)
class _Surveyed:
    """What must be known of the whole model before any tensor is made.

    Attributes:
        found: What the method wanted to know.
        scales: What a tensor's update is multiplied with, where that is not 1.
    """

    found: Any = None
    scales: Mapping[str, float] = field(default_factory=dict)


def spread_tensors(plan: Plan, engine: Engine, tensors: Sequence[StoredTensor]) -> Tensors:
    """The same with every tensor a task of an engine, such as a cluster."""
    # What only the card tells need not travel.
    plan = replace(plan, disentangled=None)
    task = partial(_whole_tensor, plan, _survey(plan, tensors))
    for tensor, blocks in zip(tensors, engine(task, tensors), strict=True):
        yield tensor, iter(blocks)


def _whole_tensor(
    plan: Plan, survey: _Surveyed, tensor: StoredTensor, kept: bool = False
) -> list[np.ndarray]:
    if is_weighted_sum(plan):
        return [block for _, blocks in weighted_tensors(plan, [tensor]) for block in blocks]
    return list(_final_blocks(plan, survey, tensor, kept))


def _survey(plan: Plan, tensors: Sequence[StoredTensor]) -> _Surveyed:
    merges = any(tensor.name in plan.merged_names for tensor in tensors)
    if plan.sole_expert is not None or is_weighted_sum(plan) or not merges:
        return _Surveyed()
    found = plan.method.survey(model_vectors(plan))
    return _Surveyed(found, layer_scales(plan, found))


def _final_blocks(
    plan: Plan, survey: _Surveyed, tensor: StoredTensor, kept: bool = False
) -> Iterator[np.ndarray]:
    if tensor.name in plan.merged_names:
        return _merged_blocks(plan, tensor, survey, kept)
    return (copied(plan, tensor, span) for span in spans(tensor))


def merged_state(plan: Plan, cancel: CancelFn | None = None) -> dict[str, torch.Tensor]:
    """The result in memory, tensor by name: what the written folder would load as."""
    report = Reporter("Merging", len(plan.tensors), cancel=cancel)
    state = {}
    for tensor, blocks in merged_tensors(plan):
        state[tensor.name] = numbers(joined(blocks), plan.out_dtype(tensor)).reshape(tensor.shape)
        report.advance(1, tensor.name)
    return state


def _merged_blocks(
    plan: Plan, tensor: StoredTensor, survey: _Surveyed, kept: bool
) -> Iterator[np.ndarray]:
    if plan.sole_expert is not None:
        counterpart = plan.experts[plan.sole_expert].tensor(tensor)
        for start, stop in row_blocks(tensor):
            base = read_base(tensor, start, stop, plan.device)
            yield in_final_type(plan, tensor, counterpart.weights(start, stop, base))
    elif tensor.n_elements:
        scale = survey.scales.get(tensor.name, 1.0)

        def merged(piece: Piece, update: Update) -> np.ndarray:
            scaled = update * scale if scale != 1 else update
            stored = piece.stored
            if stored is not None:
                return added_to_base(plan, tensor, stored.packed, scaled)
            added = torch.as_tensor(scaled)
            moved = torch.where(added == 0, piece.base, piece.base + added)
            return in_final_type(plan, tensor, moved)

        vectors = tensor_vectors(plan, tensor, kept)
        yield from _updates(plan, vectors, survey.found, plan.coefficients_of(tensor), merged)


def _updates(
    plan: Plan,
    vectors: TensorVectors,
    survey: Any,
    coefficients: np.ndarray,
    then: Callable[[Piece, Update], Result],
) -> Iterator[Result]:
    """What is made of every piece of a tensor and its merged task vector."""
    method = plan.method
    prepared = method.prepare(survey, vectors)

    def update(piece: Piece) -> Result:
        return then(piece, method.combine(prepared, piece, coefficients))

    # Products of matrices use all cores by themselves.
    if not method.reads_pieces(vectors):
        return map(update, vectors.bases())
    return vectors.each(update)


def layer_scales(plan: Plan, survey: Any) -> dict[str, float]:
    """What LiNeS multiplies every tensor's merged task vector with; nothing without it."""
    lines = plan.recipe.lines
    if lines is None:
        return {}
    first = lines.first
    if first is None:
        before, after = 0.0, 0.0
        ones = np.ones(len(plan.experts))
        for vectors in model_vectors(plan).tensors():
            magnitudes = lambda piece: row_sums(sum_over_experts(piece.task_vectors).abs())  # noqa: E731
            before += total(vectors.each(magnitudes))
            merged = lambda _, update: row_sums(torch.as_tensor(update).abs())  # noqa: E731
            after += total(_updates(plan, vectors, survey, ones, merged))
        first = before / after / len(plan.experts) if after else 0.0
    return block_scales([tensor.name for tensor in plan.tensors], float(first), lines.slope)


def _factors(base: Checkpoint, excluded: frozenset[str], recipe: Recipe) -> dict[str, float]:
    """What lambda is multiplied with in every tensor of a block that the recipe names.

    Raises:
        RecipeError: There is no such block.
    """
    if not recipe.block_factors:
        return {}
    names = [t.name for t in base.stored.values() if t.is_float and t.name not in excluded]
    block_of = dict(zip(names, block_names(names), strict=True))
    known = tuple(dict.fromkeys(block_of.values()))
    for block in recipe.block_factors:
        if block not in known:
            raise RecipeError(
                "The model has no block of this name",
                where="block_factors",
                received=block,
                remedy=nearest(block, known),
            )
    return {
        name: recipe.block_factors[block]
        for name, block in block_of.items()
        if recipe.block_factors.get(block, 1.0) != 1.0
    }


def _excluded(names: tuple[str, ...], recipe: Recipe) -> frozenset[str]:
    included = matching(names, recipe.include, "include") if recipe.include else frozenset(names)
    return matching(names, recipe.exclude) | (frozenset(names) - included)


def _refuse_own_inputs(plan: Plan, out: Path) -> None:
    target = out.resolve()
    for source in (plan.base, *plan.experts):
        folder = source.path.resolve()
        if target == folder or folder in target.parents:
            raise OutputError(
                "The output lies inside one of the inputs",
                where=out,
                received=f"inside {source.label!r}",
                expected="a folder of its own",
                remedy="Choose another output folder.",
            )
