"""The pass: every weight is read once, every statistic gathered from it, and the study written."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from awd_core import files, layout
from awd_core.checkpoints import Checkpoint, StoredTensor, preflight
from awd_core.elements import DENSITIES, MASK_SHARES, UPDATE_SCALES, Magnitudes
from awd_core.gram import Grams, base_square, pack
from awd_core.naming import matching, with_distinct_labels
from awd_core.progress import CancelFn, ProgressFn, Reporter
from awd_core.spectral import spectral_grams
from awd_core.statistic import Statistic
from awd_core.stream import CHUNK_ELEMENTS, Chunk, chunks, resolve_device
from awd_core.study import (
    GRAM,
    MARKER,
    ROW_GRAM,
    SCHEMA,
    SPECTRAL_GRAM,
    STUDY,
    SourceInfo,
    Study,
    TensorInfo,
    open_study,
)

# What the first read gathers; what a statistic is followed by comes from a second one.
STATISTICS: tuple[type[Statistic], ...] = (Grams, Magnitudes)


def collect(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    rows: bool = True,
    spectral: bool = False,
    exclude: Sequence[str] = (),
    progress: ProgressFn | None = None,
    cancel: CancelFn | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Study:
    """Read base and experts once and write the study.

    Never done twice: a study of the same inputs at `out` is opened instead.

    Args:
        base: The base.
        experts: Its experts, in the order they shall have everywhere.
        out: Study folder; by default one under AWD Studio's own folder, named by content.
        device: `auto`, `cpu` or `cuda`.
        rows: Whether to keep the Gram of every output row, which granularity `row` needs:
            4 K (K + 1) bytes a row.
        spectral: Whether to keep the Grams of the rotated rows, which granularity `spectral`
            needs: two more readings of the experts and an eigendecomposition for every matrix.
        exclude: Patterns (`*.bias`) of tensors that stay as they are in the base.
        progress: Called after each tensor.
        cancel: Polled after each tensor.
        chunk_elements: Elements held at once; changes memory, never a result.

    Returns:
        The study, opened from disk.

    Raises:
        MismatchError: Base and experts do not match.
        OutputError: `out` holds something else, or there is no space.
        Cancelled: `cancel` returned True; nothing is left behind.
    """
    experts = with_distinct_labels(experts)
    excluded = matching(tuple(base.stored), exclude)
    preflight(base, experts, tuple(excluded)).require_ok()
    digest = study_digest(base, experts, excluded, rows, spectral)
    out = files.home() / "studies" / digest[:16] if out is None else Path(out)
    if (out / MARKER).exists():
        study = open_study(out)
        if study.digest == digest:
            return study
    tensors = [
        tensor for tensor in base.stored.values() if tensor.is_float and tensor.name not in excluded
    ]
    with files.whole_folder(out) as folder:
        arrays, row_arrays = _statistics(
            tensors, experts, resolve_device(device), chunk_elements, progress, cancel
        )
        _save(arrays, folder / GRAM)
        if rows:
            _save(row_arrays, folder / ROW_GRAM)
        if spectral:
            touched = [tensor for tensor in tensors if tensor.name in row_arrays]
            _save(
                _spectral_level(touched, experts, resolve_device(device), progress, cancel),
                folder / SPECTRAL_GRAM,
            )
        description = _describe(base, experts, tensors, exclude, digest)
        (folder / STUDY).write_text(json.dumps(description, indent=1), encoding="utf-8")
        (folder / MARKER).write_text(digest, encoding="utf-8")
    return open_study(out)


def _save(arrays: dict[str, np.ndarray], file: Path) -> None:
    try:
        save_file(arrays, file)
    except SafetensorError as error:  # its own kind, also for a disk that is full
        raise OSError(str(error)) from error


def _statistics(
    tensors: Sequence[StoredTensor],
    experts: Sequence[Checkpoint],
    device: torch.device,
    chunk_elements: int,
    progress: ProgressFn | None,
    cancel: CancelFn | None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every array over all tensors, and the packed row Grams of every matrix that changes."""
    total = sum(tensor.n_bytes for tensor in tensors)
    report = Reporter("Reading task vectors", total, progress, cancel)
    arrays = _empty_arrays(len(tensors), len(experts))
    rows: dict[str, np.ndarray] = {}
    for position, tensor in enumerate(tensors):
        if not any(expert.touches(tensor.name) for expert in experts):
            found: dict[str, Any] = {
                "base_squared_norm": np.float64(base_square(tensor, device, chunk_elements))
            }
        else:
            found = tensor_statistics(
                lambda tensor=tensor: chunks(tensor, experts, device, chunk_elements), len(experts)
            )
        row_grams = found.pop("row_gram", None)
        if row_grams is not None and len(tensor.shape) >= 2 and row_grams.any():
            rows[tensor.name] = row_grams
        for name, value in found.items():
            arrays[name][position] = value
        report.advance(tensor.n_bytes, tensor.name)
    return arrays, rows


