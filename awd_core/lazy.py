"""torch, loaded when something of it is used first.

Loading it takes two seconds of processor time. What reads headers alone, and weighted sums of what
is stored, never needs it: they are done before it would be there.
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Waiting threads sleep instead of spinning: on a machine that does anything else, or under an app
# that evaluates while it redraws, spinning at barriers made a merge 15 times slower. Set before
# torch loads its thread pool; a value of the user's own stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _WhenUsed:
    """A module that is imported at the first look at one of its names, in any thread."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(_imported(self._name), name)
        setattr(self, name, value)
        return value


def _imported(name: str) -> ModuleType:
    if name in sys.modules:
        return importlib.import_module(name)  # waits where another thread is importing it
    with importing():
        return importlib.import_module(name)


@contextmanager
def importing() -> Iterator[None]:
    """Looks for no garbage meanwhile. What importing makes stays for good.

    Looking for garbage in what torch makes, when it is imported, after every few steps and once
    more at the end, takes longer than a second.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


if TYPE_CHECKING:
    import torch as torch
else:
    torch = _WhenUsed("torch")
