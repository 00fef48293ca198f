"""What a merge leaves on disk: an ordinary model folder that says what it is and can be checked."""

import ctypes
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModel

import awd_core as awd
from awd_core import files
from awd_core.card import model_card
from tests.helpers import (
    QUERY,
    Family,
    base_state,
    bits,
    expert_states,
    family,
    load,
    save,
    save_bert,
    tree,
)

SIDECARS = {
    "tokenizer.json": "{}",
    "generation_config.json": '{"max_length": 3}',
    "chat_template.jinja": "{{ messages }}",
    "1_Pooling/config.json": '{"pooling": "mean"}',
    "vocab.txt": "a\nb\n",
}
NOT_SIDECARS = {
    "README.md": "the base's own card",
    "pytorch_model.bin": "pickle",
    "onnx/model.onnx": "other weights",
    "tf_model.h5": "other weights",
    ".git/config": "hidden",
    ".cache/huggingface/download.lock": "hidden",
}


@pytest.fixture
def one(tmp_path: Path) -> Family:
    found = family(tmp_path / "inputs", 2)
    for name, text in (SIDECARS | NOT_SIDECARS).items():
        file = found.base_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return found


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_sidecars_are_the_base_s_and_nothing_else_is_copied(one: Family, tmp_path: Path) -> None:
    out = awd.merge(one.recipe(), tmp_path / "out", device="cpu")
    own = {"model.safetensors", "recipe.yaml", "provenance.json", "README.md"}
    written = {name for name, what in tree(out).items() if what != "folder"}
    assert written == set(SIDECARS) | {"config.json"} | own
    for name, text in SIDECARS.items():
        assert (out / name).read_text() == text
    assert (out / "config.json").read_bytes() == (one.base_path / "config.json").read_bytes()


