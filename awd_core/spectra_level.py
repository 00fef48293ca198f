"""The spectra of a study: a level of its own, collected on demand and kept beside the Grams."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from safetensors.numpy import save_file

from awd_core import files
from awd_core.arrays import Array, namespace, numpy_in_one_thread
from awd_core.checkpoints import Checkpoint, StoredTensor, open_checkpoint
from awd_core.common_bases import in_common_bases
from awd_core.devices import resolve_device
from awd_core.errors import MismatchError, StudyError
from awd_core.gram import pack
from awd_core.parallel import in_order
from awd_core.progress import CancelFn, ProgressFn, Reporter
from awd_core.spectra import Spectra, matrix_spectra
from awd_core.spectral import matrices, workers
from awd_core.stream import chunks
from awd_core.study import SPECTRA, SPECTRAL_GRAM, SourceInfo, Study, open_study

# Bytes of task vectors that are held while a matrix is looked at again, instead of read again.
MOST_HELD = 1 << 29
# Numbers of all experts that are read at once, 24 MiB: most matrices in one piece, which is then
# not copied once more. From 32 MiB on glibc gives memory back at once, and every page is new.
READ_NUMBERS = 3 << 20


def collect_spectra(
    study: Study,
    base: Checkpoint | None = None,
    experts: Sequence[Checkpoint] = (),
    *,
    device: str = "auto",
    progress: ProgressFn | None = None,
    cancel: CancelFn | None = None,
) -> Study:
    """Decompose every matrix and keep what the spectral measures need beside the study.

    Never done twice. With it comes the spectral level, which granularity `spectral` needs.

    Args:
        study: A study on disk.
        base: Its base; opened where the study remembers it if left out.
        experts: Its experts, in order; opened if left out.
        device: `auto`, `cpu` or `cuda`.
        progress: Called after each matrix.
        cancel: Polled after each matrix.

    Returns:
        The study, opened again.

    Raises:
        StudyError: The study has no folder, or no matrix that changes.
        MismatchError: The weights are not those of the study.
        Cancelled: `cancel` returned True; the study is as it was.

    Cost: for every matrix K + 1 eigendecompositions of its short side; of large ones with many
    experts one, and K randomised ones.
    """
    if study.path is None or study.scales is not None:
        raise StudyError(
            "Spectra are collected for a study on disk, of task vectors as they are",
            where=study.path,
            remedy="Open the study's folder, without equalised norms.",
        )
    if study.has_spectra:
        return study
    base = base or open_checkpoint(study.base.source)
    experts = experts or [open_checkpoint(source.source) for source in study.sources]
    for checkpoint, info in zip((base, *experts), (study.base, *study.sources), strict=True):
        _require_same(checkpoint, info)
    found, rotated = _all_spectra(study, base, experts, resolve_device(device), progress, cancel)
    if not (study.path / SPECTRAL_GRAM).exists():
        with files.whole_file(study.path / SPECTRAL_GRAM) as file:
            save_file(rotated, file)
    with files.whole_file(study.path / SPECTRA) as file:
        save_file(found, file)
    return open_study(study.path)


def _all_spectra(
    study: Study,
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    device: str,
    progress: ProgressFn | None,
    cancel: CancelFn | None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    changed = [
        position
        for position, tensor in enumerate(study.tensors)
        if tensor.is_matrix and study.grams[position].any()
    ]
    stored = [base.stored[study.tensors[position].name] for position in changed]
    report = Reporter(
        "Decomposing matrices", sum(tensor.n_bytes for tensor in stored), progress, cancel
    )
    found: list[Spectra] = []
    rotated: dict[str, np.ndarray] = {}
    beside = workers(stored, len(experts), device)
    with numpy_in_one_thread():
        running = in_order(partial(_spectra, experts, device), stored, beside, ahead=len(stored))
        for tensor, (spectra, grams) in zip(stored, running, strict=True):
            found.append(spectra)
            rotated[tensor.name] = pack(grams)
            report.advance(tensor.n_bytes, tensor.name)
    if not found:
        raise StudyError(
            "No expert changes a matrix, so there is nothing to decompose", where=study.path
        )
    return _stacked(found) | {"positions": np.array(changed, dtype=np.int64)}, rotated


def _spectra(
    experts: Sequence[Checkpoint], device: str, tensor: StoredTensor
) -> tuple[Spectra, np.ndarray]:
    small = in_common_bases(tensor, experts)
    held = _moved_rows(tensor, experts, device) if small is None else small.vectors
    sweep = partial(matrices, tensor, experts, device) if held is None else lambda: held
    return matrix_spectra(tensor.name, len(experts), min(tensor.matrix_shape), sweep)


def _moved_rows(tensor: StoredTensor, experts: Sequence[Checkpoint], device: str) -> Array | None:
    """The rows that any expert moves, of every expert, (K, rows, columns) float64.

    None where that is too much to hold. Rows of zeros change no singular value and no product. Of
    an embedding only the rows of tokens that were seen in training are left.
    """
    held: list[Array] = []
    n_bytes = 0
    for chunk in chunks(tensor, experts, device, READ_NUMBERS // len(experts)):
        vectors = chunk.widened[1]
        moved = (vectors != 0).any(2).any(0)
        held.append(vectors if moved.all() else vectors[:, moved])
        n_bytes += held[-1].nbytes
        if n_bytes > MOST_HELD:
            return None
    return held[0] if len(held) == 1 else namespace(held[0]).concatenate(held, 1)


def _stacked(found: Sequence[Spectra]) -> dict[str, np.ndarray]:
    """Arrays over all matrices; singular values of the shorter ones end in NaN."""
    longest = max(one.values.shape[1] for one in found)
    values = np.full((len(found), len(found[0].values), longest), np.nan, dtype=np.float32)
    for position, one in enumerate(found):
        values[position, :, : one.values.shape[1]] = one.values
    names = [name for name in vars(found[0]) if name != "values"]
    arrays = {name: np.stack([getattr(one, name) for one in found]) for name in names}
    return arrays | {"values": values}


def _require_same(checkpoint: Checkpoint, info: SourceInfo) -> None:
    if checkpoint.fingerprint != info.fingerprint:
        raise MismatchError(
            "These are not the weights of the study",
            where=info.label,
            received=f"fingerprint {checkpoint.fingerprint[:12]} at {checkpoint.source}",
            expected=f"fingerprint {info.fingerprint[:12]}",
            remedy="Give the checkpoints the study was collected from, or collect it again.",
        )
