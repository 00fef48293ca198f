"""Compiled functions: how kernels are compiled, how long they are kept, numba made ready for them.

numba keeps machine code beside a function's file and looks whether that file has changed. Our
kernels are made of functions of several files: after an update of one of them, what is kept for the
others would still compute what it did before.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.registry import cpu_target

from awd_core.lazy import importing

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
# Files with kernels, and with what they are made of.
_SOURCES = ("compiled.py", "*kernels.py", "*lanes.py", "random_masks.py")


def _stamp_of_sources() -> str:
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for file in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


_STAMP = _stamp_of_sources()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call: no interpreter lock, IEEE arithmetic, kept on disk."""
    return _stamped(numba.njit(**_OPTIONS)(function))


def inlined(function: Callable[..., Any]) -> Any:
    """The same for a function that kernels are made of: its code becomes part of theirs."""
    return _stamped(numba.njit(inline="always", **_OPTIONS)(function))


def _stamped(dispatcher: Any) -> Any:
    dispatcher._cache._cache_file._source_stamp = _STAMP
    return dispatcher


def make_ready() -> None:
    """Load what numba needs before the first kernel can run: 0.2 seconds here instead of 0.35.

    numba looks for BLAS meanwhile, and imports the whole of scipy.linalg for it. No kernel
    multiplies matrices, so it is told that there is none. Functions that others compile could then
    not either: this is for the command line, not for a program that imports us.
    """
    if "scipy.linalg" in sys.modules:
        return
    sys.modules["scipy.linalg"] = None  # pyright: ignore[reportArgumentType]
    try:
        with importing():
            contexts: Any = cpu_target.target_context, cpu_target.typing_context
            for context in contexts:
                context.refresh()
    finally:
        del sys.modules["scipy.linalg"]
