"""Checkpoints that hold whole weights: a Hugging Face folder, one safetensors file or shards."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from awd_core.checkpoints.checkpoint import Checkpoint, ExpertTensor
from awd_core.checkpoints.header import StoredTensor, read_header, read_rows
from awd_core.errors import CheckpointError, MismatchError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


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
    """A checkpoint with one stored tensor for every tensor of the model."""

    @property
    def kind(self) -> str:
        """`weights`."""
        return "weights"

    def tensor(self, base: StoredTensor) -> ExpertTensor:
        """The stored tensor of the same name.

        Raises:
            MismatchError: It is absent, or of another shape.
        """
        stored = self.stored.get(base.name)
        if stored is None or stored.shape != base.shape:
            raise MismatchError(
                "Base and expert do not match",
                where=f"tensor {base.name!r} of expert {self.label!r}",
                received="no such tensor" if stored is None else f"shape {list(stored.shape)}",
                expected=f"shape {list(base.shape)}, as in the base",
                remedy="Merge experts of the same base, or list the tensor under `exclude`.",
            )
        return WeightTensor(stored)

    def touches(self, name: str) -> bool:
        """Every tensor may differ from the base's."""
        return True


def open_weights(path: Path, label: str, source: str) -> WeightCheckpoint:
    """Open a folder with `config.json` and safetensors weights.

    Raises:
        CheckpointError: No configuration, no weights, or weights that are not whole.
    """
    config = read_config(path / "config.json", "a Hugging Face model folder")
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(path):
        for name, tensor in read_header(file).items():
            if name in stored:
                raise CheckpointError(
                    f"Tensor {name!r} stands in two files",
                    where=path,
                    received=f"{stored[name].file.name} and {file.name}",
                    expected="each tensor once",
                    remedy="Remove the shard that does not belong to this checkpoint.",
                )
            stored[name] = tensor
    if (path / INDEX).exists():
        _check_index(path, stored)
    return WeightCheckpoint(label, source, path, stored, config)


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder: as its index says, one file, or all shards."""
    index = path / INDEX
    if index.exists():
        names = sorted(set(_weight_map(index).values()))
        return tuple(_inside(path, name) for name in names)
    if (path / SINGLE).exists():
        return (path / SINGLE,)
    shards = tuple(sorted(path.glob("*.safetensors")))
    if shards:
        return shards
    pickled = sorted(file.name for file in path.glob("*.bin"))
    raise CheckpointError(
        "This folder holds no safetensors weights",
        where=path,
        received=f"pickled weights {', '.join(pickled)}" if pickled else "no weight file",
        expected=f"{SINGLE}, or shards with {INDEX}",
        remedy="Save the model again with `model.save_pretrained(folder)`"
        " (pickled weights can run code when opened, so they are not opened here).",
    )


def read_config(file: Path, what: str) -> Mapping[str, Any]:
    """A JSON object from `file`; `what` names the thing that the folder was taken for."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"This is not {what}",
            where=file.parent,
            received=f"no {file.name}",
            expected=f"a {file.name} beside the weights",
            remedy="Point at the folder that `save_pretrained` wrote.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file.name} cannot be read",
            where=file,
            received=error,
            expected="a JSON object",
            remedy="Copy the file again from where the model came from.",
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{file.name} is not a JSON object", where=file, received=type(config).__name__
        )
    return config


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_config(index, "a sharded checkpoint").get("weight_map")
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


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(
            "The index points outside its folder",
            where=folder / INDEX,
            received=repr(name),
            expected="a file name without a path",
            remedy="Do not use this checkpoint unless you know who made it.",
        )
    file = folder / name
    if not file.exists():
        raise CheckpointError(
            "A shard is missing",
            where=folder,
            received=f"no {name}",
            expected=f"every file that {INDEX} names",
            remedy="Download the missing shard.",
        )
    return file


def _check_index(path: Path, stored: Mapping[str, StoredTensor]) -> None:
    for name, file_name in _weight_map(path / INDEX).items():
        if name not in stored or stored[name].file.name != file_name:
            raise CheckpointError(
                f"The index says that tensor {name!r} is in {file_name}",
                where=path / INDEX,
                received=f"it is in {stored[name].file.name}" if name in stored else "it is not",
                remedy="Save the model again with `save_pretrained`.",
            )