@pytest.mark.parametrize("shards", [None, 1, 3])
def test_the_layout_is_the_base_s(tmp_path: Path, shards: int | None) -> None:
    one = family(tmp_path, 2, shards=shards)
    out = awd.merge(one.recipe(), tmp_path / "out", device="cpu")
    names = {file.name for file in out.glob("*.safetensors")}
    if shards == 3:
        assert names == {file.name for file in one.base_path.glob("*.safetensors")}
        index = json.loads((out / "model.safetensors.index.json").read_text())
        before = json.loads((one.base_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == before["weight_map"]
        n_bytes = sum(tensor.nbytes for tensor in one.base_state.values())
        assert index["metadata"]["total_size"] == n_bytes
    else:
        assert names == {"model.safetensors"}
        assert not (out / "model.safetensors.index.json").exists()
    for file in out.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["format"] == "pt"


def test_the_same_recipe_gives_the_same_bytes(one: Family, tmp_path: Path) -> None:
    recipe = one.recipe(method="ties", disentangle={"granularity": "row", "steps": 5})
    outs = [awd.merge(recipe, tmp_path / name, device="cpu") for name in ("a", "b")]
    assert tree(outs[0]) == tree(outs[1])


def test_the_written_recipe_repeats_the_merge(one: Family, tmp_path: Path) -> None:
    recipe = one.recipe(coefficients=[0.2, 0.9], exclude=["*.bias"])
    first = awd.merge(recipe, tmp_path / "first", device="cpu")
    again = awd.Recipe.load(first / "recipe.yaml")
    assert again == recipe
    assert tree(awd.merge(again, tmp_path / "again", device="cpu")) == tree(first)


def test_a_merge_can_be_the_base_of_a_merge(one: Family, tmp_path: Path) -> None:
    first = awd.merge(one.recipe(coefficient=0.5), tmp_path / "first", device="cpu")
    recipe = awd.Recipe(base=str(first), experts=[str(one.expert_paths[0])], coefficient=0.0)
    second = awd.merge(recipe, tmp_path / "second", device="cpu")
    assert awd.Recipe.load(second / "recipe.yaml") == recipe
    assert {n: bits(t) for n, t in load(second).items()} == {
        n: bits(t) for n, t in load(first).items()
    }


def test_provenance_holds_the_hash_of_every_input_and_output(one: Family, tmp_path: Path) -> None:
    recipe = one.recipe(exclude=["*.bias"], seed=7)
    out = awd.merge(recipe, tmp_path / "out", device="cpu")
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["outputs"] == {
        name: what
        for name, what in tree(out).items()
        if what != "folder" and name != "provenance.json"
    }
    inputs = [one.base_path, *one.expert_paths]
    assert [entry["path"] for entry in provenance["inputs"]] == [str(path) for path in inputs]
    for entry, path in zip(provenance["inputs"], inputs, strict=True):
        assert entry["sha256"] == {"model.safetensors": sha256(path / "model.safetensors")}
    assert provenance["recipe_digest"] == recipe.digest
    assert provenance["kept_from_base"] == [n for n in one.base.stored if n.endswith(".bias")]
    assert provenance["seed"] == 7
    assert provenance["device"] == "cpu"
    assert provenance["versions"]["torch"] == torch.__version__


def card(out: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize("disentangle", [None, {"granularity": "row", "steps": 5}])
def test_the_card_says_what_the_merge_is_made_of(
    one: Family, tmp_path: Path, disentangle: dict[str, Any] | None
) -> None:
    recipe = one.recipe(
        method="ties", coefficient=0.75, disentangle=disentangle, exclude=["*.bias"]
    )
    front, text = card(awd.merge(recipe, tmp_path / "out", device="cpu"))
    tags = ["merge", "ties"] + (["adaptive-weight-disentanglement"] if disentangle else [])
    assert front["tags"] == tags
    assert front["base_model_relation"] == "merge"
    assert front["library_name"] == "transformers"
    for expert in ("expert-0", "expert-1"):
        assert f"| {expert} | weights | 0.75 |" in text
    assert "1 tensors were excluded" in text
    assert ("one redundant vector was subtracted" in text.replace("\n", " ")) == bool(disentangle)


@pytest.mark.parametrize(
    ("disentangle", "words"),
    [
        ({}, ["for the whole model", "alpha = 0.1 (in the paper's units)", "in 300 steps of"]),
        (
            {"granularity": "tensor", "alpha_relative": 0.25, "steps": 5, "momentum": 0.5},
            ["for each tensor", "alpha = 0.25 (times alpha_crit", "with momentum 0.5"],
        ),
        (
            {"penalty": "none", "radius": 0.2, "until": "converged", "steps": 40},
            ["at most 0.2 times the mean norm", "until it converged, in at most 40 steps"],
        ),
        ({"penalty": "none", "weight_decay": 0.5}, ["no penalty", "with weight decay 0.5"]),
        ({"penalty": "l2_squared", "granularity": "row"}, ["on the square of its norm"]),
        (
            {"penalty": "l1", "granularity": "tensor", "steps": 3},
            ["on the sum of its absolute values", "This penalty leaves the span"],
        ),
        (
            {"optimizer": "adam", "granularity": "tensor", "steps": 3},
            ["in 3 steps of Adam", "Adam leaves the span of the task vectors"],
        ),
    ],
    ids=["paper", "tensor", "radius", "no penalty", "l2 squared", "l1", "adam"],
)
def test_the_card_says_in_words_how_awd_was_set(
    one: Family, tmp_path: Path, disentangle: dict[str, Any], words: list[str]
) -> None:
    front, text = card(awd.merge(one.recipe(disentangle=disentangle), tmp_path / "out"))
    said = " ".join(text.split())
    for expected in words:
        assert expected in said
    assert "adaptive-weight-disentanglement" in front["tags"]
    dense = disentangle.get("penalty") == "l1" or "optimizer" in disentangle
    assert ("leaves the span" in said) == dense
    assert ("of the mean norm of a task vector. |" in said) == (not dense)


@pytest.mark.parametrize("equalise", [False, True])
def test_the_card_says_whether_norms_were_equalised(
    one: Family, tmp_path: Path, equalise: bool
) -> None:
    _, text = card(awd.merge(one.recipe(equalise_norms=equalise), tmp_path / "out"))
    assert ("scaled to their mean length" in text) == equalise


def test_the_card_names_no_folder_of_this_machine(one: Family, tmp_path: Path) -> None:
    front, text = card(awd.merge(one.recipe(), tmp_path / "out", device="cpu"))
    assert str(tmp_path) not in text
    assert front["base_model"] == []


def test_the_card_lists_hub_ids(one: Family, tmp_path: Path) -> None:
    recipe = one.recipe()
    checkpoints = one.base, one.experts
    plan = awd.plan_merge(
        recipe.model_copy(update={"base": "owner/base@main", "experts": ("owner/a", "owner/b")}),
        checkpoints=checkpoints,
        device="cpu",
    )
    front = yaml.safe_load(model_card(plan).split("---\n")[1])
    assert front["base_model"] == ["owner/base", "owner/a", "owner/b"]


def test_another_type_stands_in_the_configuration(one: Family, tmp_path: Path) -> None:
    out = awd.merge(one.recipe(dtype="bfloat16"), tmp_path / "out", device="cpu")
    config = json.loads((out / "config.json").read_text())
    before = json.loads((one.base_path / "config.json").read_text())
    assert {config.pop(key, None) for key in ("dtype", "torch_dtype")} == {"bfloat16", None}
    assert config == before


# --- transformers reads it ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["base", "bfloat16"])
def test_transformers_loads_what_was_merged(tmp_path: Path, dtype: str) -> None:
    base, *experts = (save_bert(tmp_path / str(seed), seed) for seed in range(3))
    recipe = awd.Recipe(
        base=str(base), experts=[str(path) for path in experts], coefficient=0.4, dtype=dtype
    )
    out = awd.merge(recipe, tmp_path / "out", device="cpu")
    model, info = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == (torch.float32 if dtype == "base" else torch.bfloat16)
    state = awd.merged_state(awd.plan_merge(recipe, device="cpu"))
    for name, tensor in model.state_dict().items():
        assert bits(tensor) == bits(state[name])
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).last_hidden_state).all()
    report = awd.verify(out)
    assert report.ok, report.checks
    assert [check.ok for check in report.checks] == [True] * 4


def test_a_model_with_a_head_loads_as_what_it_is(tmp_path: Path) -> None:
    base, expert = (save_bert(tmp_path / str(seed), seed, head=True) for seed in range(2))
    out = awd.merge(awd.Recipe(base=str(base), experts=[str(expert)]), tmp_path / "out")
    report = awd.verify(out)
    assert report.ok, report.checks
    assert "BertForMaskedLM" in report.checks[-1].detail


# --- verify ---------------------------------------------------------------------------------------

WHOLE, INPUTS, DERIVED = "files are as written", "inputs are as they were", "tensors follow"


@pytest.fixture
def merged(one: Family, tmp_path: Path) -> Path:
    recipe = one.recipe(method="ties", disentangle={"granularity": "block", "steps": 5})
    return awd.merge(recipe, tmp_path / "out", device="cpu")


def failed(folder: Path) -> list[str]:
    """Names of the checks that failed, without loading."""
    report = awd.verify(folder, load=False)
    assert report.ok == (not [check for check in report.checks if check.ok is False])
    return [check.name for check in report.checks if check.ok is False]


def test_a_merge_that_nobody_touched_verifies(merged: Path) -> None:
    report = awd.verify(merged, load=False)
    assert [check.ok for check in report.checks] == [True, True, True]


def flip_a_weight(out: Path) -> None:
    file = out / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)


