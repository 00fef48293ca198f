"""Weights that stand for other weights: refused, because no difference of them means anything."""

import re

from awd_core.checkpoints.checkpoint import Checkpoint

# Tensors that only quantised checkpoints have, and what wrote them.
_SIGNS = (
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (
        re.compile(r"\.(SCB|weight_format|absmax|nested_absmax|quant_map)$|quant_state"),
        "bitsandbytes",
    ),
    (re.compile(r"\.(weight_scale|weight_scale_inv|input_scale|weight_packed)$"), "scaled types"),
    (re.compile(r"proj_(scales|blocks)$"), "block formats"),
)


def quantisation(checkpoint: Checkpoint) -> str | None:
    """What shows that a checkpoint is quantised, in words; None when nothing does."""
    for name in checkpoint.stored:
        for sign, title in _SIGNS:
            if sign.search(name):
                return f"{_method(checkpoint) or title} (tensor {name!r})"
    method = _method(checkpoint)
    for name, one in checkpoint.stored.items():
        if method and not one.is_float and len(one.shape) >= 2 and name.endswith("weight"):
            return f"{method} (tensor {name!r}, {one.dtype})"
    return None


def loads_quantised(checkpoint: Checkpoint) -> str | None:
    """The method that the configuration asks for, where the weights themselves are whole."""
    return None if quantisation(checkpoint) else _method(checkpoint)


def _method(checkpoint: Checkpoint) -> str | None:
    settings = checkpoint.config.get("quantization_config")
    if not isinstance(settings, dict):
        return None
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method", "a quantised format"))
