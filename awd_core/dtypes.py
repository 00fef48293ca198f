"""Types of stored numbers: what a header names, and what each is to torch and to the kernels."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from awd_core.lazy import torch


@dataclass(frozen=True)
class Dtype:
    """A type of stored numbers.

    Attributes:
        name: As torch and recipes name it, such as `bfloat16`.
        code: As safetensors names it, such as `BF16`.
        itemsize: Bytes of one number.
        largest: Largest finite number of a type that can be merged; 0 for the others.
    """

    name: str
    code: str
    itemsize: int
    largest: float = 0.0

    @property
    def is_float(self) -> bool:
        """Whether it can be merged."""
        return self.largest > 0

    @property
    def torch(self) -> torch.dtype:
        """The same to torch."""
        return getattr(torch, self.name)

    def __str__(self) -> str:
        return self.name


FLOAT64 = Dtype("float64", "F64", 8, sys.float_info.max)
FLOAT32 = Dtype("float32", "F32", 4, (2 - 2**-23) * 2.0**127)
FLOAT16 = Dtype("float16", "F16", 2, 65504.0)
BFLOAT16 = Dtype("bfloat16", "BF16", 2, (2 - 2**-7) * 2.0**127)

DTYPES = (
    FLOAT64,
    FLOAT32,
    FLOAT16,
    BFLOAT16,
    Dtype("float8_e4m3fn", "F8_E4M3", 1, 448.0),
    Dtype("float8_e5m2", "F8_E5M2", 1, 57344.0),
    Dtype("float8_e4m3fnuz", "F8_E4M3FNUZ", 1, 240.0),
    Dtype("float8_e5m2fnuz", "F8_E5M2FNUZ", 1, 57344.0),
    Dtype("float8_e8m0fnu", "F8_E8M0", 1, 2.0**127),
    Dtype("int64", "I64", 8),
    Dtype("int32", "I32", 4),
    Dtype("int16", "I16", 2),
    Dtype("int8", "I8", 1),
    Dtype("uint8", "U8", 1),
    Dtype("uint16", "U16", 2),
    Dtype("uint32", "U32", 4),
    Dtype("uint64", "U64", 8),
    Dtype("bool", "BOOL", 1),
    Dtype("complex64", "C64", 8),
)
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_CODE = {dtype.code: dtype for dtype in DTYPES}
