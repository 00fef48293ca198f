"""Fuzzing: no header, index or configuration makes the reader do anything but read or refuse.

Valid files are made, then bent: fields dropped, doubled, swapped, replaced by what hurts; bytes
flipped, cut, repeated. Whatever happens, the outcome is an `AwdError` or tensors that lie inside
the folder. 22,000 inputs in every run; `AWD_FUZZ=50` makes it 50 times as many.
"""

import copy
import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import awd_core as awd
from awd_core.checkpoints import StoredTensor
from awd_core.checkpoints.header import read_header, read_rows
from awd_core.dtypes import FLOAT32
from tests.helpers import CONFIG

# Examples of each test, with INPUTS inputs each: 22,000 in every run.
EXAMPLES = 550 * int(os.environ.get("AWD_FUZZ", "1"))
INPUTS = 10
seeds = given(seed=st.integers(0, 2**63))
many = settings(max_examples=EXAMPLES)

# What breaks readers: limits of integers and floats, wrong kinds, names that lead elsewhere.
NUMBERS = [0, 1, -1, 2, 3, 4, 8, 12, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**30, 0.5, 1e308]
TEXTS = [
    "", ".", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "\u202e", "x" * 300, "F32", "BF16",
    "F4", "F8_E8M0", "BOOL", "f32", "config.json", "secret.safetensors", "outside.safetensors",
    "model-00002-of-00002.safetensors", "../secret.safetensors", "__metadata__", "(a|a)*",
    "(" * 50, ".*" * 30,
]  # fmt: skip
HURTFUL: list[Any] = [*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [0, 0], float("nan")]


def bent(rng: random.Random, value: Any, times: int) -> Any:
    """A deep copy of JSON in which some places were changed."""
    value = copy.deepcopy(value)
    for _ in range(times):
        places = list(_places(value))
        if not places:
            return value
        parent, key = places[rng.randrange(len(places))]
        what = rng.randint(0, 5)
        if what == 0:
            parent[key] = copy.deepcopy(rng.choice(HURTFUL))
        elif what == 1:
            del parent[key]
        elif what == 2 and isinstance(parent[key], int):
            parent[key] += rng.choice([-8, -4, -1, 1, 4, 8])
        elif what == 3:
            other, name = places[rng.randrange(len(places))]
            parent[key] = copy.deepcopy(other[name])
        elif what == 4 and isinstance(parent, dict):
            parent[rng.choice(TEXTS)] = parent[key]
        else:
            parent[key] = [parent[key]] * rng.randint(0, 3)
    return value


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def spoilt(rng: random.Random, raw: bytes) -> bytes:
    """Bytes with a few flipped, cut out, put in or repeated."""
    changed = bytearray(raw)
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(max(1, len(changed)))
        what = rng.randint(0, 3)
        if what == 0 and changed:
            changed[at] ^= 1 << rng.randint(0, 7)
        elif what == 1:
            del changed[at : at + rng.randint(1, 20)]
        elif what == 2:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            changed[at:at] = changed[at : at + rng.randint(1, 30)]
    return bytes(changed)


def randoms(seed: int) -> Iterator[random.Random]:
    for number in range(INPUTS):
        yield random.Random(seed * INPUTS + number)


def read_or_refuse(path: Path) -> awd.Checkpoint | None:
    """Open a folder and read everything; what is read lies inside it."""
    try:
        one = awd.open_checkpoint(path)
        for tensor in one.stored.values():
            assert tensor.file.resolve().parent == path.resolve()
            assert tensor.offset + tensor.n_bytes <= tensor.file.stat().st_size
            read_rows(tensor, 0, tensor.matrix_shape[0])
        assert one.fingerprint
    except awd.AwdError as error:
        str(error).encode("utf-8")
        return None
    return one


STATE = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "c": torch.ones((), dtype=torch.float64),
    "empty": torch.ones(0, 4),
    "ids": torch.arange(5),
}
WHOLE = save(STATE, metadata={"format": "pt"})
LENGTH = struct.unpack("<Q", WHOLE[:8])[0]
HEADER = json.loads(WHOLE[8 : 8 + LENGTH])
DATA = WHOLE[8 + LENGTH :]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a secret beside the model, which nothing may read."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "secret.safetensors").write_bytes(save({"secret": torch.ones(4)}))
    return root


