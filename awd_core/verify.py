"""Checks a merged folder: is it whole, is it what its recipe gives, does transformers load it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from awd_core import devices, files
from awd_core.checkpoints import open_checkpoint
from awd_core.checkpoints.header import StoredTensor
from awd_core.checkpoints.weights import stored_tensors
from awd_core.dtypes import Dtype
from awd_core.errors import AwdError, OutputError
from awd_core.final_type import joined, numbers
from awd_core.lazy import torch
from awd_core.merge import merged_tensors, plan_merge
from awd_core.plan import Plan
from awd_core.progress import CancelFn, ProgressFn, Reporter
from awd_core.recipe import Recipe
from awd_core.stream import Span, read_as_stored
from awd_core.writer import PROVENANCE, RECIPE

_CHANGED = "Merge again; the folder or an input was changed."
_MADE_ELSEWHERE = (
    "Merge again; it was made on another kind of processor, or the folder or an input was changed."
)


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What.
        ok: Whether it holds; None when it could not be checked here.
        detail: What was found, in a sentence.
    """

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks of one folder."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """No check failed."""
        return all(check.ok is not False for check in self.checks)


def verify(
    folder: str | Path,
    *,
    load: bool = True,
    allow_pickle: bool = False,
    progress: ProgressFn | None = None,
    cancel: CancelFn | None = None,
) -> Verification:
    """Hash every file again, derive every tensor again from the recipe, load with transformers.

    Args:
        folder: A folder that `merge` wrote.
        load: Whether to load it with transformers.
        allow_pickle: Whether inputs may be pickled weights, as `open_checkpoint` says.
        progress: Called after each step.
        cancel: Polled after each step.

    Returns:
        What was checked and found. A check whose inputs are gone is reported as not possible.

    Raises:
        OutputError: `folder` is not a merged folder at all.
    """
    folder = Path(folder).expanduser()
    provenance = _provenance(folder)
    report = Reporter("Verifying", 3, progress, cancel)
    checks = [_hashes(folder, provenance)]
    report.advance(1, "hashes")
    checks += [_inputs(provenance), _derive(folder, provenance, allow_pickle, cancel)]
    report.advance(1, "tensors")
    if load:
        checks.append(_loaded(folder))
    report.advance(1, "loading")
    return Verification(folder, tuple(checks))


class _Input(BaseModel):
    label: str
    path: str
    sha256: dict[str, str]


class _Provenance(BaseModel):
    """What of `provenance.json` is checked."""

    inputs: list[_Input]
    outputs: dict[str, str]
    device: str
    gpu: str | None = None


def _provenance(folder: Path) -> _Provenance:
    try:
        return _Provenance.model_validate_json((folder / PROVENANCE).read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(
            "This is not a folder that `awd merge` wrote",
            where=folder,
            received=f"no readable {PROVENANCE}",
            remedy="Point at the OUT folder of `awd merge RECIPE OUT`.",
        ) from error


def _attempt(name: str, run: Callable[[], str]) -> Check:
    try:
        return Check(name, True, run())
    except AwdError as error:
        return Check(name, False, str(error))


def _hashes(folder: Path, provenance: _Provenance) -> Check:
    wrong = [
        name
        for name, expected in provenance.outputs.items()
        if not (folder / name).is_file() or files.sha256(folder / name) != expected
    ]
    found = f"{len(provenance.outputs)} files have the SHA-256 they were written with"
    detail = f"changed or missing: {', '.join(wrong)}" if wrong else found
    return Check("files are as written", not wrong, detail)


def _inputs(provenance: _Provenance) -> Check:
    name = "inputs are as they were"
    changed, missing, same = [], [], 0
    for source in provenance.inputs:
        for file_name, expected in source.sha256.items():
            file = Path(source.path)
            file = file / file_name if file.is_dir() else file
            if not file.is_file():
                missing.append(f"{source.label}/{file_name}")
            elif files.sha256(file) != expected:
                changed.append(f"{source.label}/{file_name}")
            else:
                same += 1
    if changed:
        return Check(name, False, f"changed since the merge: {', '.join(changed)}")
    if missing:
        return Check(name, None, f"not here, so not checked: {', '.join(missing)}")
    return Check(name, True, f"{same} files have the SHA-256 they had")


def _derive(
    folder: Path, provenance: _Provenance, allow_pickle: bool, cancel: CancelFn | None
) -> Check:
    name = "tensors follow from the recipe"
    # Where the inputs were read from: a path in the recipe may be relative to another folder.
    paths = [source.path for source in provenance.inputs]
    gone = [path for path in paths if not Path(path).exists()]
    if gone:
        return Check(name, None, f"inputs are not here: {', '.join(gone)}")
    elsewhere = provenance.gpu != devices.gpu_name() and provenance.device != "cpu"
    device = provenance.device if devices.has_gpu() else "cpu"

    def derive() -> str:
        recipe = Recipe.load(folder / RECIPE)
        if len(recipe.experts) != len(paths) - 1:
            raise OutputError(
                "The recipe does not have the experts that were merged",
                where=folder / RECIPE,
                received=f"{len(recipe.experts)} experts",
                expected=f"{len(paths) - 1}",
            )
        recipe = recipe.model_copy(update={"base": paths[0], "experts": tuple(paths[1:])})
        base, *experts = (open_checkpoint(path, allow_pickle=allow_pickle) for path in paths)
        plan = plan_merge(recipe, device=device, cancel=cancel, checkpoints=(base, experts))
        return _compare(folder, plan, elsewhere, cancel)

    return _attempt(name, derive)


def _compare(folder: Path, plan: Plan, elsewhere: bool, cancel: CancelFn | None) -> str:
    """Derive every tensor again: bit for bit, or to rounding where it was made `elsewhere`."""
    written = stored_tensors(folder)
    report = Reporter("Deriving", len(plan.tensors), cancel=cancel)
    rounded = 0
    for tensor, blocks in merged_tensors(plan):
        dtype, derived = plan.out_dtype(tensor), joined(blocks)
        found = _bytes_of(written.get(tensor.name), tensor, dtype)
        same = found is not None and np.array_equal(found, derived)
        near = same or (found is not None and _near(found, derived, dtype))
        if not near or not (same or elsewhere):
            raise OutputError(
                "A tensor differs from what the recipe gives",
                where=f"tensor {tensor.name!r} of {folder}",
                received="the same numbers but for their last digits" if near else None,
                remedy=_MADE_ELSEWHERE if near else _CHANGED,
            )
        rounded += not same
        report.advance(1, tensor.name)
    if rounded:
        return (
            f"all {len(plan.tensors)} tensors derived again, {rounded} of them to rounding: the"
            " merge was made on a GPU that is not here"
        )
    return f"all {len(plan.tensors)} tensors derived again, bit for bit"


def _bytes_of(
    stored: StoredTensor | None, of_base: StoredTensor, dtype: Dtype
) -> np.ndarray | None:
    """What is written; None where it is another shape or type."""
    if stored is None or (stored.shape, stored.dtype) != (of_base.shape, dtype):
        return None
    return read_as_stored(stored, Span(0, *stored.matrix_shape))


def _near(found: np.ndarray, derived: np.ndarray, dtype: Dtype) -> bool:
    """Whether numbers agree to a step of their type, and to 1e-6 of the largest one."""
    if not dtype.is_float:
        return False
    a, b = (numbers(data, dtype).to(torch.float64) for data in (found, derived))
    step = max(1e-6, torch.finfo(dtype.torch).eps)
    return bool(((a - b).abs() <= step * b.abs() + 1e-6 * b.abs().max()).all())


def _loaded(folder: Path) -> Check:
    name = "transformers loads it"
    if not (folder / "config.json").exists():
        return Check(name, None, "weights alone, without a config.json that says of which model")
    return _attempt(name, lambda: _load(folder))


def _load(folder: Path) -> str:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        # AutoModel drops heads, and then misses what the model with its head does not have.
        names = transformers.AutoConfig.from_pretrained(folder).architectures or []
        kind = getattr(transformers, names[0], None) if names else None
        model, info = (kind or transformers.AutoModel).from_pretrained(
            folder, output_loading_info=True
        )
    except Exception as error:  # whatever transformers raises means: it does not load
        raise OutputError(
            "transformers cannot load the folder", where=folder, received=error
        ) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(map(str, info["missing_keys"])))
        raise OutputError("transformers misses weights", where=folder, received=missing)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__}, {n_parameters:,} parameters"
