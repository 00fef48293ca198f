"""Experts that are PEFT LoRA adapters: tau = s B A for the adapted weights, zero elsewhere."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from awd_core.checkpoints.checkpoint import Checkpoint, ExpertTensor
from awd_core.checkpoints.header import StoredTensor, read_header, read_rows
from awd_core.checkpoints.weights import read_config
from awd_core.errors import CheckpointError, MismatchError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")

# Settings under which s B A is not the whole task vector; each is refused by name.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "bias": "trained biases (bias)",
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


@dataclass(frozen=True)
class ZeroTensor(ExpertTensor):
    """A tensor that the adapter does not touch."""

    def task_vector(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Zero."""
        return torch.zeros_like(base)

    def weights(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """theta_0 itself."""
        return base


@dataclass(frozen=True)
class LoraTensor(ExpertTensor):
    """One adapted weight: the product s B A, (rows, columns), float32."""

    product: torch.Tensor
    dtype: torch.dtype

    def task_vector(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of s B A."""
        return self.product[start:stop].to(base.device)

    def weights(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of theta_0 + s B A rounded to the base's type, as PEFT's own merge gives it."""
        return (base + self.task_vector(start, stop, base)).to(self.dtype).to(torch.float64)


@dataclass(frozen=True)
class LoraCheckpoint(Checkpoint):
    """A plain LoRA adapter.

    Attributes:
        factors: For every adapted weight of the base, its stored (A, B).
        scaling: For every adapted weight, s = alpha / r (alpha / sqrt(r) with rsLoRA).
    """

    factors: Mapping[str, tuple[StoredTensor, StoredTensor]]
    scaling: Mapping[str, float]

    @property
    def kind(self) -> str:
        """`lora`."""
        return "lora"

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight file, and the configuration, which holds the scaling."""
        return (*super().files, self.path / CONFIG)

    @cached_property
    def fingerprint(self) -> str:
        """As of any checkpoint, with the scaling."""
        scaling = json.dumps(sorted(self.scaling.items()))
        return hashlib.sha256(f"{super().fingerprint}|{scaling}".encode()).hexdigest()

    def tensor(self, base: StoredTensor) -> ExpertTensor:
        """s B A for an adapted weight, else zero.

        The product is taken in float32 over the whole tensor, the operation that PEFT's
        `merge_and_unload` does, so that chunking never changes a bit.

        Raises:
            MismatchError: The factors do not have the shape of the base's weight.
        """
        if base.name not in self.factors:
            return ZeroTensor()
        factor_a, factor_b = self.factors[base.name]
        if (factor_b.shape[0], factor_a.shape[1]) != base.shape:
            raise MismatchError(
                "Adapter and base do not match",
                where=f"tensor {base.name!r} of expert {self.label!r}",
                received=f"B {list(factor_b.shape)} times A {list(factor_a.shape)}",
                expected=f"a product of shape {list(base.shape)}, as in the base",
                remedy=f"Use the base that {CONFIG} names: {self.base_name or 'not recorded'}.",
            )
        product = _whole(factor_b) @ _whole(factor_a) * self.scaling[base.name]
        return LoraTensor(product, base.dtype)

    def touches(self, name: str) -> bool:
        """Only the adapted weights differ from the base's."""
        return name in self.factors

    @property
    def base_name(self) -> str | None:
        """Hub id or path of the base that the adapter says it was trained on."""
        return self.config.get("base_model_name_or_path")


def open_lora(path: Path, label: str, source: str) -> LoraCheckpoint:
    """Open a PEFT folder that holds a plain LoRA adapter.

    Raises:
        CheckpointError: Not a LoRA adapter, one of a variant that is not supported, or damaged.
    """
    config = read_config(path / CONFIG, "a PEFT adapter folder")
    _refuse_variants(path, config)
    if not (path / WEIGHTS).exists():
        raise CheckpointError(
            "This adapter folder holds no safetensors weights",
            where=path,
            received=f"no {WEIGHTS}",
            expected=f"{WEIGHTS} beside {CONFIG}",
            remedy="Save the adapter again with `model.save_pretrained(folder)`.",
        )
    stored = read_header(path / WEIGHTS)
    factors = _pair_factors(path, stored)
    scaling = {name: _scaling(config, name, a.shape[0]) for name, (a, _) in factors.items()}
    return LoraCheckpoint(label, source, path, stored, config, factors, scaling)


def _refuse_variants(path: Path, config: Mapping[str, Any]) -> None:
    variant = None
    if config.get("peft_type") != "LORA":
        variant = f"adapters of type {config.get('peft_type')!r}"
    for key, title in _UNSUPPORTED.items():
        if config.get(key) not in (None, False, "none", [], {}):
            variant = title
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        variant = f"factors that began as {start!r}, which changes the base (init_lora_weights),"
    if config.get("fan_in_fan_out"):
        variant = "transposed weights (fan_in_fan_out)"
    if variant:
        raise CheckpointError(
            f"This adapter cannot be opened as an expert: {variant} are not supported",
            where=path / CONFIG,
            expected="a plain LoRA adapter",
            remedy="Merge it into its base with PEFT's `merge_and_unload()` and"
            " `save_pretrained`, then open the resulting folder.",
        )


def _pair_factors(
    path: Path, stored: Mapping[str, StoredTensor]
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    sides: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        match = _FACTOR.match(name)
        if not match or len(tensor.shape) != 2:
            raise CheckpointError(
                "This adapter holds a tensor that is not a LoRA matrix of a linear layer",
                where=path / WEIGHTS,
                received=f"{name!r} of shape {list(tensor.shape)}",
                expected="only base_model.model.….lora_A.weight and lora_B.weight, 2-D",
                remedy="Merge it into its base with PEFT's `merge_and_unload()` first.",
            )
        sides.setdefault(f"{match['module']}.weight", {})[match["side"]] = tensor
    for name, pair in sides.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise CheckpointError(
                "A LoRA pair is incomplete or its ranks differ",
                where=f"{path / WEIGHTS}, {name!r}",
                received=", ".join(f"{side} {list(t.shape)}" for side, t in sorted(pair.items())),
                expected="A of shape (r, in) and B of shape (out, r)",
                remedy="Save the adapter again.",
            )
    return {name: (pair["A"], pair["B"]) for name, pair in sides.items()}


def _scaling(config: Mapping[str, Any], weight: str, rank: int) -> float:
    module = weight.removesuffix(".weight")
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    # PEFT matches a key as a regular expression at the end of the module's path.
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _whole(factor: StoredTensor) -> torch.Tensor:
    return read_rows(factor, 0, factor.shape[0]).to(torch.float32)
