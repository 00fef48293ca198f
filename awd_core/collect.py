"""The pass: every weight is read once, every statistic gathered from it, and the study written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from awd_core import files, layout
from awd_core.array_file import ArrayFile
from awd_core.arrays import numpy_in_one_thread
from awd_core.checkpoints import Checkpoint, StoredTensor, preflight
from awd_core.devices import resolve_device
from awd_core.elements import DENSITIES, MASK_SHARES, UPDATE_SCALES, Magnitudes
from awd_core.gram import Grams, pack
from awd_core.naming import matching, with_distinct_labels
from awd_core.parallel import Engine, in_order
from awd_core.progress import CancelFn, InOrder, ProgressFn, Reporter
from awd_core.spectral import spectral_grams, workers
from awd_core.statistic import Statistic
from awd_core.stream import CHUNK_ELEMENTS, Reader, spans
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
from awd_core.sweeps import Sweep, run

# What the first read gathers; what a statistic is followed by comes from a second one.
STATISTICS: tuple[type[Statistic], ...] = (Grams, Magnitudes)

# Arrays of one tensor, by name; who takes row Grams, with the row that they begin at.
Found = dict[str, Any]
GiveRows = Callable[[int, np.ndarray], None]


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
    engine: Engine | None = None,
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
        engine: Where tensors are read, such as `awd_core.cluster.ray_cluster`; the threads of this
            process when left out. Changes time, never a result.

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
    work = _Work(tensors, experts, resolve_device(device), chunk_elements, progress, cancel)
    with files.whole_folder(out, digest) as folder:
        with files.Journal(folder) as journal:
            _collect_statistics(work, folder, journal, rows, engine)
            if spectral:
                _collect_spectral(work, folder, journal, engine)
            journal.flush()
        description = _describe(base, experts, tensors, exclude, digest)
        (folder / STUDY).write_text(json.dumps(description, indent=1), encoding="utf-8")
        (folder / MARKER).write_text(digest, encoding="utf-8")
    return open_study(out)


@dataclass(frozen=True)
class _Work:
    """What is read, and who is told."""

    tensors: Sequence[StoredTensor]
    experts: Sequence[Checkpoint]
    device: str
    chunk_elements: int
    progress: ProgressFn | None
    cancel: CancelFn | None

    @property
    def n_pairs(self) -> int:
        """Numbers in the lower triangle of a Gram matrix."""
        return len(self.experts) * (len(self.experts) + 1) // 2

    def touching(self, tensor: StoredTensor) -> Sequence[Checkpoint]:
        """All experts, or none where none of them changes the tensor."""
        touched = any(expert.touches(tensor.name) for expert in self.experts)
        return self.experts if touched else ()

    @property
    def matrices(self) -> list[StoredTensor]:
        """Tensors with rows of their own that an expert changes."""
        return [one for one in self.tensors if len(one.shape) >= 2 and self.touching(one)]


def _collect_statistics(
    work: _Work, folder: Path, journal: files.Journal, rows: bool, engine: Engine | None
) -> None:
    """Fill `gram.safetensors` and `row_gram.safetensors`, from the last finished tensor on."""
    done = {entry["tensor"] for entry in journal.entries() if "tensor" in entry}
    grams = ArrayFile(folder / GRAM, _stacked(len(work.tensors), len(work.experts)))
    row_shapes = {t.name: ((t.matrix_shape[0], work.n_pairs), np.float64) for t in work.matrices}
    row_grams = ArrayFile(folder / ROW_GRAM, row_shapes) if rows else None
    written = [file.path for file in (grams, row_grams) if file is not None]
    total = sum(tensor.n_bytes for tensor in work.tensors)
    report = InOrder(
        Reporter("Reading task vectors", total, work.progress, work.cancel),
        [(tensor.n_bytes, tensor.name) for tensor in work.tensors],
    )
    missing = []
    for position, tensor in enumerate(work.tensors):
        if tensor.name in done:
            report.finished(position)
        else:
            missing.append(position)

    def give_rows(position: int) -> GiveRows | None:
        tensor = work.tensors[position]
        if row_grams is None or tensor not in work.matrices:
            return None
        return partial(row_grams.write, tensor.name)

    def finished(position: int, found: Found) -> None:
        for name, value in found.items():
            if name in grams.names and np.size(value):
                grams.write(name, position, np.asarray(value)[None])
        journal.add({"tensor": work.tensors[position].name}, *written)
        report.finished(position)

    try:
        if engine is None:
            sweeps = (_first_sweep(work, position, give_rows(position)) for position in missing)
            run(sweeps, lambda sweep: finished(sweep.position, sweep.found))
        else:
            task = partial(_statistics_of, replace(work, progress=None, cancel=None))
            for position, found in zip(missing, engine(task, missing), strict=True):
                write = give_rows(position)
                if write and "row_gram" in found:
                    write(0, found["row_gram"])
                finished(position, found)
    finally:
        for file in (grams, row_grams):
            if file is not None:
                file.close()


def _statistics_of(work: _Work, position: int) -> Found:
    """What the pass finds in one tensor, its row Grams too: a task of a cluster."""
    swept: list[Sweep] = []
    run([_first_sweep(work, position, None)], swept.append, workers=2)
    return swept[0].found


def _first_sweep(work: _Work, position: int, give_rows: GiveRows | None) -> Sweep:
    tensor = work.tensors[position]
    experts = work.touching(tensor)
    kinds = STATISTICS if experts else (Grams,)
    statistics = [kind(len(experts)) for kind in kinds]
    if give_rows is not None:
        for statistic in statistics:
            if isinstance(statistic, Grams):
                statistic.give_rows = give_rows
    reader = Reader(tensor, experts, work.device)
    whole_rows = reader.needs_whole_rows or work.device != "cpu"
    parts = list(spans(tensor, work.chunk_elements, whole_rows))
    return Sweep(position, reader, parts, statistics)


def _stacked(n_tensors: int, n_experts: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Every array of a study, with an axis of tensors in front."""
    return {
        name: ((n_tensors, *shape), dtype)
        for statistic in STATISTICS
        for name, (shape, dtype) in statistic.arrays(n_experts).items()
    }


