"""A safetensors file of arrays whose shapes are known beforehand, filled piece by piece.

Every piece has its place from the start, so pieces may come in any order and over several runs, and
none of them has to be in memory with the others.
"""

import json
import os
import struct
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_CODES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32"}

# Name -> shape and type.
Shapes = Mapping[str, tuple[tuple[int, ...], type]]


class ArrayFile:
    """The file, open for writing; all zeros at first.

    Args:
        file: Where. One of the same shapes is taken up as it is.
        arrays: Name, shape and type of every array, in the order of the file.
    """

    def __init__(self, file: Path, arrays: Shapes) -> None:
        self.path = file
        header, self._places, end = _plan(arrays)
        if not (file.exists() and file.stat().st_size == end):
            file.write_bytes(header)
            os.truncate(file, end)
        self._descriptor = os.open(file, os.O_RDWR)

    @property
    def names(self) -> Collection[str]:
        """Names of the arrays."""
        return self._places.keys()

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Put values at index `start` of the first axis of an array."""
        offset, row_bytes, dtype = self._places[name]
        data = np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8).data
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], offset + start * row_bytes + done)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)


def _plan(arrays: Shapes) -> tuple[bytes, dict[str, tuple[int, int, np.dtype]], int]:
    """The header, where each array is (offset, bytes of a row, type), and where the file ends."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, (shape, kind) in arrays.items():
        dtype = np.dtype(kind)
        size = prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _CODES[dtype.name],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    header = struct.pack("<Q", len(raw)) + raw
    places = {}
    for name, (shape, kind) in arrays.items():
        dtype = np.dtype(kind)
        start = len(header) + entries[name]["data_offsets"][0]
        places[name] = start, prod(shape[1:]) * dtype.itemsize, dtype
    return header, places, len(header) + offset