def flip_the_header(out: Path) -> None:
    file = out / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[9] ^= 1
    file.write_bytes(raw)


def drop_weights(out: Path) -> None:
    (out / "model.safetensors").unlink()


def drop_recipe(out: Path) -> None:
    (out / "recipe.yaml").unlink()


def drop_sidecar(out: Path) -> None:
    (out / "tokenizer.json").unlink()


def change_sidecar(out: Path) -> None:
    (out / "tokenizer.json").write_text("{} ")


def drop_an_expert(out: Path) -> None:
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    recipe["experts"].pop()
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def change_recipe(out: Path) -> None:
    file = out / "recipe.yaml"
    file.write_text(file.read_text() + "coefficient: 0.5\n")


def break_recipe(out: Path) -> None:
    (out / "recipe.yaml").write_text("base: [")


def change_input(out: Path) -> None:
    expert = Path(json.loads((out / "provenance.json").read_text())["inputs"][1]["path"])
    state = load(expert)
    state[QUERY][1, 1] += 5
    save_file(state, expert / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "checks"),
    [
        (flip_a_weight, [WHOLE, DERIVED]),
        (flip_the_header, [WHOLE, DERIVED]),
        (drop_weights, [WHOLE, DERIVED]),
        (drop_recipe, [WHOLE, DERIVED]),
        (drop_sidecar, [WHOLE]),
        (change_sidecar, [WHOLE]),
        (change_recipe, [WHOLE, DERIVED]),
        (break_recipe, [WHOLE, DERIVED]),
        (drop_an_expert, [WHOLE, DERIVED]),
        (change_input, [INPUTS, DERIVED]),
    ],
)
def test_verify_finds_what_was_changed(
    merged: Path, damage: Callable[[Path], None], checks: list[str]
) -> None:
    damage(merged)
    found = failed(merged)
    assert len(found) == len(checks)
    for name, check in zip(found, checks, strict=True):
        assert name.startswith(check)