def _collect_spectral(
    work: _Work, folder: Path, journal: files.Journal, engine: Engine | None
) -> None:
    """Fill `spectral_gram.safetensors`, from the last finished matrix on."""
    done = {entry["rotated"] for entry in journal.entries() if "rotated" in entry}
    matrices = [tensor for tensor in work.matrices if tensor.n_elements]
    shapes = {t.name: ((min(t.matrix_shape), work.n_pairs), np.float64) for t in matrices}
    file = ArrayFile(folder / SPECTRAL_GRAM, shapes)
    total = sum(tensor.n_bytes for tensor in matrices)
    report = Reporter("Rotating matrices", total, work.progress, work.cancel)
    missing = [tensor for tensor in matrices if tensor.name not in done]
    for tensor in matrices:
        if tensor.name in done:
            report.advance(tensor.n_bytes, tensor.name)
    rotate = partial(spectral_grams, experts=work.experts, device=work.device)
    try:
        if engine is None:
            engine = partial(in_order, workers=workers(matrices, len(work.experts), work.device))
        # For the threads of this process; on a cluster each task sees to itself.
        with numpy_in_one_thread():
            for tensor, grams in zip(missing, engine(rotate, missing), strict=True):
                file.write(tensor.name, 0, pack(grams))
                journal.add({"rotated": tensor.name}, file.path)
                report.advance(tensor.n_bytes, tensor.name)
    finally:
        file.close()


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
            tensor.dtype.name,
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
        "vocabulary": "common_rows" if any(one.common_rows for one in experts) else "same",
        "tensors": [asdict(info) for info in infos],
        "versions": {"torch": version("torch"), "numpy": np.__version__},
    }


def _source(checkpoint: Checkpoint) -> SourceInfo:
    return SourceInfo(
        checkpoint.label,
        checkpoint.source,
        str(checkpoint.path.absolute()),
        checkpoint.kind,
        checkpoint.fingerprint,
    )