def tensor_statistics(sweep: Callable[[], Iterable[Chunk]], n_experts: int) -> dict[str, Any]:
    """Every statistic of one tensor.

    Args:
        sweep: Starts the stream of its chunks anew.
        n_experts: K.
    """
    found: dict[str, Any] = {}
    wanted: list[Statistic] = [statistic(n_experts) for statistic in STATISTICS]
    while wanted:
        for chunk in sweep():
            for statistic in wanted:
                statistic.add(statistic.part(chunk))
        found |= {name: value for one in wanted for name, value in one.result().items()}
        wanted = [following for one in wanted if (following := one.followed_by()) is not None]
    return found


def _empty_arrays(n_tensors: int, n_experts: int) -> dict[str, np.ndarray]:
    return {
        name: np.zeros((n_tensors, *shape), dtype)
        for statistic in STATISTICS
        for name, (shape, dtype) in statistic.arrays(n_experts).items()
    }


def _spectral_level(
    matrices: Sequence[StoredTensor],
    experts: Sequence[Checkpoint],
    device: torch.device,
    progress: ProgressFn | None,
    cancel: CancelFn | None,
) -> dict[str, np.ndarray]:
    total = sum(tensor.n_bytes for tensor in matrices)
    report = Reporter("Rotating matrices", total, progress, cancel)
    packed = {}
    for tensor in matrices:
        packed[tensor.name] = pack(spectral_grams(tensor, experts, device))
        report.advance(tensor.n_bytes, tensor.name)
    return packed


def study_digest(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    excluded: Collection[str],
    rows: bool = True,
    spectral: bool = False,
) -> str:
    """SHA-256 of what decides a study: fingerprints, labels, names left out, levels and schema.

    By which patterns a tensor was left out does not matter, so that a merge finds the study.
    """
    parts = {
        "schema": SCHEMA,
        "base": base.fingerprint,
        "experts": [(expert.label, expert.fingerprint) for expert in experts],
        "exclude": [name for name in base.stored if name in excluded],
        "rows": rows,
        "densities": DENSITIES,
        "mask_shares": MASK_SHARES,
        "update_scales": UPDATE_SCALES,
    }
    if spectral:
        parts["spectral"] = True
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _describe(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    tensors: Sequence[StoredTensor],
    exclude: Sequence[str],
    digest: str,
) -> dict[str, Any]:
    names = [tensor.name for tensor in tensors]
    infos = [
        TensorInfo(
            tensor.name,
            tensor.shape,
            str(tensor.dtype).removeprefix("torch."),
            block,
            layout.place(tensor.name).kind,
        )
        for tensor, block in zip(tensors, layout.blocks(names), strict=True)
    ]
    return {
        "schema": SCHEMA,
        "digest": digest,
        "base": asdict(_source(base)),
        "experts": [asdict(_source(expert)) for expert in experts],
        "exclude": list(exclude),
        "tensors": [asdict(info) for info in infos],
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }


def _source(checkpoint: Checkpoint) -> SourceInfo:
    return SourceInfo(
        checkpoint.label,
        checkpoint.source,
        str(checkpoint.path.absolute()),
        checkpoint.kind,
        checkpoint.fingerprint,
    )
