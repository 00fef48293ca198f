"""Experts that are PEFT LoRA adapters: tau = s B A for the adapted weights, zero elsewhere.

A task vector stays a pair of factors; only the rows at hand are multiplied out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from awd_core.checkpoints.checkpoint import Checkpoint, ExpertTensor
from awd_core.checkpoints.folder import inside, read_json
from awd_core.checkpoints.header import StoredTensor, read_header, read_rows
from awd_core.checkpoints.lora_config import refuse_variants, scaling
from awd_core.checkpoints.pickled import read_pickled
from awd_core.checkpoints.weights import WeightTensor
from awd_core.errors import CheckpointError, MismatchError
from awd_core.lazy import torch
from awd_core.linear_algebra import LowRank

CONFIG = "adapter_config.json"
WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")

# Elements of a product that are multiplied out in one go. Always the same rows together, whatever
# rows were asked for: the last bit of a product can depend on how many rows it has.
_BLOCK_ELEMENTS = 1 << 15


@dataclass(frozen=True)
class Factors:
    """The factors of one adapted weight, as stored.

    Attributes:
        a: A, (r, in).
        b: B, (out, r).
        scaling: s = alpha / r (alpha / sqrt(r) with rsLoRA).
        transposed: Whether tau = s (B A)^T, where its shape does not tell: for embeddings, and
            for linear layers with `fan_in_fan_out`.
    """

    a: StoredTensor
    b: StoredTensor
    scaling: float
    transposed: bool

    def is_transposed(self, shape: tuple[int, ...]) -> bool | None:
        """Whether tau of this shape is s (B A)^T; None when the factors do not fit it.

        `fan_in_fan_out` holds for a whole adapter, also where only some layers are transposed; as
        in PEFT, the layer itself decides, which shows in the shape unless it is square.
        """
        plain = (self.b.shape[0], self.a.shape[1])
        if plain == shape and plain[::-1] == shape:
            return self.transposed
        return True if plain[::-1] == shape else False if plain == shape else None


@dataclass(frozen=True)
class ZeroTensor(ExpertTensor):
    """A tensor that the adapter does not touch."""

    def task_vector(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Zero."""
        return torch.zeros_like(base)

    def weights(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """theta_0 itself."""
        return base


def product_rows(left: torch.Tensor, right: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows `start:stop` of left right, in blocks whose place does not depend on which are wanted.

    A product of other rows at once may differ in its last bits.
    """
    step = max(1, _BLOCK_ELEMENTS // max(1, right.shape[1]))
    first = start // step * step
    blocks = [left[at : at + step] @ right for at in range(first, stop, step)]
    if len(blocks) == 1:
        return blocks[0][start - first : stop - first]
    return torch.cat([left.new_zeros(0, right.shape[1]), *blocks])[start - first : stop - first]


@dataclass(frozen=True)
class LoraTensor(ExpertTensor):
    """One adapted weight.

    Attributes:
        left: s B, (rows, r), float64; s A^T when transposed.
        right: A, (r, columns), float64; B^T when transposed.
        factors: Where they are stored.
        base: The adapted tensor.
    """

    left: torch.Tensor
    right: torch.Tensor
    factors: Factors
    base: StoredTensor

    def task_vector(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of s B A, in float64."""
        return product_rows(self.left.to(base.device), self.right.to(base.device), start, stop)

    def weights(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of theta_0 + s B A in the base's type, bit for bit as PEFT's own merge gives it."""
        merged = base + self._product_of_peft[start:stop].to(base.device)
        return merged.to(self.base.dtype.torch).to(torch.float64)

    def low_rank(self) -> LowRank:
        """s B and A."""
        return LowRank(self.left, self.right)

    @cached_property
    def _product_of_peft(self) -> torch.Tensor:
        """s B A as `merge_and_unload` takes it: float32, over the whole tensor."""
        product = _whole(self.factors.b) @ _whole(self.factors.a)
        if self.factors.is_transposed(self.base.shape):
            product = product.T
        return product * self.factors.scaling


@dataclass(frozen=True)
class AdaptedWeightTensor(ExpertTensor):
    """A weight that the adapter holds whole, with factors on top of it."""

    whole: WeightTensor
    adapted: LoraTensor

    def task_vector(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of theta + s B A - theta_0."""
        change = self.whole.task_vector(start, stop, base)
        return change + self.adapted.task_vector(start, stop, base)

    def weights(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of theta + s B A."""
        return self.adapted.weights(start, stop, self.whole.weights(start, stop, base))


@dataclass(frozen=True)
class LoraCheckpoint(Checkpoint):
    """A plain LoRA adapter.

    Attributes:
        factors: The factors of every adapted weight of the base.
        replaced: Tensors that the adapter holds whole (`modules_to_save`), instead of the base's.
    """

    factors: Mapping[str, Factors]
    replaced: Mapping[str, StoredTensor]

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
        """As of any checkpoint, with what the configuration makes of the factors."""
        settings = sorted((name, f.scaling, f.transposed) for name, f in self.factors.items())
        whole = f"{super().fingerprint}|{json.dumps(settings)}"
        return hashlib.sha256(whole.encode()).hexdigest()

    def tensor(self, base: StoredTensor) -> ExpertTensor:
        """s B A for an adapted weight, the stored tensor for a replaced one, else zero.

        Raises:
            MismatchError: What is stored does not have the shape of the base's weight.
        """
        stored, factors = self.replaced.get(base.name), self.factors.get(base.name)
        if stored is not None and stored.shape != base.shape:
            raise self._mismatch(base, f"shape {list(stored.shape)}", "shape")
        if factors is None:
            return ZeroTensor() if stored is None else WeightTensor(stored)
        transposed = factors.is_transposed(base.shape)
        if transposed is None:
            received = f"B {list(factors.b.shape)} times A {list(factors.a.shape)}"
            raise self._mismatch(base, received, "a product of shape")
        a, b = (read_rows(one, 0, one.shape[0]).to(torch.float64) for one in (factors.a, factors.b))
        left, right = (a.T, b.T) if transposed else (b, a)
        adapted = LoraTensor(left * factors.scaling, right, factors, base)
        return adapted if stored is None else AdaptedWeightTensor(WeightTensor(stored), adapted)

    def _mismatch(self, base: StoredTensor, received: str, what: str) -> MismatchError:
        return MismatchError(
            "Adapter and base do not match",
            where=f"tensor {base.name!r} of expert {self.label!r}",
            received=received,
            expected=f"{what} {list(base.shape)}, as in the base",
            remedy=f"Use the base that {CONFIG} names: {self.base_name or 'not recorded'}.",
        )

    def touches(self, name: str) -> bool:
        """Only adapted and replaced weights differ from the base's."""
        return name in self.factors or name in self.replaced

    @property
    def base_name(self) -> str | None:
        """Hub id or path of the base that the adapter says it was trained on."""
        return self.config.get("base_model_name_or_path")


def open_lora(path: Path, label: str, source: str, *, allow_pickle: bool = False) -> LoraCheckpoint:
    """Open a PEFT folder that holds a plain LoRA adapter.

    Raises:
        CheckpointError: Not a LoRA adapter, one of a variant that is not supported, or damaged.
    """
    config = read_json(path / CONFIG, "a PEFT adapter folder")
    refuse_variants(path / CONFIG, config)
    stored = _stored(path, allow_pickle)
    factors, replaced = _sorted_out(path, config, stored)
    return LoraCheckpoint(label, source, path, stored, config, factors, replaced)


def _stored(path: Path, allow_pickle: bool) -> dict[str, StoredTensor]:
    if (path / WEIGHTS).exists():
        return read_header(inside(path, WEIGHTS))
    pickled = (path / PICKLED_WEIGHTS).exists()
    if pickled and allow_pickle:
        return read_pickled(inside(path, PICKLED_WEIGHTS))
    raise CheckpointError(
        "This adapter folder holds no safetensors weights",
        where=path,
        received=f"pickled ones, {PICKLED_WEIGHTS}" if pickled else f"no {WEIGHTS}",
        expected=f"{WEIGHTS} beside {CONFIG}",
        remedy="Save the adapter again with `model.save_pretrained(folder)`"
        + (", or allow it with --allow-pickle (allow_pickle=True)." if pickled else "."),
    )


def _sorted_out(
    path: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, Factors], dict[str, StoredTensor]]:
    """The adapted weights and the whole tensors of an adapter file."""
    sides: dict[str, dict[str, StoredTensor]] = {}
    embeddings: set[str] = set()
    replaced: dict[str, StoredTensor] = {}
    saves_whole = bool(config.get("modules_to_save"))
    for name, tensor in stored.items():
        own = name.removeprefix(_PREFIX)
        match = _FACTOR.match(own)
        if own != name and match and len(tensor.shape) == 2:
            weight = f"{match['module']}.weight"
            sides.setdefault(weight, {})[match["side"]] = tensor
            embeddings |= {weight} if match["embedding"] else set()
        elif own != name and ".base_layer." in own and ".lora_" not in own:
            # A layer saved whole beside its factors, as PEFT does with embeddings.
            replaced[own.replace(".base_layer.", ".")] = tensor
        elif own != name and saves_whole and ".lora_" not in own:
            replaced[own] = tensor
        else:
            raise CheckpointError(
                "This adapter holds a tensor that is not a LoRA matrix of a linear layer",
                where=path,
                received=f"{name!r} of shape {list(tensor.shape)}",
                expected="only base_model.model.….lora_A.weight and lora_B.weight, 2-D,"
                " and the modules named by modules_to_save",
                remedy="Merge it into its base with PEFT's `merge_and_unload()` first.",
            )
    factors = {
        name: _paired(path, config, name, pair, name in embeddings) for name, pair in sides.items()
    }
    return factors, replaced


def _paired(
    path: Path,
    config: Mapping[str, Any],
    name: str,
    pair: Mapping[str, StoredTensor],
    embedding: bool,
) -> Factors:
    if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        raise CheckpointError(
            "A LoRA pair is incomplete or its ranks differ",
            where=f"{path}, {name!r}",
            received=", ".join(f"{side} {list(t.shape)}" for side, t in sorted(pair.items())),
            expected="A of shape (r, in) and B of shape (out, r)",
            remedy="Save the adapter again.",
        )
    a, b = pair["A"], pair["B"]
    s = scaling(path / CONFIG, config, name, rank=a.shape[0])
    return Factors(a, b, s, transposed=embedding or bool(config.get("fan_in_fan_out")))


def _whole(factor: StoredTensor) -> torch.Tensor:
    return read_rows(factor, 0, factor.shape[0]).to(torch.float32)