def test_verify_sees_through_hashes_that_were_made_to_fit(merged: Path) -> None:
    flip_a_weight(merged)
    file = merged / "provenance.json"
    provenance = json.loads(file.read_text())
    provenance["outputs"]["model.safetensors"] = sha256(merged / "model.safetensors")
    file.write_text(json.dumps(provenance))
    assert [name.startswith(DERIVED) for name in failed(merged)] == [True]


def test_inputs_that_are_gone_are_not_a_failure(merged: Path, one: Family) -> None:
    shutil.rmtree(one.root)
    report = awd.verify(merged, load=False)
    assert report.ok
    assert [check.ok for check in report.checks] == [True, None, None]


def test_a_recipe_of_relative_paths_verifies_from_anywhere(
    one: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(one.root)
    recipe = awd.Recipe(base="base", experts=["expert-0", "./expert-1"])
    out = awd.merge(recipe, tmp_path / "out", device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [check.ok for check in awd.verify(out, load=False).checks] == [True, True, True]


def test_what_transformers_cannot_load_fails(merged: Path) -> None:
    report = awd.verify(merged)  # the tiny model is of no architecture that transformers knows
    assert report.checks[-1].ok is False
    assert "transformers cannot load the folder" in report.checks[-1].detail


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        '{"inputs": []}',
        '{"inputs": [], "outputs": [], "device": "cpu"}',
        '{"inputs": "x", "outputs": {}, "device": "cpu"}',
        '{"inputs": [{"label": "a", "path": "b"}], "outputs": {}, "device": "cpu"}',
        '{"inputs": [], "outputs": {}, "device": null}',
    ],
)
def test_a_folder_that_no_merge_wrote_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = save(tmp_path / "m", base_state())
    if content is not None:
        (folder / "provenance.json").write_text(content)
    with pytest.raises(awd.AwdError, match=r"not a folder that `awd merge` wrote.*OUT folder"):
        awd.verify(folder)


# --- whole or absent ------------------------------------------------------------------------------


def test_too_little_space_is_refused_before_anything_is_written(
    one: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)
    n_bytes = sum(tensor.nbytes for tensor in one.base_state.values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=n_bytes - 1))
    with pytest.raises(awd.AwdError, match=r"not enough space.* kB free.*Free some space"):
        awd.merge(one.recipe(), tmp_path / "deep" / "er" / "out")
    assert tree(tmp_path) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=n_bytes))
    awd.merge(one.recipe(), tmp_path / "out")


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9_960, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (90_900_000, "91 MB"),
        (2.26e9, "2.3 GB"),
        (3.2e15, "3,200 TB"),
    ],
)
def test_sizes_are_said_in_a_unit_that_shows_them(n_bytes: float, said: str) -> None:
    assert files.sized(n_bytes) == said


def test_a_name_that_no_disk_takes_is_refused(one: Family, tmp_path: Path) -> None:
    with pytest.raises(awd.AwdError, match=r"cannot be written.*too long.*another name"):
        awd.merge(one.recipe(), tmp_path / ("m" * 300))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    libc, place = ctypes.CDLL(None, use_errno=True), tmp_path / "disk"
    place.mkdir()
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=64k"):
        pytest.skip(f"cannot mount a small disk: {os.strerror(ctypes.get_errno())}")
    yield place
    libc.umount2(bytes(place), 2)


