"""Folders and files as people have them, and faults of the file system: read, or named."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import awd_core as awd
from awd_core.checkpoints.header import read_rows
from tests.helpers import QUERY, Family, State, base_state, expert_states, family, same_bits, save

SINGLE = "model.safetensors"
PRIVATE = "private.safetensors"


def read(checkpoint: awd.Checkpoint) -> State:
    return {
        name: read_rows(stored, 0, stored.matrix_shape[0]).reshape(stored.shape)
        for name, stored in checkpoint.stored.items()
    }


def test_a_weight_file_is_a_checkpoint_by_itself(tmp_path: Path) -> None:
    state = base_state()
    file = save(tmp_path / "m", state) / SINGLE
    one = awd.open_checkpoint(file)
    assert same_bits(read(one), state)
    assert one.source == str(file)
    assert not one.config
    assert awd.open_checkpoint(file.rename(tmp_path / "style.safetensors")).label == "style"


def test_weight_files_merge_and_verify_without_a_folder(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    files = [folder / SINGLE for folder in (one.base_path, *one.expert_paths)]
    recipe = awd.Recipe(base=str(files[0]), experts=[str(f) for f in files[1:]], coefficient=0.3)
    out = awd.merge(recipe, tmp_path / "out", device="cpu")
    assert same_bits(read(awd.open_checkpoint(out / SINGLE)), one.state(coefficient=0.3))
    assert not (out / "config.json").exists()
    found = awd.verify(out)
    assert found.ok
    assert {check.name: check.ok for check in found.checks}["transformers loads it"] is None


def test_a_file_of_an_adapter_is_refused_with_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.a.lora_A.weight": torch.ones(2, 3)}, file)
    with pytest.raises(awd.AwdError, match=rf"factors of a LoRA adapter.*folder {tmp_path}"):
        awd.open_checkpoint(file)


@pytest.mark.parametrize("name", ["model.gguf", "model.ckpt", "notes"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(awd.AwdError, match=r"not a file of weights that can be merged"):
        awd.open_checkpoint(tmp_path / name)


def test_a_shard_that_is_missing_is_seen_without_an_index(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", base_state(), shards=3)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(awd.AwdError, match=r"shard is missing.*no shard 1 of 3.*Download"):
        awd.open_checkpoint(folder)


def test_hidden_files_are_no_shards(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", base_state(), shards=2)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "._model-00001-of-00002.safetensors").write_bytes(b"Mac")
    assert same_bits(read(awd.open_checkpoint(folder)), base_state())


def test_a_snapshot_of_the_cache_links_into_its_blobs(tmp_path: Path) -> None:
    state = base_state()
    saved = save(tmp_path / "saved", state)
    repository = tmp_path / "models--owner--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(saved.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert same_bits(read(awd.open_checkpoint(snapshot)), state)
    (tmp_path / "link").symlink_to(snapshot)
    assert same_bits(read(awd.open_checkpoint(tmp_path / "link")), state)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", base_state())
    (folder / SINGLE).rename(folder / "weights")
    (folder / SINGLE).symlink_to("weights")
    assert same_bits(read(awd.open_checkpoint(folder)), base_state())


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "m", base_state())
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to("../elsewhere")
    with pytest.raises(awd.AwdError, match=rf"leads out of the checkpoint's folder.*{name}"):
        awd.open_checkpoint(folder)


def test_a_private_file_behind_a_link_never_reaches_the_merge(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    (tmp_path / "secret").write_text("mine")
    (one.base_path / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(awd.AwdError, match=r"leads out of the checkpoint's folder"):
        awd.merge(one.recipe(), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is at most a hundred characters long
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def ring(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", [SINGLE, "config.json"])
@pytest.mark.parametrize("make", [pipe, folder, unix_socket, ring, dangling])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    model = save(tmp_path / "m", base_state())
    (model / name).unlink()
    make(model / name)
    with pytest.raises(awd.AwdError, match=r"not a regular file|cannot be read|file is missing"):
        awd.open_checkpoint(model)


def test_names_that_are_not_utf_8_are_read_and_shown(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert same_bits(read(awd.open_checkpoint(save(path, base_state()))), base_state())
    (path / "config.json").write_bytes(b'{"model_type": "caf\xe9"}')
    with pytest.raises(awd.AwdError, match=r"config\.json cannot be read") as caught:
        awd.open_checkpoint(path)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{}", r"cannot be read"),
        (b'{"a":' * 100_000, r"cannot be read"),
        (b'{"weight_map": {"a": "b", "a": "c"}}', r"'a' stands in it twice"),
        (b"9" * 5000, r"cannot be read|not a JSON object"),
        (b"null", r"not a JSON object"),
    ],
)
def test_json_that_cannot_be_meant_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    model = save(tmp_path / "m", base_state(), shards=2)
    (model / name).write_bytes(content)
    with pytest.raises(awd.AwdError, match=message):
        awd.open_checkpoint(model)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a\0b", "x" * 5000, "\ud800", "a/b", "config.json"]
)
def test_an_index_names_weight_files_of_its_folder_or_is_refused(tmp_path: Path, name: str) -> None:
    model = save(tmp_path / "m", base_state(), shards=2)
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {QUERY: name}}))
    with pytest.raises(awd.AwdError):
        awd.open_checkpoint(model)


def test_a_disk_that_fails_while_reading_is_named(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    first, second = one.experts
    # Reading the memory of this process at address 0 is an error of input and output.
    stored = {
        n: replace(t, file=Path("/proc/self/mem"), offset=0) for n, t in second.stored.items()
    }
    message = r"cannot be read to the end.*tensor.*Input/output error.*Check the disk"
    with pytest.raises(awd.AwdError, match=message):
        awd.collect(one.base, [first, replace(second, stored=stored)], out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_changes_after_it_was_opened_is_named(tmp_path: Path, gone: bool) -> None:
    one = family(tmp_path, 2)
    base, experts = one.base, one.experts
    file = one.expert_paths[1] / SINGLE
    if gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(awd.AwdError, match=r"cannot be read to the end.*expert-1.*Check the disk"):
        awd.merge(one.recipe(), tmp_path / "out", device="cpu", checkpoints=(base, experts))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_a_weight_that_is_not_finite_is_named_with_its_owner(
    tmp_path: Path, culprit: int, value: float
) -> None:
    base = base_state()
    states = [base, *expert_states(base, 2)]
    states[culprit][QUERY] = states[culprit][QUERY].clone()
    states[culprit][QUERY][4, 11] = value
    one = Family(tmp_path, states[0], states[1:])
    owner = "the base" if culprit == 0 else f"expert 'expert-{culprit - 1}'"
    message = rf"NaN or infinite.*tensor '{QUERY}' of {owner}"
    with pytest.raises(awd.AwdError, match=message):
        one.study(out=tmp_path / "study")
    with pytest.raises(awd.AwdError, match=message):
        awd.merge(one.recipe(), tmp_path / "out", device="cpu")
    assert not (tmp_path / "study").exists()
    assert not (tmp_path / "out").exists()


def test_an_expert_that_is_copied_must_be_finite(tmp_path: Path) -> None:
    base = base_state()
    states = expert_states(base, 2)
    states[1][QUERY][0, 0] = torch.nan
    one = Family(tmp_path, base, states)
    with pytest.raises(awd.AwdError, match=rf"NaN or infinite.*'{QUERY}' of expert 'expert-1'"):
        awd.merge(one.recipe(coefficients=[0, 1]), tmp_path / "out", device="cpu")


def test_half_precision_that_overflows_is_refused_by_name(tmp_path: Path) -> None:
    base = base_state()
    base[QUERY][1, 1] = 70_000.0
    one = Family(tmp_path, base, expert_states(base, 2))
    message = rf"too large for float16.*tensor '{QUERY}'.*bfloat16"
    with pytest.raises(awd.AwdError, match=message):
        awd.merge(one.recipe(dtype="float16"), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    awd.merge(one.recipe(dtype="bfloat16"), tmp_path / "out", device="cpu")


def test_a_weight_that_no_expert_touches_must_be_finite_too(tmp_path: Path) -> None:
    base = base_state() | {"layer.weight": torch.ones(4, 6)}
    base[QUERY][0, 0] = torch.nan
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 2}')
    factors = {"A": torch.ones(2, 6), "B": torch.ones(4, 2)}
    named = {f"base_model.model.layer.lora_{side}.weight": t for side, t in factors.items()}
    save_file(named, adapter / "adapter_model.safetensors")
    source = save(tmp_path / "base", base)
    recipe = awd.Recipe(base=str(source), experts=[str(adapter)], coefficient=0.5)
    message = rf"NaN or infinite.*tensor '{QUERY}' of the base"
    with pytest.raises(awd.AwdError, match=message):
        awd.merge(recipe, tmp_path / "out", device="cpu")
    opened = awd.open_checkpoint(source), [awd.open_checkpoint(adapter)]
    with pytest.raises(awd.AwdError, match=message):
        awd.collect(*opened, out=tmp_path / "study", device="cpu")
    awd.merge(recipe.model_copy(update={"exclude": (QUERY,)}), tmp_path / "out", device="cpu")
