"""Where the arithmetic runs, found out without loading torch where there can be no GPU."""

import ctypes
import importlib.util
import runpy
import sys
from functools import cache
from pathlib import Path

from awd_core.errors import RecipeError
from awd_core.lazy import torch


def resolve_device(device: str) -> str:
    """`auto` is the GPU when there is one, else the CPU.

    Raises:
        RecipeError: The device asked for is not there.
    """
    if device == "auto":
        return "cuda" if has_gpu() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise RecipeError(
            "Unknown device", where="device", received=device, expected="auto, cpu, cuda"
        )
    if device != "cpu" and not has_gpu():
        raise RecipeError(
            "There is no GPU to use",
            where="device",
            received=device,
            expected="a CUDA device and a CUDA build of PyTorch",
            remedy="Use --device auto or cpu.",
        )
    return device


@cache
def has_gpu() -> bool:
    """Whether torch can compute on a GPU; it is asked only where its build and a driver could."""
    return _may_have_gpu() and torch.cuda.is_available()


def gpu_name() -> str | None:
    """What the GPU calls itself; None where there is none."""
    return torch.cuda.get_device_name() if has_gpu() else None


def _may_have_gpu() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    # What the build was made for: `cuda` and `hip` are None in a build for processors alone.
    build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    if build.get("hip"):
        return True
    return bool(build.get("cuda")) and (sys.platform != "linux" or _has_driver())


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
