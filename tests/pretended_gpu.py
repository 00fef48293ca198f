"""A GPU for machines without one: tensors that may not meet those of the CPU, computed on it.

What is put on device `cuda` becomes a `Remote` tensor. As on a real GPU, operations on both kinds
of tensors are refused, NumPy cannot read it, and what comes of it stays there until `.cpu()`. That
shows whether code for a GPU runs and what it computes; how a GPU rounds, and its streams, do not
show here.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from awd_core import devices, lazy

CUDA = torch.device("cuda", 0)
# What it pretends to hold.
_BYTES = 1 << 30
_MAKERS = (
    "arange",
    "as_tensor",
    "asarray",
    "empty",
    "eye",
    "full",
    "linspace",
    "ones",
    "tensor",
    "zeros",
)
# One tensor may be on each side.
_COPIES = (torch.Tensor.copy_, torch.Tensor.__setitem__, torch.Tensor.__getitem__)
_FOR_NUMPY = (torch.Tensor.numpy, torch.Tensor.__array__)


class Remote(torch.Tensor):
    """A tensor on the pretended GPU."""

    device = property(lambda self: CUDA)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda self: True)  # pyright: ignore[reportAssignmentType]

    def record_stream(self, s: Any) -> None:
        """Nothing runs ahead."""
        assert isinstance(s, _Stream)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cpu:
            return _local(args[0]).clone()
        if func in _FOR_NUMPY:
            raise TypeError("a tensor on the GPU cannot become an array: call .cpu() first")
        if func is torch.Tensor.to:
            return _moved(*args, **kwargs)
        device = kwargs.pop("device", None)
        if func not in _COPIES:
            _require_one_place([args, kwargs], func)
        result = super().__torch_function__(func, types, args, kwargs)
        return result if device is None or _is_gpu(device) else _local(result)


def _is_gpu(device: Any) -> bool:
    return torch.device(device).type == "cuda"


def _local(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def _remote(tensor: torch.Tensor) -> torch.Tensor:
    # Another memory, as on a GPU.
    return _local(tensor).clone().as_subclass(Remote)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _require_one_place(arguments: Any, func: Callable[..., Any]) -> None:
    for tensor in _tensors(arguments):
        # A number, a tensor without axes, may come from the CPU.
        if not isinstance(tensor, Remote) and tensor.dim():
            raise RuntimeError(f"{func.__name__}: tensors of the CPU and of the GPU")


def _moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to`, whose arguments may name a device, a type, both, or another tensor."""
    places, rest = [], []
    for value in (*args, kwargs.pop("device", None), kwargs.pop("other", None)):
        if isinstance(value, torch.Tensor):
            places.append(isinstance(value, Remote))
            rest.append(value.dtype)
        elif isinstance(value, str | torch.device):
            places.append(_is_gpu(value))
        elif value is not None:
            rest.append(value)
    here = isinstance(tensor, Remote)
    there = places[0] if places else here
    found = PLAIN_TO(_local(tensor), *rest, **kwargs) if rest else _local(tensor)
    if there == here:
        return found.as_subclass(type(tensor)) if rest else tensor
    return _remote(found) if there else found.clone()


PLAIN_TO = torch.Tensor.to


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    arguments = *args, *kwargs.values()
    if any(isinstance(one, Remote) or _names_gpu(one) for one in (tensor, *arguments)):
        return _moved(tensor, *args, **kwargs)
    return PLAIN_TO(tensor, *args, **kwargs)


def _names_gpu(value: Any) -> bool:
    return isinstance(value, str | torch.device) and _is_gpu(value)


def _making(plain: Callable[..., Any]) -> Callable[..., Any]:
    def make(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Any:
        if _names_gpu(device):
            return _remote(plain(*args, **kwargs))
        return plain(*args, **kwargs, **({} if device is None else {"device": device}))

    return make


class _Stream:
    def __init__(self, device: Any = None) -> None:
        assert device is None or _is_gpu(device)

    def synchronize(self) -> None:
        """Nothing runs ahead."""


def install(patch: pytest.MonkeyPatch) -> None:
    """Let device `cuda` be the pretended GPU, in every thread."""
    for name in _MAKERS:
        # In torch itself others would keep them for longer, such as `torch.device` as a context.
        patch.setattr(lazy.torch, name, _making(getattr(torch, name)))
    patch.setattr(torch.Tensor, "to", _to)
    patch.setattr(devices, "has_gpu", lambda: True)
    patch.setattr(torch.cuda, "mem_get_info", lambda device: (_BYTES, _BYTES))
    patch.setattr(torch.cuda, "get_device_name", lambda: "pretended")
    patch.setattr(torch.cuda, "Stream", _Stream)
    patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    patch.setattr(torch.cuda, "default_stream", _Stream)
