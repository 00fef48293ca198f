"""Checkpoints that hold whole weights: a Hugging Face folder, or a single weight file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from awd_core.checkpoints.checkpoint import Checkpoint, ExpertTensor
from awd_core.checkpoints.folder import inside, listed, read_json
from awd_core.checkpoints.header import StoredTensor, read_header, read_rows
from awd_core.checkpoints.pickled import read_pickled
from awd_core.checkpoints.vocabulary import (
    CommonRows,
    same_but_for_rows,
    tied_embedding,
    tied_heads,
)
from awd_core.errors import CheckpointError, MismatchError
from awd_core.lazy import torch

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED_INDEX, PICKLED = "pytorch_model.bin.index.json", "pytorch_model.bin"
SAFE_SUFFIX = ".safetensors"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth")
_SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})\.")


@dataclass(frozen=True)
class WeightTensor(ExpertTensor):
    """One stored tensor; tau is a difference of float64 values."""

    stored: StoredTensor

    def task_vector(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of theta - theta_0."""
        return self.weights(start, stop, base) - base

    def weights(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of theta as stored, in float64."""
        rows = read_rows(self.stored, start, stop)
        return rows.to(base.device, non_blocking=True).to(torch.float64)


@dataclass(frozen=True)
class WeightCheckpoint(Checkpoint):
    """A checkpoint with one stored tensor for every tensor of the model.

    Attributes:
        shared: Names that are tied to a tensor stored under another name, which a `.bin` lists
            and safetensors leaves out; and heads that are stored beside the embedding that the
            configuration ties them to. They are read, merged and written once.
    """

    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`weights`."""
        return "weights"

    def tensor(self, base: StoredTensor) -> ExpertTensor:
        """The stored tensor of the same name, or the embedding that a head is tied to.

        Raises:
            MismatchError: It is absent, or of another shape.
        """
        stored = self.counterpart(base.name)
        if stored is not None and stored.shape == base.shape:
            return WeightTensor(stored)
        shares_rows = stored and same_but_for_rows(base.name, stored.shape, base.shape)
        if stored is not None and shares_rows and self.common_rows:
            return CommonRows(stored)
        raise MismatchError(
            "Base and expert do not match",
            where=f"tensor {base.name!r} of expert {self.label!r}",
            received="no such tensor" if stored is None else f"shape {list(stored.shape)}",
            expected=f"shape {list(base.shape)}, as in the base",
            remedy="Merge experts of the same base, or list the tensor under `exclude`.",
        )

    def counterpart(self, name: str) -> StoredTensor | None:
        """What is stored for a tensor, under its own name or one that it is tied to."""
        own = self.stored.get(self.shared.get(name, name))
        return own or tied_embedding(name, self.stored, self.config)

    def touches(self, name: str) -> bool:
        """Every tensor may differ from the base's."""
        return True


def open_weights(
    path: Path, label: str, source: str, *, allow_pickle: bool = False
) -> WeightCheckpoint:
    """Open a folder with `config.json` and weights: one file, or shards with or without an index.

    Raises:
        CheckpointError: No configuration, no weights, or weights that are not whole.
    """
    config = read_json(path / "config.json", "a Hugging Face model folder")
    stored, shared = _without_shared(stored_tensors(path, allow_pickle=allow_pickle))
    tied = {name: embedding.name for name, embedding in tied_heads(stored, config).items()}
    stored = {name: tensor for name, tensor in stored.items() if name not in tied}
    return WeightCheckpoint(label, source, path, stored, config, shared | tied)


def stored_tensors(path: Path, *, allow_pickle: bool = False) -> dict[str, StoredTensor]:
    """Every tensor in the weight files of a folder, under every name it has.

    Raises:
        CheckpointError: No weights, or weights that are not whole.
    """
    index, files = _weight_files(path, allow_pickle)
    stored = _read_all(path, files)
    if index is not None:
        _check_index(index, _weight_map(index), stored)
    return stored


def open_weight_file(
    file: Path, label: str, source: str, *, allow_pickle: bool = False
) -> WeightCheckpoint:
    """Open one weight file by itself: its tensors and nothing beside it, so no configuration.

    Raises:
        CheckpointError: Not a weight file, or a pickled one without leave.
    """
    if file.suffix in PICKLED_SUFFIXES and not allow_pickle:
        raise pickle_refused(file, file.name)
    if file.suffix not in (SAFE_SUFFIX, *PICKLED_SUFFIXES):
        raise CheckpointError(
            "This is not a file of weights that can be merged",
            where=file,
            received=f"a file of type {file.suffix or 'unknown'}",
            expected="a .safetensors file, or the folder of a model or adapter",
            remedy="Point at the model's folder, or save it again with `save_pretrained`.",
        )
    inside(file.parent, file.name)
    stored, shared = _without_shared(_read(file))
    if adapted := [name for name in stored if ".lora_" in name]:
        raise CheckpointError(
            "This file holds the factors of a LoRA adapter, whose scaling stands beside it",
            where=file,
            received=adapted[0],
            expected="the folder with adapter_config.json",
            remedy=f"Point at the folder {file.parent}.",
        )
    return WeightCheckpoint(label, source, file, stored, {}, shared)


def _weight_files(path: Path, allow_pickle: bool) -> tuple[Path | None, tuple[Path, ...]]:
    """The index, if there is one, and the weight files of a folder."""
    for index, single, suffix in (
        (INDEX, SINGLE, SAFE_SUFFIX),
        (PICKLED_INDEX, PICKLED, PICKLED_SUFFIXES[0]),
    ):
        shards = listed(path, suffix)
        pickled = suffix != SAFE_SUFFIX
        if not shards and not (path / index).exists():
            continue
        if pickled and not allow_pickle:
            raise pickle_refused(path, ", ".join(shards[:3]) or index)
        if (path / index).exists():
            names = sorted(set(_weight_map(path / index).values()))
            return path / index, tuple(inside(path, name, named_by=index) for name in names)
        if single in shards:
            return None, (inside(path, single),)
        if pickled:  # a folder holds .bin files of other kinds, such as training_args.bin
            shards = [name for name in shards if name.startswith("pytorch_model")]
        _require_all_shards(path, shards)
        if shards:
            return None, tuple(inside(path, name) for name in shards)
    others = [name for name in listed(path, "") if Path(name).suffix in _OTHER_FORMATS]
    raise CheckpointError(
        "This folder holds no safetensors weights",
        where=path,
        received=f"weights of another kind, {', '.join(others[:3])}"
        if others
        else "no weight file",
        expected=f"{SINGLE}, or shards with {INDEX}",
        remedy="Save the model again with `model.save_pretrained(folder)`.",
    )


_OTHER_FORMATS = {".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ckpt"}


def _require_all_shards(path: Path, names: Iterable[str]) -> None:
    """Shards say how many they are, so one that is missing is seen without an index."""
    found = [match for name in names if (match := _SHARD.search(name))]
    numbers = {int(match["number"]) for match in found}
    count = max((int(match["count"]) for match in found), default=0)
    if missing := sorted(set(range(1, count + 1)) - numbers):
        raise CheckpointError(
            "A shard is missing",
            where=path,
            received=f"no shard {', '.join(map(str, missing[:9]))} of {count}",
            expected=f"{count} shards, as the names of the files say",
            remedy="Download the missing shard.",
        )


def _read_all(path: Path, files: Iterable[Path]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _read(file).items():
            if name in stored:
                raise CheckpointError(
                    f"Tensor {name!r} stands in two files",
                    where=path,
                    received=f"{stored[name].file.name} and {file.name}",
                    expected="each tensor once",
                    remedy="Remove the shard that does not belong to this checkpoint.",
                )
            stored[name] = tensor
    return stored


def _without_shared(
    stored: Mapping[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Each tensor under its first name, as `save_pretrained` keeps it, and the other names."""
    first: dict[tuple[Path, int, int], str] = {}
    shared = {}
    for name, tensor in stored.items():
        kept = first.setdefault((tensor.file, tensor.offset, tensor.n_bytes), name)
        if kept != name and tensor.n_elements and stored[kept].shape == tensor.shape:
            shared[name] = kept
    return {name: tensor for name, tensor in stored.items() if name not in shared}, shared


def _read(file: Path) -> dict[str, StoredTensor]:
    return read_header(file) if file.suffix == SAFE_SUFFIX else read_pickled(file)


def pickle_refused(where: object, received: str) -> CheckpointError:
    """What is said of pickled weights that were not allowed."""
    return CheckpointError(
        "This checkpoint holds no safetensors weights, only pickled ones",
        where=where,
        received=received,
        expected=f"{SINGLE}, or shards with {INDEX}",
        remedy="Save it again with `model.save_pretrained(folder)`. If you know who made it, allow"
        " it with --allow-pickle (allow_pickle=True): its tensors are read, its code is not run.",
    )


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_json(index, "a sharded checkpoint").get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(
            "The index names no shards",
            where=index,
            received=f"weight_map of type {type(weight_map).__name__}",
            expected="a JSON object from tensor name to file name",
            remedy="Save the model again with `save_pretrained`.",
        )
    return weight_map


def _check_index(
    index: Path, weight_map: Mapping[str, str], stored: dict[str, StoredTensor]
) -> None:
    for name, file_name in weight_map.items():
        if name not in stored or stored[name].file.name != file_name:
            raise CheckpointError(
                f"The index says that tensor {name!r} is in {file_name}",
                where=index,
                received=f"it is in {stored[name].file.name}" if name in stored else "it is not",
                remedy="Save the model again with `save_pretrained`.",
            )
