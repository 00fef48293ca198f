"""Merged weights in the type they are written in, or a refusal: no NaN, no infinity is written."""

import numpy as np
import torch

from awd_core import kernels
from awd_core.checkpoints import StoredTensor
from awd_core.errors import OutputError, not_finite
from awd_core.lanes import whole_groups
from awd_core.plan import Plan
from awd_core.stream import CODES, Packed


def in_final_type(plan: Plan, tensor: StoredTensor, block: torch.Tensor) -> torch.Tensor:
    """A block of the result in its final type.

    Raises:
        OutputError: A weight is not finite, or too large for the type.
    """
    final = block.to(plan.out_dtype(tensor))
    if tensor.is_float and not torch.isfinite(final.to(torch.float64).sum()):
        refuse_not_finite(plan, tensor, block, final)
    return final


def added_to_base(
    plan: Plan, tensor: StoredTensor, stored: Packed, update: torch.Tensor
) -> torch.Tensor:
    """`theta_0 + update` of some elements in their final type, flat, on the CPU.

    Where nothing is added the base keeps its bits: -0.0 + 0.0 would be 0.0.

    Args:
        plan: The merge.
        tensor: The tensor that they belong to.
        stored: theta_0, and whatever else is stored there.
        update: What is added, float64.

    Raises:
        OutputError: A weight is not finite, or too large for the type.
    """
    dtype, flat = plan.out_dtype(tensor), update.reshape(-1)
    if stored.data.device.type != "cpu" or dtype not in CODES:
        base = stored.base()
        return in_final_type(plan, tensor, torch.where(flat == 0, base, base + flat)).cpu()
    out = np.empty(whole_groups(len(flat)) * dtype.itemsize, dtype=np.uint8)
    where = stored.data.numpy(), stored.offsets[0], stored.codes[0]
    largest = float(torch.finfo(dtype).max)
    finite = kernels.add_to_base(*where, flat.numpy(), largest, CODES[dtype], out)
    final = torch.from_numpy(out).view(dtype)[: len(flat)]
    if not finite:
        refuse_not_finite(plan, tensor, stored.base() + flat, final)
    return final


def refuse_not_finite(
    plan: Plan, tensor: StoredTensor, block: torch.Tensor, final: torch.Tensor
) -> None:
    """Say what is not finite.

    Raises:
        OutputError: A weight is too large for the type.
        AwdError: A weight of the base or an expert is not finite.
    """
    finite = torch.isfinite(block.to(torch.float64))
    dtype = str(final.dtype).removeprefix("torch.")
    if (finite & ~torch.isfinite(final.to(torch.float64))).any():
        wider = "bfloat16 or float32" if final.dtype == torch.float16 else "float32"
        raise OutputError(
            f"A merged weight is too large for {dtype}",
            where=f"tensor {tensor.name!r}",
            received=f"{float(block[finite].to(torch.float64).abs().max()):g}",
            expected=f"at most {torch.finfo(final.dtype).max:g}",
            remedy=f"Set `dtype: {wider}` in the recipe, or take a smaller coefficient.",
        )
    if tensor.name not in plan.excluded and not finite.all():
        sole = None if plan.sole_expert is None else plan.experts[plan.sole_expert]
        alone = sole is not None and sole.touches(tensor.name)
        raise not_finite(tensor.name, f"expert {sole.label!r}" if alone and sole else "the base")
