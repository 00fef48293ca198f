"""What `adapter_config.json` says of an adapter: whether s B A is all of it, and s."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awd_core.errors import CheckpointError

# Settings under which s B A is not the whole task vector; each is refused by name.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "bias": "trained biases (bias)",
    "lora_bias": "biases of the factors (lora_bias)",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "LoRA on raw parameters (target_parameters)",
    "megatron_config": "Megatron layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "routed adapters (Arrow)",
}
# Ways to start the factors that leave the base as it is; others (PiSSA, OLoRA, CorDA, ...) subtract
# what the factors start from, so that s B A is not the difference to the base on disk.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")

# Keys of `rank_pattern` and `alpha_pattern` are regular expressions from outside. One step of
# backtracking is enough for all that are in use; nested repetition could run for years.
_ATOM = r"(?:[\w.\-]|\\[.dDwW\-]|\[\^?[\w.\-]+\])"
_TAME = re.compile(rf"(?:\((?:\?:)?|\)\??|[|^$]|{_ATOM}(?:[*+?]|\{{\d{{1,4}}\}})?)*")
_MAX_REPETITIONS, _MAX_PATTERN, _MAX_NAME = 2, 1000, 300


def refuse_variants(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse, by name, every adapter that is more or other than a LoRA product.

    Raises:
        CheckpointError: With the variant and what to do.
    """
    variant = None
    if config.get("peft_type") != "LORA":
        variant = f"adapters of type {config.get('peft_type')!r}"
    for key, title in _UNSUPPORTED.items():
        if config.get(key) not in (None, False, "none", [], {}):
            variant = title
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        variant = f"factors that began as {start!r}, which changes the base (init_lora_weights),"
    if variant:
        raise CheckpointError(
            f"This adapter cannot be opened as an expert: {variant} are not supported",
            where=file,
            expected="a plain LoRA adapter",
            remedy="Merge it into its base with PEFT's `merge_and_unload()` and"
            " `save_pretrained`, then open the resulting folder.",
        )


def scaling(file: Path, config: Mapping[str, Any], weight: str, rank: int) -> float:
    """s = alpha / r of one weight, alpha / sqrt(r) with rsLoRA.

    Args:
        file: The configuration's file, for messages.
        config: Its fields.
        weight: Name of the adapted weight.
        rank: Rows of its A as stored.

    Raises:
        CheckpointError: The configuration has no alpha, or another rank than the factors.
    """
    module = weight.removesuffix(".weight")
    configured = _for_module(file, config, "rank_pattern", module, config.get("r", rank))
    if configured != rank or rank == 0:
        raise _contradiction(file, f"rank {configured!r} for {module!r}", f"{rank}, as stored")
    alpha = _for_module(file, config, "alpha_pattern", module, config.get("lora_alpha"))
    if type(alpha) not in (int, float) or not abs(alpha) < 1e300 or not math.isfinite(alpha):
        raise _contradiction(file, f"lora_alpha {alpha!r} for {module!r}", "a number")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _for_module(
    file: Path, config: Mapping[str, Any], field: str, module: str, default: Any
) -> Any:
    """The value of the first key that PEFT would match: as a whole, at the end of the path."""
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
        raise _contradiction(file, f"{field} of type {type(patterns).__name__}", "a JSON object")
    for key, value in patterns.items():
        if _matches(file, field, key, module):
            return value
    return default


def _matches(file: Path, field: str, key: str, module: str) -> bool:
    repetitions = len(re.findall(r"(?<!\\)[*+]", key))
    tame = len(key) <= _MAX_PATTERN and len(module) <= _MAX_NAME
    if not tame or repetitions > _MAX_REPETITIONS or not _TAME.fullmatch(key):
        raise _contradiction(
            file, f"{field} with {key[:100]!r}", "the name of a module, with at most two wildcards"
        )
    try:
        return re.match(rf"(.*\.)?({key})$", module) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise _contradiction(file, f"{field} with {key[:100]!r}: {error}", "a pattern") from error


def _contradiction(file: Path, received: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "The configuration of this adapter makes no sense with its factors",
        where=file,
        received=received,
        expected=expected,
        remedy="Merge the adapter into its base with PEFT's `merge_and_unload()` first, or copy"
        f" {file.name} again from where the adapter came from.",
    )
