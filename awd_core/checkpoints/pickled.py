"""The header of a `.bin` file of PyTorch: read only when asked for, and never unpickled freely.

A `.bin` is a zip whose records are the plain bytes of tensors, and one pickle that says which. That
pickle is read by PyTorch's restricted unpickler (`weights_only`) onto the device `meta`, which
makes shapes and offsets and reads no weight. From then on a tensor of a `.bin` is a range of bytes
like any other, read by `read_rows`.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from awd_core.checkpoints.header import StoredTensor
from awd_core.dtypes import BY_NAME
from awd_core.errors import CheckpointError
from awd_core.lazy import torch


def read_pickled(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one `.bin` file in the order of its state dict.

    Names that share one tensor (tied weights) have the same offset.

    Raises:
        CheckpointError: Not a state dict of plain tensors, damaged, or in the old format.
    """
    records = _records(file)
    state = _state(file)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise _refused(file, f"an object of type {type(state).__name__}", "a state dict")
    return {name: _stored(file, name, value, records) for name, value in state.items()}


def _records(file: Path) -> dict[int, int]:
    """Where the bytes of every uncompressed record begin, and how many there are."""
    try:
        if not zipfile.is_zipfile(file):
            raise _refused(file, "another format", "a zip, as torch.save writes since PyTorch 1.6")
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            order = [one for one in records if one.filename.endswith("/byteorder")]
            if order and archive.read(order[0]) != b"little":
                raise _refused(file, "big-endian weights", "little-endian weights")
        with file.open("rb") as stream:
            return {_begin(stream, one): one.file_size for one in records if not one.compress_type}
    except OSError as error:
        raise CheckpointError(
            "A weight file cannot be read",
            where=file,
            received=error.strerror or error,
            remedy="Check that the file exists and that you may read it.",
        ) from error
    except Exception as error:  # zipfile raises many kinds
        if isinstance(error, CheckpointError):
            raise
        raise _refused(file, f"a damaged zip ({error})", "a whole file") from error


def _begin(stream: BinaryIO, record: zipfile.ZipInfo) -> int:
    # The directory at the end of a zip does not say how long the local header is.
    stream.seek(record.header_offset + 26)
    name, extra = struct.unpack("<HH", stream.read(4))
    return record.header_offset + 30 + name + extra


def _state(file: Path) -> Any:
    try:
        return torch.load(file, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # every kind means that it is no plain state dict
        first = (str(error).splitlines() or [""])[0][:300]
        received = f"{type(error).__name__}: {first}"
        raise _refused(file, received, "tensors and nothing that runs code") from error


def _stored(file: Path, name: str, value: Any, records: dict[int, int]) -> StoredTensor:
    if not isinstance(value, torch.Tensor):
        raise _refused(file, f"{name!r} of type {type(value).__name__}", "tensors only")
    plain = value.layout == torch.strided and value.is_contiguous()
    dtype = BY_NAME.get(str(value.dtype).removeprefix("torch."))
    if not plain or value.is_neg() or value.is_conj() or dtype is None:
        received = f"tensor {name!r}, {value.dtype}, {value.layout}, strides differ from its shape"
        raise _refused(file, received, "whole, contiguous tensors")
    storage = value.untyped_storage()
    begin = int(storage._checkpoint_offset or 0)
    offset = begin + int(value.storage_offset()) * dtype.itemsize
    tensor = StoredTensor(name, tuple(value.shape), dtype, file, offset)
    if begin not in records or offset + tensor.n_bytes > begin + records[begin]:
        raise _refused(file, f"tensor {name!r} outside of its record", "a record that holds it")
    return tensor


def _refused(file: Path, received: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "This pickled weight file cannot be opened safely",
        where=file,
        received=received,
        expected=expected,
        remedy="Open it with transformers and save it again with `model.save_pretrained(folder)`.",
    )
