"""Merged weights in the type they are written in, or a refusal: no NaN, no infinity is written."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from awd_core import dtypes, kernels
from awd_core.checkpoints import StoredTensor
from awd_core.errors import OutputError, not_finite
from awd_core.lanes import whole_groups
from awd_core.lazy import torch
from awd_core.plan import Plan
from awd_core.stream import CODES, Packed, Span, read_as_stored
from awd_core.vectors import Update


def in_final_type(plan: Plan, tensor: StoredTensor, block: torch.Tensor) -> np.ndarray:
    """The bytes of a block of the result in its final type.

    Raises:
        OutputError: A weight is not finite, or too large for the type.
    """
    final = block.flatten().to(plan.out_dtype(tensor).torch).cpu()
    if tensor.is_float and not torch.isfinite(final.to(torch.float64).sum()):
        refuse_not_finite(plan, tensor, block.flatten().cpu(), final)
    return as_bytes(final)


def copied(plan: Plan, tensor: StoredTensor, span: Span) -> np.ndarray:
    """The bytes of a span of the base in their final type.

    Raises:
        OutputError: A weight is not finite, or too large for the type.
    """
    stored = read_as_stored(tensor, span)
    if not tensor.is_float:
        return stored
    if plan.out_dtype(tensor) == tensor.dtype and _all_finite(stored, tensor.dtype):
        return stored
    return in_final_type(plan, tensor, numbers(stored, tensor.dtype))


# Whole numbers of the same size, and the exponent, of which all bits are 1 in what is not finite.
_EXPONENTS = {
    dtypes.FLOAT64: np.uint64(0x7FF0 << 48),
    dtypes.FLOAT32: np.uint32(0x7F80 << 16),
    dtypes.BFLOAT16: np.uint16(0x7F80),
    dtypes.FLOAT16: np.uint16(0x7C00),
}


def _all_finite(stored: np.ndarray, dtype: dtypes.Dtype) -> bool:
    exponent = _EXPONENTS.get(dtype)
    return exponent is not None and not (stored.view(exponent.dtype) & exponent == exponent).any()


def added_to_base(plan: Plan, tensor: StoredTensor, stored: Packed, update: Update) -> np.ndarray:
    """The bytes of `theta_0 + update` of some elements in their final type.

    Where nothing is added the base keeps its bits: -0.0 + 0.0 would be 0.0.

    Args:
        plan: The merge.
        tensor: The tensor that they belong to.
        stored: theta_0, and whatever else is stored there.
        update: What is added, float64.

    Raises:
        OutputError: A weight is not finite, or too large for the type.
    """
    dtype = plan.out_dtype(tensor)
    if not isinstance(stored.data, np.ndarray) or dtype not in CODES:
        base, added = stored.base(), torch.as_tensor(update).reshape(-1)
        return in_final_type(plan, tensor, torch.where(added == 0, base, base + added))
    flat = np.asarray(update).reshape(-1)
    out = np.empty(whole_groups(len(flat)) * dtype.itemsize, dtype=np.uint8)
    where = stored.data, stored.offsets[0], stored.codes[0]
    finite = kernels.add_to_base(*where, flat, dtype.largest, CODES[dtype], out)
    final = out[: len(flat) * dtype.itemsize]
    if not finite:
        refuse_not_finite(
            plan, tensor, stored.base() + torch.from_numpy(flat), numbers(final, dtype)
        )
    return final


def joined(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """The bytes of a whole tensor; of none, where it has no elements."""
    return np.concatenate([np.empty(0, np.uint8), *pieces])


def numbers(data: np.ndarray, dtype: dtypes.Dtype) -> torch.Tensor:
    """Bytes as numbers of a type, flat."""
    if not data.size:
        return torch.empty(0, dtype=dtype.torch)  # torch does not view nothing as another type
    return torch.from_numpy(data).view(dtype.torch)


def as_bytes(flat: torch.Tensor) -> np.ndarray:
    """Numbers as their bytes."""
    return flat.contiguous().view(torch.uint8).numpy()


def refuse_not_finite(
    plan: Plan, tensor: StoredTensor, block: torch.Tensor, final: torch.Tensor
) -> None:
    """Say what is not finite.

    Raises:
        OutputError: A weight is too large for the type.
        AwdError: A weight of the base or an expert is not finite.
    """
    finite = torch.isfinite(block.to(torch.float64))
    dtype = plan.out_dtype(tensor)
    if (finite & ~torch.isfinite(final.to(torch.float64))).any():
        wider = "bfloat16 or float32" if dtype == dtypes.FLOAT16 else "float32"
        may_be_wider = dtype not in (dtypes.FLOAT32, dtypes.FLOAT64)
        change = f"Set `dtype: {wider}` in the recipe, or take" if may_be_wider else "Take"
        raise OutputError(
            f"A merged weight is too large for {dtype}",
            where=f"tensor {tensor.name!r}",
            received=f"{float(block[finite].to(torch.float64).abs().max()):g}",
            expected=f"at most {dtype.largest:g}",
            remedy=f"{change} a smaller coefficient.",
        )
    if tensor.name not in plan.excluded and not finite.all():
        sole = None if plan.sole_expert is None else plan.experts[plan.sole_expert]
        alone = sole is not None and sole.touches(tensor.name)
        raise not_finite(tensor.name, f"expert {sole.label!r}" if alone and sole else "the base")