def folder(root: Path, name: str) -> Path:
    path = root / name
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@many
@seeds
def test_bent_headers(root: Path, seed: int) -> None:
    file = folder(root, "headers") / "model.safetensors"
    for rng in randoms(seed):
        raw = json.dumps(bent(rng, HEADER, rng.randint(1, 3))).encode()
        lengths = [len(raw)] * 6 + [max(0, len(raw) - 1), len(raw) + 1, 2**63, 4 * 10**10]
        data = rng.choice([DATA] * 4 + [DATA[:-1], DATA + b"x", b""])
        file.write_bytes(struct.pack("<Q", rng.choice(lengths)) + raw + data)
        read_or_refuse(file.parent)


@many
@seeds
def test_spoilt_bytes(root: Path, seed: int) -> None:
    file = folder(root, "bytes") / "model.safetensors"
    for rng in randoms(seed):
        file.write_bytes(spoilt(rng, WHOLE))
        read_or_refuse(file.parent)


SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
INDEX = {
    "metadata": {"total_size": 100},
    "weight_map": {name: SHARDS[number % 2] for number, name in enumerate(STATE)},
}


@many
@seeds
def test_bent_indexes(root: Path, seed: int) -> None:
    path = folder(root, "indexes")
    if not (path / "outside.safetensors").is_symlink():
        (path / "outside.safetensors").symlink_to("../secret.safetensors")
        for number, name in enumerate(SHARDS):
            (path / name).write_bytes(save(dict(list(STATE.items())[number::2])))
    for rng in randoms(seed):
        raw = json.dumps(bent(rng, INDEX, rng.randint(1, 3))).encode()
        if rng.randrange(4) == 0:
            raw = spoilt(rng, raw)
        (path / "model.safetensors.index.json").write_bytes(raw)
        read_or_refuse(path)


ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"b": 2},
    "alpha_pattern": {"a": 3}, "use_rslora": False, "fan_in_fan_out": False,
    "modules_to_save": None, "bias": "none", "init_lora_weights": True,
    "base_model_name_or_path": "owner/name", "use_dora": False,
}  # fmt: skip
FACTORS = {
    f"base_model.model.{module}.lora_{side}.weight": torch.ones(shape)
    for module in ("x.a", "x.b")
    for side, shape in (("A", (2, 3)), ("B", (2, 2)))
}
ADAPTED = save(FACTORS)
ADAPTED_LENGTH = struct.unpack("<Q", ADAPTED[:8])[0]
ADAPTED_HEADER = json.loads(ADAPTED[8 : 8 + ADAPTED_LENGTH])


@many
@seeds
def test_bent_adapters(root: Path, seed: int) -> None:
    path = folder(root, "adapters")
    base = StoredTensor("x.a.weight", (2, 3), FLOAT32, path, 0)
    zero = torch.zeros(2, 3, dtype=torch.float64)
    for rng in randoms(seed):
        raw = json.dumps(bent(rng, ADAPTER, rng.randint(0, 3))).encode()
        if rng.randrange(6) == 0:
            raw = spoilt(rng, raw)
        (path / "adapter_config.json").write_bytes(raw)
        header = json.dumps(bent(rng, ADAPTED_HEADER, rng.randint(0, 1))).encode()
        content = struct.pack("<Q", len(header)) + header + ADAPTED[8 + ADAPTED_LENGTH :]
        (path / "adapter_model.safetensors").write_bytes(content)
        one = read_or_refuse(path)
        if one is not None and one.touches(base.name):
            try:
                assert one.tensor(base).task_vector(0, 2, zero).shape == (2, 3)
            except awd.AwdError as error:
                str(error).encode("utf-8")


def test_the_unbent_are_read(root: Path) -> None:
    file = folder(root, "whole") / "model.safetensors"
    file.write_bytes(WHOLE)
    assert set(awd.open_checkpoint(file.parent).stored) == set(STATE)
    assert set(read_header(file)) == set(STATE)
