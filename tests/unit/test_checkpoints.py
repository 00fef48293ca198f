"""Opening folders: what people have, and what is refused with a sentence that helps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import awd_core as awd
from awd_core.checkpoints.header import read_rows
from tests.helpers import QUERY, State, base_state, bits, save

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read(checkpoint: awd.Checkpoint) -> State:
    """Every tensor, by our own reader."""
    return {
        name: read_rows(stored, 0, stored.matrix_shape[0]).reshape(stored.shape)
        for name, stored in checkpoint.stored.items()
    }


def same(found: State, expected: State) -> bool:
    return set(found) == set(expected) and all(
        found[name].shape == tensor.shape
        and found[name].dtype == tensor.dtype
        and bits(found[name]) == bits(tensor)
        for name, tensor in expected.items()
    )


@pytest.mark.parametrize("shards", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_tensor_is_read_as_it_was_saved(
    tmp_path: Path, shards: int | None, dtype: torch.dtype
) -> None:
    state = base_state(dtype=dtype)
    checkpoint = awd.open_checkpoint(save(tmp_path / "m", state, shards=shards))
    assert same(read(checkpoint), state)
    assert checkpoint.label == "m"
    assert checkpoint.kind == "weights"
    assert len(checkpoint.files) == (shards or 1)


def test_shards_without_an_index_are_all_read(tmp_path: Path) -> None:
    state = base_state()
    folder = save(tmp_path / "m", state, shards=2)
    (folder / INDEX).unlink()
    assert same(read(awd.open_checkpoint(folder)), state)


def test_an_index_names_the_files_that_belong(tmp_path: Path) -> None:
    state = base_state()
    folder = save(tmp_path / "m", state, shards=2)
    save_file({"stray": torch.ones(2)}, folder / "consolidated.safetensors")
    assert same(read(awd.open_checkpoint(folder)), state)


def test_rows_are_read_from_anywhere(tmp_path: Path) -> None:
    state = base_state()
    stored = awd.open_checkpoint(save(tmp_path / "m", state)).stored[QUERY]
    for start, stop in [(0, 1), (1, 4), (4, 5), (2, 2)]:
        assert torch.equal(read_rows(stored, start, stop), state[QUERY][start:stop])


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    state = base_state()
    first = awd.open_checkpoint(save(tmp_path / "a", state))
    copy = awd.open_checkpoint(save(tmp_path / "b", state), label="other")
    assert copy.fingerprint == first.fingerprint
    state[QUERY][4, 11] += 1
    assert awd.open_checkpoint(save(tmp_path / "c", state)).fingerprint != first.fingerprint
    state = {f"x.{name}": tensor for name, tensor in base_state().items()}
    assert awd.open_checkpoint(save(tmp_path / "d", state)).fingerprint != first.fingerprint


def test_a_file_that_ends_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    checkpoint = awd.open_checkpoint(save(tmp_path / "m", base_state()))
    file = tmp_path / "m" / SINGLE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(awd.AwdError, match=r"cannot be read to the end.*Check the disk"):
        read(checkpoint)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{model_type: bert}")


def config_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def no_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def only_pickles(folder: Path) -> None:
    no_weights(folder)
    torch.save(base_state(), folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def longer(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes() + b"x" * 10)


def empty_file(folder: Path) -> None:
    next(folder.glob("*.safetensors")).write_bytes(b"")


def pointer_of_git_lfs(folder: Path) -> None:
    next(folder.glob("*.safetensors")).write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, r"not a Hugging Face model folder.*no config\.json.*save_pretrained"),
        (config_not_json, r"config\.json cannot be read.*JSON.*Copy the file again"),
        (config_a_list, r"config\.json is not a JSON object"),
        (no_weights, r"no safetensors weights.*no weight file.*save_pretrained"),
        (only_pickles, r"only pickled ones.*pytorch_model\.bin.*--allow-pickle"),
        (truncated, r"truncated or has bytes after its end.*Download or copy the file again"),
        (longer, r"truncated or has bytes after its end.*Download or copy the file again"),
        (empty_file, r"not a valid safetensors file.*0 bytes.*Download or copy"),
        (pointer_of_git_lfs, r"not a valid safetensors file.*ends inside the file.*Download"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = save(tmp_path / "m", base_state())
    awd.open_checkpoint(folder)
    damage(folder)
    with pytest.raises(awd.AwdError, match=message) as caught:
        awd.open_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "no-such-folder", "a/b/c"])
def test_a_path_that_is_missing_is_refused(name: str) -> None:
    with pytest.raises(awd.AwdError, match=r"no such folder.*Check the spelling of the path"):
        awd.open_checkpoint(name)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@main"])
def test_a_hub_id_that_cannot_be_fetched_is_refused(name: str) -> None:
    with pytest.raises(awd.AwdError, match=r"neither a folder here nor a model.*HF_TOKEN; offline"):
        awd.open_checkpoint(name)


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def missing_shard(folder: Path) -> None:
    first_shard(folder).unlink()


def shard_outside(folder: Path) -> None:
    change_map(folder, {QUERY: "../../etc/model.safetensors"})


def shard_absolute(folder: Path) -> None:
    change_map(folder, {QUERY: "/etc/passwd"})


def tensor_elsewhere(folder: Path) -> None:
    others = json.loads((folder / INDEX).read_text())["weight_map"]
    change_map(folder, {QUERY: next(file for file in others.values() if file != others[QUERY])})


def tensor_nowhere(folder: Path) -> None:
    change_map(folder, {"no.such.weight": first_shard(folder).name})


def map_missing(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def map_of_numbers(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {QUERY: 1}}))


def tensor_twice(folder: Path) -> None:
    (folder / INDEX).unlink()
    shutil.copy(first_shard(folder), folder / "model-copy.safetensors")


def change_map(folder: Path, changes: dict[str, str]) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changes
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_shard, r"shard is missing.*no model-00001-of-00002.*Download the missing shard"),
        (shard_outside, r"index points outside its folder.*\.\./\.\./etc.*unless you know who"),
        (shard_absolute, r"index points outside its folder.*/etc/passwd.*unless you know who"),
        (tensor_elsewhere, rf"index says that tensor '{QUERY}' is in.*Save the model again"),
        (tensor_nowhere, r"index says that tensor 'no\.such\.weight'.*it is not.*Save the model"),
        (map_missing, r"index names no shards.*Save the model again"),
        (map_of_numbers, r"index names no shards.*Save the model again"),
        (tensor_twice, r"stands in two files.*model-copy.*Remove the shard"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = save(tmp_path / "m", base_state(), shards=2)
    awd.open_checkpoint(folder)
    damage(folder)
    with pytest.raises(awd.AwdError, match=message):
        awd.open_checkpoint(folder)
