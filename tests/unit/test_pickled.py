"""Pickled weights: read only when allowed, tensor by tensor, and never a line of code run."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import awd_core as awd
from awd_core.checkpoints import WeightCheckpoint
from awd_core.checkpoints.header import read_rows
from tests.helpers import CONFIG, QUERY, State, base_state, same_bits, save

BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def save_bin(folder: Path, state: Any, shards: int | None = None, **options: Any) -> Path:
    """A model folder as older versions of transformers wrote it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if shards is None:
        torch.save(state, folder / BIN, **options)
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {key: state[key] for key in list(state)[number::shards]}
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def read(checkpoint: awd.Checkpoint) -> State:
    return {
        name: read_rows(stored, 0, stored.matrix_shape[0]).reshape(stored.shape)
        for name, stored in checkpoint.stored.items()
    }


@pytest.mark.parametrize("shards", [None, 3])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str
)
def test_every_tensor_is_read_as_torch_saved_it(
    tmp_path: Path, dtype: torch.dtype, shards: int | None
) -> None:
    state = base_state(dtype=dtype)
    folder = save_bin(tmp_path / "m", state, shards)
    assert same_bits(read(awd.open_checkpoint(folder, allow_pickle=True)), state)
    if shards:
        (folder / INDEX).unlink()
        assert same_bits(read(awd.open_checkpoint(folder, allow_pickle=True)), state)
    else:
        file = awd.open_checkpoint(folder / BIN, allow_pickle=True)
        assert same_bits(read(file), state)
        assert file.label == "pytorch_model"


def test_views_are_read_where_they_lie(tmp_path: Path) -> None:
    whole = torch.arange(40.0).reshape(10, 4)
    state = {"rows": whole[3:5], "all": whole, "one": whole[7, 2], "parameter": torch.ones(2)}
    state["parameter"] = torch.nn.Parameter(state["parameter"])
    found = read(awd.open_checkpoint(save_bin(tmp_path / "m", state), allow_pickle=True))
    assert same_bits(found, {name: tensor.detach() for name, tensor in state.items()})


def test_of_tied_weights_the_first_name_is_kept(tmp_path: Path) -> None:
    weight = torch.randn(5, 3)
    state = {"embed.weight": weight, "lm_head.weight": weight, "empty": torch.ones(0)}
    one = awd.open_checkpoint(save_bin(tmp_path / "m", state), allow_pickle=True)
    assert list(one.stored) == ["embed.weight", "empty"]
    assert isinstance(one, WeightCheckpoint)
    assert one.shared == {"lm_head.weight": "embed.weight"}


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    state = base_state()
    folder = save(tmp_path / "m", state)
    (folder / BIN).write_bytes(b"never opened")
    for allowed in (False, True):
        assert same_bits(read(awd.open_checkpoint(folder, allow_pickle=allowed)), state)


@pytest.mark.parametrize("shards", [None, 2])
def test_nothing_pickled_is_opened_unasked(tmp_path: Path, shards: int | None) -> None:
    folder = save_bin(tmp_path / "m", base_state(), shards)
    paths = [folder] if shards else [folder, folder / BIN]
    for path in paths:
        with pytest.raises(awd.AwdError, match=r"only pickled.*pytorch_model.*--allow-pickle"):
            awd.open_checkpoint(path)


class Harm:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def harmful(folder: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Harm(folder / "harm")}, folder / BIN)


def old_format(folder: Path) -> None:
    torch.save(base_state(), folder / BIN, _use_new_zipfile_serialization=False)


def plain_pickle(folder: Path) -> None:
    (folder / BIN).write_bytes(pickle.dumps({"w": 1}))


def not_a_state(folder: Path) -> None:
    torch.save([torch.ones(2)], folder / BIN)


def nested(folder: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, folder / BIN)


def transposed(folder: Path) -> None:
    torch.save({"w": torch.ones(2, 3).T}, folder / BIN)


def sparse(folder: Path) -> None:
    torch.save({"w": torch.eye(3).to_sparse()}, folder / BIN)


def truncated(folder: Path) -> None:
    raw = (folder / BIN).read_bytes()
    (folder / BIN).write_bytes(raw[: len(raw) // 2])


def compressed(folder: Path) -> None:
    with zipfile.ZipFile(folder / BIN) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(folder / BIN, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in content.items():
            new.writestr(name, data)


def big_endian(folder: Path) -> None:
    with zipfile.ZipFile(folder / BIN) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(folder / BIN, "w") as new:
        for name, data in content.items():
            new.writestr(name, b"big" if name.endswith("byteorder") else data)


@pytest.mark.parametrize(
    "damage",
    [
        harmful, old_format, plain_pickle, not_a_state, nested, transposed, sparse, truncated,
        compressed, big_endian,
    ],
)  # fmt: skip
def test_what_is_no_plain_state_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = save_bin(tmp_path / "m", base_state())
    damage(folder)
    with pytest.raises(awd.AwdError, match=r"pickled weight file cannot be opened safely.*again"):
        awd.open_checkpoint(folder, allow_pickle=True)
    assert not (folder / "harm").exists()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_bin(tmp_path / "m", base_state(), shards=3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(awd.AwdError, match=r"shard is missing.*no pytorch_model-00002"):
        awd.open_checkpoint(folder, allow_pickle=True)
    (folder / INDEX).unlink()
    with pytest.raises(awd.AwdError, match=r"shard is missing.*no shard 2 of 3"):
        awd.open_checkpoint(folder, allow_pickle=True)


def test_a_merge_of_pickled_weights_is_written_as_safetensors(tmp_path: Path) -> None:
    base, expert = base_state(), base_state(seed=1)
    expert |= {"position_ids": base["position_ids"], "mask": base["mask"]}
    folders = [save_bin(tmp_path / "b", base, 2), save_bin(tmp_path / "e", expert)]
    opened = [awd.open_checkpoint(folder, allow_pickle=True) for folder in folders]
    recipe = awd.Recipe(base=str(folders[0]), experts=[str(folders[1])], coefficient=1.0)
    with pytest.raises(awd.AwdError, match="only pickled"):
        awd.merge(recipe, tmp_path / "out", device="cpu")
    out = awd.merge(recipe, tmp_path / "out", device="cpu", checkpoints=(opened[0], opened[1:]))
    assert same_bits(read(awd.open_checkpoint(out)), expert)
    assert not list(out.glob("*.bin*"))
    assert QUERY in json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert awd.verify(out, load=False, allow_pickle=True).ok
