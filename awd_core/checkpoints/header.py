"""The header of a safetensors file: which tensors, where, read without touching a weight.

Format: 8 bytes little-endian header length, a JSON object, then the data. The header is data from
outside, so every number in it is checked before it is used.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from awd_core.checkpoints.folder import unique_names
from awd_core.dtypes import BFLOAT16, BY_CODE, FLOAT16, FLOAT32, FLOAT64, Dtype
from awd_core.errors import CheckpointError
from awd_core.lazy import torch

# The limit of the format's own reference reader; a longer claim is damage or an attack.
MAX_HEADER_BYTES = 100_000_000
# torch's own limit; without one a list of a million sizes would be multiplied for minutes.
MAX_DIMENSIONS = 64
# A tensor without elements may have a size of any length; this one still fits in memory.
MAX_EMPTY_SIZE = 1 << 20

# Several elements in a byte: always quantised weights, of which no difference can be taken.
_PACKED = ("F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: name, shape and the bytes it occupies.

    Attributes:
        name: Name in the state dict.
        shape: Shape as stored; `()` for a scalar.
        dtype: Element type as stored.
        file: The safetensors file that holds it.
        offset: Position of the first byte from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    file: Path
    offset: int

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Number of bytes on disk."""
        return self.n_elements * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether it can be merged; integer and boolean buffers are kept from the base."""
        return self.dtype.is_float

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Shape as rows of the output axis: `(shape[0], rest)`; a vector or scalar is one row."""
        if len(self.shape) < 2:
            return 1, self.n_elements
        return self.shape[0], prod(self.shape[1:])


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file, in the order of the data.

    Raises:
        CheckpointError: The file is not a whole, valid safetensors file.
    """
    entries, data_start, file_bytes = _read_json(file)
    tensors = [_entry(file, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    _check_layout(file, tensors, data_start, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def _read_json(file: Path) -> tuple[dict[str, Any], int, int]:
    try:
        file_bytes = file.stat().st_size
        with file.open("rb") as stream:
            length_bytes = stream.read(8)
            if len(length_bytes) < 8:
                raise _broken(file, f"{file_bytes} bytes", "at least 8 bytes of header length")
            (length,) = struct.unpack("<Q", length_bytes)
            if length > min(MAX_HEADER_BYTES, file_bytes - 8):
                received = f"a header of {length:,} bytes in a file of {file_bytes:,} bytes"
                raise _broken(file, received, "a header that ends inside the file")
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(
            "A weight file cannot be read",
            where=file,
            received=error.strerror or error,
            remedy="Check that the file exists and that you may read it.",
        ) from error
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"a header that is not JSON ({error})", "a JSON object") from error
    if not isinstance(header, dict):
        raise _broken(file, f"a header of type {type(header).__name__}", "a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length, file_bytes


def _entry(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        if entry["dtype"] in _PACKED:
            raise _quantised(file, name, entry["dtype"])
        dtype = BY_CODE[entry["dtype"]]
        shape = tuple(_natural(size) for size in entry["shape"][:MAX_DIMENSIONS])
        begin, end = (_natural(offset) for offset in entry["data_offsets"])
        name.encode("utf-8")  # half a surrogate pair is JSON, and no name
        if len(entry["shape"]) > len(shape) or (0 in shape and max(shape) > MAX_EMPTY_SIZE):
            raise ValueError("the shape is no shape")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _broken(
            file,
            f"entry {_shown(entry)} for tensor {name!r}",
            "dtype, shape and data_offsets of a supported type",
        ) from error
    tensor = StoredTensor(name, shape, dtype, file, data_start + begin)
    if tensor.n_bytes != end - begin:
        raise _broken(
            file,
            f"{end - begin:,} bytes for tensor {name!r} of shape {list(shape)}",
            f"{tensor.n_bytes:,} bytes",
        )
    return tensor


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0 or value >= 2**63:
        raise ValueError(f"{value!r} is not a size")
    return value


def _shown(entry: Any) -> str:
    try:
        return repr(str(entry)[:200])
    except RecursionError:
        return "of great depth"


def _check_layout(
    file: Path, tensors: list[StoredTensor], data_start: int, file_bytes: int
) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            problem = "overlaps another" if tensor.offset < end else "leaves a hole before it"
            raise _broken(
                file, f"tensor {tensor.name!r} {problem}", "tensors that follow one another"
            )
        end += tensor.n_bytes
    if end != file_bytes:
        raise CheckpointError(
            "A weight file is truncated or has bytes after its end",
            where=file,
            received=f"{file_bytes:,} bytes",
            expected=f"{end:,} bytes, as its header says",
            remedy="Download or copy the file again.",
        )


def _quantised(file: Path, name: str, dtype: str) -> CheckpointError:
    return CheckpointError(
        "These weights are quantised",
        where=f"{file}, tensor {name!r}",
        received=f"type {dtype}, several elements in a byte",
        expected="floating-point weights",
        remedy="Merge the model that it was quantised from, and quantise the merged one.",
    )


def _broken(file: Path, received: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "This is not a valid safetensors file",
        where=file,
        received=received,
        expected=expected,
        remedy="Download or copy the file again.",
    )


def read_rows(tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """Rows `start:stop` of `tensor.matrix_shape`, as stored: shape (stop - start, columns).

    Raises:
        CheckpointError: The file ended early or could not be read.
    """
    columns = tensor.matrix_shape[1]
    buffer = _row_bytes(tensor, start, stop)
    if not buffer:
        return torch.empty((stop - start, columns), dtype=tensor.dtype.torch)
    return torch.frombuffer(buffer, dtype=tensor.dtype.torch).view(stop - start, columns)


def read_row(tensor: StoredTensor, row: int) -> np.ndarray:
    """One row of `tensor.matrix_shape` in float64, without torch for the usual types.

    Raises:
        CheckpointError: The file ended early or could not be read.
    """
    data = np.frombuffer(_row_bytes(tensor, row, row + 1), np.uint8)
    if tensor.dtype == BFLOAT16:
        # The upper half of a float32.
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if tensor.dtype in (FLOAT64, FLOAT32, FLOAT16):
        return data.view(tensor.dtype.name).astype(np.float64)
    return read_rows(tensor, row, row + 1)[0].to(torch.float64).numpy()


def _row_bytes(tensor: StoredTensor, start: int, stop: int) -> bytearray:
    row_bytes = tensor.matrix_shape[1] * tensor.dtype.itemsize
    buffer = bytearray((stop - start) * row_bytes)
    if buffer:
        read_bytes(tensor, start * row_bytes, memoryview(buffer))
    return buffer


def read_bytes(tensor: StoredTensor, start: int, out: memoryview) -> None:
    """Fill `out` with bytes of a tensor from byte `start` on.

    Read with `pread`, not mapped: memory stays bounded by what was asked for, and a file that
    shrinks meanwhile is an error, not a crash.

    Raises:
        CheckpointError: The file ended early or could not be read.
    """
    done = 0
    with _reading(tensor):
        descriptor = os.open(tensor.file, os.O_RDONLY)
        try:
            while done < len(out):
                count = os.preadv(descriptor, [out[done:]], tensor.offset + start + done)
                if not count:
                    raise OSError("the file ended early")
                done += count
        finally:
            os.close(descriptor)


def samples(
    tensors: Iterable[StoredTensor], block: int = 4096
) -> Iterator[tuple[StoredTensor, list[bytes]]]:
    """First, middle and last `block` bytes of every tensor: what a quick fingerprint looks at.

    Raises:
        CheckpointError: A file could not be read.
    """
    for file, own in groupby(tensors, key=lambda tensor: tensor.file):
        first, *others = own
        with _reading(first):
            stream = file.open("rb", buffering=0)
        with stream:
            for tensor in (first, *others):
                with _reading(tensor):
                    blocks = _sampled(stream.fileno(), tensor, block)
                yield tensor, blocks


def _sampled(descriptor: int, tensor: StoredTensor, block: int) -> list[bytes]:
    size, last = min(block, tensor.n_bytes), tensor.n_bytes - block
    places = (max(0, place) for place in (0, last // 2, last))
    return [os.pread(descriptor, size, tensor.offset + place) for place in places]


@contextmanager
def _reading(tensor: StoredTensor) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            "A weight file cannot be read to the end",
            where=f"{tensor.file}, tensor {tensor.name!r}",
            received=error.strerror or error,
            remedy="Check the disk, then download or copy the file again.",
        ) from error
