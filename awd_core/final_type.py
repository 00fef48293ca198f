"""Merged weights in the type they are written in, or a refusal: no NaN, no infinity is written."""

import torch

from awd_core.checkpoints import StoredTensor
from awd_core.errors import OutputError, not_finite
from awd_core.plan import Plan


def in_final_type(plan: Plan, tensor: StoredTensor, block: torch.Tensor) -> torch.Tensor:
    """A block of the result in its final type.

    Raises:
        OutputError: A weight is not finite, or too large for the type.
    """
    final = block.to(plan.out_dtype(tensor))
    if tensor.is_float and not torch.isfinite(final.to(torch.float64).sum()):
        refuse_not_finite(plan, tensor, block, final)
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
