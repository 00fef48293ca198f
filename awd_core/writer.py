"""Writes the merged folder: weights header first, then everything that belongs beside them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from awd_core import devices, files
from awd_core.card import model_card
from awd_core.checkpoints import StoredTensor
from awd_core.checkpoints.folder import inside
from awd_core.checkpoints.weights import INDEX, SINGLE
from awd_core.hashes import InputHashes
from awd_core.parallel import in_order
from awd_core.plan import Plan
from awd_core.progress import Reporter
from awd_core.weighted import Tensors

RECIPE, PROVENANCE, CARD = "recipe.yaml", "provenance.json", "README.md"
# Files of the base that hold weights in some form, or describe the base alone.
_NOT_SIDECARS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".gguf"}
_OF_THE_BASE = {CARD, INDEX, "model.safetensors.index.json", "pytorch_model.bin.index.json"}


@dataclass(frozen=True)
class Shard:
    """One weight file of the result: its name and its tensors, in order."""

    name: str
    tensors: tuple[StoredTensor, ...]


def shards(plan: Plan, shard_bytes: int | None = None) -> tuple[Shard, ...]:
    """The weight files of the result.

    Args:
        plan: The merge.
        shard_bytes: Largest size of a file, unless a single tensor is larger; the files of the base
            when left out.
    """
    if shard_bytes is None:
        by_file = groupby(plan.tensors, key=lambda tensor: tensor.file)
        parts = [(_shard_name(file), tuple(own)) for file, own in by_file]
        return tuple(Shard(SINGLE if len(parts) == 1 else name, own) for name, own in parts)
    groups: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in plan.tensors:
        size += _bytes(plan, tensor)
        if size > shard_bytes and groups[-1]:
            groups.append([])
            size = _bytes(plan, tensor)
        groups[-1].append(tensor)
    if len(groups) == 1:
        return (Shard(SINGLE, tuple(groups[0])),)
    name = f"model-{{:05d}}-of-{len(groups):05d}.safetensors"
    return tuple(Shard(name.format(at), tuple(own)) for at, own in enumerate(groups, 1))


def _bytes(plan: Plan, tensor: StoredTensor) -> int:
    return tensor.n_elements * plan.out_dtype(tensor).itemsize


def write_model(
    folder: Path,
    plan: Plan,
    layout: Sequence[Shard],
    make: Callable[[Sequence[StoredTensor]], Tensors],
    journal: files.Journal,
    report: Reporter,
) -> None:
    """Fill a folder with the merged model, from the last finished tensor on.

    Args:
        folder: From `files.whole_folder`, empty or with what an earlier run has finished.
        plan: The merge.
        layout: The weight files.
        make: Makes tensors of the result, in the order given.
        journal: Of the folder.
        report: Told of every block.
    """
    inputs = InputHashes(file for one in (plan.base, *plan.experts) for file in one.files)
    try:
        entries = journal.entries()
        done = {entry["tensor"]: entry["end"] for entry in entries if "tensor" in entry}
        hashes = {entry["shard"]: entry["sha256"] for entry in entries if "shard" in entry}
        tensors = make([tensor for tensor in plan.tensors if tensor.name not in done])
        for shard in layout:
            if shard.name in hashes:
                report.advance(sum(_bytes(plan, tensor) for tensor in shard.tensors), shard.name)
            else:
                hashes[shard.name] = _write_shard(
                    folder, plan, shard, tensors, done, journal, report
                )
        if len(layout) > 1:
            _write_index(folder, plan, layout)
        _copy_sidecars(plan, folder)
        (folder / RECIPE).write_text(plan.recipe.to_yaml(), encoding="utf-8")
        (folder / CARD).write_text(model_card(plan), encoding="utf-8")
        provenance = _provenance(plan, folder, hashes, inputs.result())
        (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2), encoding="utf-8")
    finally:
        inputs.stop()


def _write_shard(
    folder: Path,
    plan: Plan,
    shard: Shard,
    tensors: Tensors,
    done: Mapping[str, int],
    journal: files.Journal,
    report: Reporter,
) -> str:
    """Write what is missing of one file, header first; its SHA-256."""
    file = folder / shard.name
    header = _header(plan, shard)
    finished = [tensor for tensor in shard.tensors if tensor.name in done]
    digest = hashlib.sha256()
    with file.open("r+b" if finished else "wb", buffering=0) as stream:
        if finished:
            stream.truncate(done[finished[-1].name])
            while part := stream.read(1 << 20):
                digest.update(part)
            report.advance(sum(_bytes(plan, tensor) for tensor in finished), shard.name)
        else:
            _write_at(stream.fileno(), header, 0)
            digest.update(header)
        end = done[finished[-1].name] if finished else len(header)
        for tensor in shard.tensors[len(finished) :]:
            made, blocks = next(tensors)
            assert made is tensor
            for data in _written(stream.fileno(), blocks, end):
                digest.update(data)
                end += len(data)
                report.advance(len(data), tensor.name)
            journal.add({"tensor": tensor.name, "end": end}, file)
    expected = len(header) + sum(_bytes(plan, tensor) for tensor in shard.tensors)
    assert end == expected, f"{shard.name}: {end} bytes, header says {expected}"
    journal.add({"shard": shard.name, "sha256": digest.hexdigest()}, file)
    return digest.hexdigest()


def _written(descriptor: int, blocks: Iterator[np.ndarray], position: int) -> Iterator[memoryview]:
    """The bytes of all blocks, in order, each at its place in the file when it is told of."""

    def placed() -> Iterator[tuple[memoryview, int]]:
        begin = position
        for block in blocks:
            yield block.data, begin
            begin += block.nbytes

    def write(part: tuple[memoryview, int]) -> memoryview:
        data, begin = part
        _write_at(descriptor, data, begin)
        return data

    # A file's bytes are hashed one after the other; the disk's cache is filled beside that.
    return in_order(write, placed())


def _write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, position)
        left, position = left[count:], position + count


def _header(plan: Plan, shard: Shard) -> bytes:
    """Header of a safetensors file, with its length in front."""
    recipe = plan.recipe.model_dump_json(exclude_defaults=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "awd_recipe": recipe}}
    offset = 0
    for tensor in shard.tensors:
        end = offset + _bytes(plan, tensor)
        header[tensor.name] = {
            "dtype": plan.out_dtype(tensor).code,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _write_index(folder: Path, plan: Plan, layout: Sequence[Shard]) -> None:
    size = sum(_bytes(plan, tensor) for tensor in plan.tensors)
    weight_map = {tensor.name: shard.name for shard in layout for tensor in shard.tensors}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def sidecars(base: Path) -> Iterator[Path]:
    """Files of the base that belong beside any weights: configuration, tokenizer, templates."""
    for file in sorted(base.rglob("*")):
        relative = file.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parts)
        weights = file.suffix in _NOT_SIDECARS
        if file.is_file() and not hidden and not weights and relative.name not in _OF_THE_BASE:
            inside(file.parent, file.name, home=base)
            yield relative


def _shard_name(source: Path) -> str:
    # A shard of a `.bin` becomes one of safetensors.
    return f"{source.stem.replace('pytorch_model', 'model')}.safetensors"


def _copy_sidecars(plan: Plan, folder: Path) -> None:
    for relative in sidecars(plan.base.path):
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plan.base.path / relative, target)
    if plan.recipe.dtype != "base" and plan.base.config:
        config = dict(plan.base.config)
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = plan.recipe.dtype
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _provenance(
    plan: Plan, folder: Path, hashes: Mapping[str, str], inputs: Mapping[Path, str]
) -> dict[str, Any]:
    from importlib.metadata import version

    # One of its own may be there, of a run that ended just before its last step.
    (folder / PROVENANCE).unlink(missing_ok=True)
    outputs = {
        name: hashes.get(name) or files.sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not (name := str(file.relative_to(folder))).startswith(".")
    }
    return {
        "recipe_digest": plan.recipe.digest,
        "inputs": [
            {
                "label": source.label,
                "path": str(source.path.absolute()),
                "kind": source.kind,
                "fingerprint": source.fingerprint,
                "sha256": {file.name: inputs[file] for file in source.files},
            }
            for source in (plan.base, *plan.experts)
        ],
        "outputs": outputs,
        "kept_from_base": [t.name for t in plan.tensors if t.name in plan.excluded],
        "device": plan.device.split(":")[0],
        "gpu": None if plan.device == "cpu" else devices.gpu_name(),
        "seed": plan.recipe.seed,
        "versions": {name: version(name) for name in ("torch", "numpy", "safetensors")},
    }
