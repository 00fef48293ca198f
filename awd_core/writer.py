"""Writes the merged folder: weights header first, then everything that belongs beside them."""

import hashlib
import json
import shutil
import struct
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from awd_core import files
from awd_core.card import model_card
from awd_core.checkpoints import StoredTensor
from awd_core.checkpoints.folder import inside
from awd_core.checkpoints.header import DTYPE_CODES
from awd_core.checkpoints.weights import INDEX, SINGLE

if TYPE_CHECKING:
    from awd_core.merge import Plan

RECIPE, PROVENANCE, CARD = "recipe.yaml", "provenance.json", "README.md"
# Files of the base that hold weights in some form, or describe the base alone.
_NOT_SIDECARS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".gguf"}
_OF_THE_BASE = {CARD, INDEX, "model.safetensors.index.json", "pytorch_model.bin.index.json"}

Tensors = Iterator[tuple[StoredTensor, Iterator[torch.Tensor]]]


def write_model(folder: Path, plan: "Plan", tensors: Tensors) -> None:
    """Fill an empty folder with the merged model.

    The layout is the base's: the same files hold the same tensors in the same order.
    """
    hashes: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    sizes: list[int] = []
    single = len(plan.base.files) == 1
    metadata = {"format": "pt", "awd_recipe": plan.recipe.model_dump_json(exclude_defaults=True)}
    by_file = groupby(tensors, key=lambda pair: pair[0].file)
    for source, group in by_file:
        name = SINGLE if single else _shard_name(source)
        own = [tensor for tensor in plan.tensors if tensor.file == source]
        specs = [(tensor.name, tensor.shape, plan.out_dtype(tensor)) for tensor in own]
        sizes += [tensor.n_elements * plan.out_dtype(tensor).itemsize for tensor in own]
        weight_map |= dict.fromkeys((tensor.name for tensor in own), name)
        blocks = (block for _, tensor_blocks in group for block in tensor_blocks)
        hashes[name] = write_safetensors(folder / name, specs, blocks, metadata)
    if not single:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    _copy_sidecars(plan, folder)
    (folder / RECIPE).write_text(plan.recipe.to_yaml(), encoding="utf-8")
    (folder / CARD).write_text(model_card(plan), encoding="utf-8")
    provenance = _provenance(plan, folder, hashes)
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2), encoding="utf-8")


def write_safetensors(
    file: Path,
    specs: Iterable[tuple[str, tuple[int, ...], torch.dtype]],
    blocks: Iterable[torch.Tensor],
    metadata: dict[str, str],
) -> str:
    """Write one safetensors file, header first, then the bytes of `blocks` in order.

    Args:
        file: Where.
        specs: Name, shape and type of every tensor, in order.
        blocks: Contiguous pieces whose concatenated bytes are those tensors.
        metadata: Strings for `__metadata__`.

    Returns:
        SHA-256 of the file.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, shape, dtype in specs:
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_CODES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for part in _parts(raw, blocks):
            stream.write(part)
            digest.update(part)
        written = stream.tell() - 8 - len(raw)
    assert written == offset, f"{file.name}: wrote {written} bytes of data, header says {offset}"
    return digest.hexdigest()


def _parts(raw_header: bytes, blocks: Iterable[torch.Tensor]) -> Iterator[bytes | memoryview]:
    yield struct.pack("<Q", len(raw_header))
    yield raw_header
    for block in blocks:
        if block.numel():
            yield block.contiguous().view(-1).view(torch.uint8).numpy().data


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


def _copy_sidecars(plan: "Plan", folder: Path) -> None:
    for relative in sidecars(plan.base.path):
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plan.base.path / relative, target)
    if plan.recipe.dtype != "base" and plan.base.config:
        config = dict(plan.base.config)
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = plan.recipe.dtype
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _provenance(plan: "Plan", folder: Path, hashes: dict[str, str]) -> dict[str, Any]:
    from importlib.metadata import version

    outputs = {
        str(file.relative_to(folder)): hashes.get(file.name) or files.sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }
    return {
        "recipe_digest": plan.recipe.digest,
        "inputs": [
            {
                "label": source.label,
                "path": str(source.path.absolute()),
                "kind": source.kind,
                "fingerprint": source.fingerprint,
                "sha256": {file.name: files.sha256(file) for file in source.files},
            }
            for source in (plan.base, *plan.experts)
        ],
        "outputs": outputs,
        "kept_from_base": [t.name for t in plan.tensors if t.name in plan.excluded],
        "device": plan.device.type,
        "seed": plan.recipe.seed,
        "versions": {name: version(name) for name in ("torch", "numpy", "safetensors")},
    }
