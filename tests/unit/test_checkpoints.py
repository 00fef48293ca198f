"""Opening folders: what people have, and what is refused with a sentence that helps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import awd_core as awd
from awd_core.checkpoints.header import DTYPES, read_header, read_rows
from tests.helpers import CONFIG, QUERY, State, base_state, bits, family, save, write_raw

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


def test_every_type_of_the_format_is_known(tmp_path: Path) -> None:
    state = {str(dtype): torch.ones(3, 2).to(dtype) for dtype in DTYPES.values()}
    save_file(state, tmp_path / "all.safetensors")
    found = read_header(tmp_path / "all.safetensors")
    assert {name: str(tensor.dtype) for name, tensor in found.items()} == {n: n for n in state}


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


# --- folders that are not checkpoints -------------------------------------------------------------


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
        (only_pickles, r"no safetensors weights.*pytorch_model\.bin.*not opened here"),
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


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", base_state())
    with pytest.raises(awd.AwdError, match=r"A checkpoint is a folder.*Point at the folder"):
        awd.open_checkpoint(folder / SINGLE)


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


# --- headers --------------------------------------------------------------------------------------


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'  # fmt: skip


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", 0, r"header that is not JSON"),
        (b"\xff\xfe", 0, r"header that is not JSON"),
        (b"[" * 100_000, 0, r"header that is not JSON"),
        ([1, 2], 0, r"header of type list.*a JSON object"),
        (TWICE, 8, r"the same tensor name stands in it twice"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, r"tensor 'b' overlaps another"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20, r"tensor 'b' leaves a hole"),
        ({"a": entry([2], 4, 12)}, 12, r"tensor 'a' leaves a hole"),
        ({"a": entry([3], 0, 8)}, 8, r"8 bytes for tensor 'a' of shape \[3\].*12 bytes"),
        ({"a": entry([-2], 0, 8)}, 8, r"entry .* for tensor 'a'"),
        ({"a": entry([2.0], 0, 8)}, 8, r"entry .* for tensor 'a'"),
        ({"a": entry([True], 0, 4)}, 4, r"entry .* for tensor 'a'"),
        ({"a": entry([2], 8, 0)}, 8, r"-8 bytes for tensor 'a'"),
        ({"a": entry([2**62, 2**62], 0, 8)}, 8, r"8 bytes for tensor 'a'"),
        ({"a": entry([2], 0, 8, "F33")}, 8, r"entry .* for tensor 'a'.*of a supported type"),
        ({"a": {"dtype": "F32"}}, 0, r"entry .* for tensor 'a'"),
        ({"a": 3}, 0, r"entry '3' for tensor 'a'"),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: Any, data: int, message: str
) -> None:
    file = write_raw(tmp_path / "x.safetensors", header, bytes(data))
    with pytest.raises(awd.AwdError, match=rf"not a valid safetensors file.*{message}.*Download"):
        read_header(file)


@pytest.mark.parametrize("length", [9, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_header_that_ends_beyond_the_file_is_refused(tmp_path: Path, length: int) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(awd.AwdError, match=rf"header of {length:,} bytes in a file of 10 bytes"):
        read_header(file)


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    assert read_header(write_raw(tmp_path / "x.safetensors", {"__metadata__": {"a": "b"}})) == {}


# --- preflight ------------------------------------------------------------------------------------


def shapes_differ(expert: State) -> None:
    expert[QUERY] = torch.zeros(5, 11)


def transposed(expert: State) -> None:
    expert[QUERY] = expert[QUERY].T.contiguous()


def tensor_missing(expert: State) -> None:
    del expert[QUERY]


def tensor_of_integers(expert: State) -> None:
    expert[QUERY] = torch.zeros(5, 12, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shapes_differ, r"\[5, 11\].*\[5, 12\], as in the base.*under `exclude`"),
        (transposed, r"\[12, 5\].*\[5, 12\], as in the base.*under `exclude`"),
        (tensor_missing, r"no such tensor.*\[5, 12\].*under `exclude`"),
        (tensor_of_integers, r"type torch\.int8.*floats.*under `exclude`"),
    ],
)
def test_an_expert_that_does_not_match_is_refused_with_its_tensor(
    tmp_path: Path, change: Callable[[State], None], message: str
) -> None:
    expert = base_state(seed=1)
    change(expert)
    base = awd.open_checkpoint(save(tmp_path / "base", base_state()))
    experts = [awd.open_checkpoint(save(tmp_path / "odd", expert))]
    report = awd.preflight(base, experts)
    assert not report.ok
    where = rf"tensor '{QUERY}' of expert 'odd'"
    with pytest.raises(awd.AwdError, match=rf"do not match.*{where}.*{message}"):
        report.require_ok()
    with pytest.raises(awd.AwdError, match=where):
        awd.collect(base, experts, out=tmp_path / "study", device="cpu")
    assert not (tmp_path / "study").exists()
    assert awd.preflight(base, experts, exclude=[QUERY]).ok  # the remedy works


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    expert = {name: tensor for name, tensor in base_state().items() if "encoder" not in name}
    base = awd.open_checkpoint(save(tmp_path / "base", base_state()))
    report = awd.preflight(base, [awd.open_checkpoint(save(tmp_path / "odd", expert))])
    assert sum(problem.severity == "error" for problem in report.problems) == 4
    with pytest.raises(awd.AwdError, match=r"do not match \(3 more like this\)"):
        report.require_ok()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    base = awd.open_checkpoint(save(tmp_path / "base", base_state()))
    config = CONFIG | {"model_type": "bert", "architectures": ["BertModel"]}
    expert = awd.open_checkpoint(save(tmp_path / "odd", base_state(), config))
    message = r"architecture bert.*BertModel.*architecture tiny.*Merge only experts"
    with pytest.raises(awd.AwdError, match=message):
        awd.preflight(base, [expert]).require_ok()


def test_no_expert_is_refused(tmp_path: Path) -> None:
    base = awd.open_checkpoint(save(tmp_path / "base", base_state()))
    with pytest.raises(awd.AwdError, match=r"experts.*none.*two or more.*Give at least two"):
        awd.collect(base, [], out=tmp_path / "study", device="cpu")


def warnings(report: awd.Preflight) -> list[str]:
    return [f"{p.where}: {p.received}. {p.remedy}" for p in report.problems if report.ok]


def test_one_expert_only_is_a_warning(tmp_path: Path) -> None:
    one = family(tmp_path, 1)
    (found,) = warnings(awd.preflight(one.base, one.experts))
    assert "expert 'expert-0': one expert only" in found
    assert "AWD does nothing" in found


def test_the_same_expert_twice_is_a_warning(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    copy = awd.open_checkpoint(save(tmp_path / "copy", one.expert_states[1]))
    (found,) = warnings(awd.preflight(one.base, [*one.experts, copy]))
    assert "expert 'copy': the same weights as expert 'expert-1'. Remove one" in found


def test_a_tensor_that_the_base_has_not_is_a_warning(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    expert = one.expert_states[0] | {"classifier.weight": torch.ones(2, 2)}
    odd = awd.open_checkpoint(save(tmp_path / "odd", expert))
    (found,) = warnings(awd.preflight(one.base, [odd, one.experts[1]]))
    assert "tensor 'classifier.weight' of expert 'odd'" in found
    assert "left out of the merge" in found


def test_a_match_has_no_problems_and_the_sizes_of_the_work(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    report = awd.preflight(one.base, one.experts)
    assert report.ok
    assert not report.problems
    n_bytes = sum(tensor.nbytes for tensor in one.base_state.values())
    floats = [tensor for tensor in one.base_state.values() if tensor.is_floating_point()]
    assert report.estimate.parameters == sum(tensor.numel() for tensor in floats)
    assert report.estimate.bytes_to_read == 4 * n_bytes
    assert report.estimate.bytes_to_write == n_bytes
