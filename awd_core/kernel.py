"""`@kernel`: a function that is compiled, and compiled again when anything it is made of changes.

numba keeps machine code beside a function's file and looks whether that file has changed. Our
kernels are made of functions of several files: after an update of one of them, what is kept for the
others would still compute what it did before.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}


def _stamp_of_sources() -> str:
    """SHA-256 of every file with kernels, or with what they are made of."""
    digest = hashlib.sha256()
    for pattern in ("*kernel*.py", "*lanes.py", "random_masks.py"):
        for file in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


STAMP = _stamp_of_sources()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call: no interpreter lock, IEEE arithmetic, kept on disk."""
    return _stamped(numba.njit(**_OPTIONS)(function))


def inlined(function: Callable[..., Any]) -> Any:
    """The same for a function that kernels are made of: its code becomes part of theirs."""
    return _stamped(numba.njit(inline="always", **_OPTIONS)(function))


def _stamped(compiled: Any) -> Any:
    compiled._cache._cache_file._source_stamp = STAMP
    return compiled