def test_a_disk_that_is_too_small_is_refused_first(small_disk: Path, tmp_path: Path) -> None:
    base = {"a.weight": torch.ones(200, 200)}
    one = Family(tmp_path / "inputs", base, expert_states(base, 1))
    with pytest.raises(awd.AwdError, match=r"not enough space.*Free some space"):
        awd.merge(one.recipe(), small_disk / "out")
    assert not list(small_disk.iterdir())


def enlarge(disk: Path) -> None:
    """Give a file system of `small_disk` 8 MB."""
    remount = 32
    assert not ctypes.CDLL(None).mount(b"tmpfs", bytes(disk), b"tmpfs", remount, b"size=8m")


def test_a_study_on_a_full_disk_goes_on_when_there_is_space(
    small_disk: Path, tmp_path: Path
) -> None:
    base = {"a.weight": torch.ones(3000, 2)}
    one = Family(tmp_path / "inputs", base, expert_states(base, 3))
    message = r"cannot be written.*disk has space.*stays in .study.partial: run it again"
    with pytest.raises(awd.AwdError, match=message):
        one.study(out=small_disk / "study")
    assert [path.name for path in small_disk.iterdir()] == [".study.partial"]
    enlarge(small_disk)
    one.study(out=small_disk / "study")
    one.study(out=tmp_path / "whole")
    assert tree(small_disk / "study") == tree(tmp_path / "whole")
    assert [path.name for path in small_disk.iterdir()] == ["study"]


def test_a_merge_on_a_full_disk_goes_on_when_there_is_space(
    small_disk: Path, one: Family, tmp_path: Path
) -> None:
    (one.base_path / "tokenizer.json").write_text("x" * 100_000)  # what the first look left out
    message = r"cannot be written.*No space left.*disk has space.*stays in .out.partial: run it"
    with pytest.raises(awd.AwdError, match=message):
        awd.merge(one.recipe(), small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == [".out.partial"]
    enlarge(small_disk)
    awd.merge(one.recipe(), small_disk / "out")
    awd.merge(one.recipe(), tmp_path / "whole")
    assert tree(small_disk / "out") == tree(tmp_path / "whole")
    assert [path.name for path in small_disk.iterdir()] == ["out"]


def test_a_write_that_fails_midway_leaves_nothing_that_looks_whole(
    one: Family, tmp_path: Path
) -> None:
    before = tree(one.root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(awd.AwdError, match=r"cannot be written.*File too large"):
            awd.merge(one.recipe(), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()
    assert tree(one.root) == before
    awd.merge(one.recipe(), tmp_path / "out")
    awd.merge(one.recipe(), tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_an_error_inside_leaves_nothing_behind(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        with files.whole_folder(folder) as partial:
            (partial / "half").write_text("x")
            assert not folder.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_refusal_of_the_disk_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.Journal, "SECONDS_BETWEEN", 0.0)
    with pytest.raises(FileNotFoundError, match="lost"), files.Journal(tmp_path) as journal:
        journal.add({"tensor": "a"}, tmp_path / "lost")
    assert files.Journal(tmp_path).entries() == []


def test_a_journal_holds_every_step_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.Journal, "SECONDS_BETWEEN", 0.0)
    with files.Journal(tmp_path) as journal:
        for step in range(50):
            journal.add(step, tmp_path)
        journal.flush()
    assert files.Journal(tmp_path).entries() == list(range(50))


def test_a_folder_that_somebody_else_made_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fill() -> None:
        with files.whole_folder(out) as partial:
            (partial / "mine").write_text("x")
            out.mkdir()
            (out / "theirs").write_text("x")

    with pytest.raises(awd.AwdError, match="output exists already"):
        fill()
    assert set(tree(tmp_path)) == {"out", "out/theirs"}


def test_a_link_to_nowhere_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(awd.AwdError, match="output exists already"):
        files.require_new(tmp_path / "out")


def test_a_weight_that_changes_type_is_one_tensor_of_the_same_name(tmp_path: Path) -> None:
    base = base_state(dtype=torch.bfloat16)
    one = Family(tmp_path, base, expert_states(base, 2))
    out = awd.merge(one.recipe(dtype="float32", coefficient=0.5), tmp_path / "out", device="cpu")
    assert load(out)[QUERY].dtype == torch.float32
