"""What a kill, a second writer or a file that cannot be read leaves behind, with real processes."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import pytest
import torch

import awd_core as awd
from awd_core import files, stream
from tests.child import SHARD_BYTES, work
from tests.helpers import Family, base_state, expert_states, family, load, same_bits, tree

SHAPES = {f"layers.{layer}.weight": (300, 700) for layer in range(12)}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Family:
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return Family(tmp_path_factory.mktemp("inputs"), base, expert_states(base, 2))


# Starts processes by forking one that has imported everything, a hundred times faster.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.child"])


def child(one: Family, kind: str, out: Path, pause: float = 0.005) -> BaseProcess:
    begun = CONTEXT.Event()
    arguments = kind, out, one.base_path, one.expert_paths, begun, pause
    process = CONTEXT.Process(target=work, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        # A child runs the main module first, and tests of pages leave the app as that.
        patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
        process.start()
    assert begun.wait(60)
    return process


def finish(one: Family, kind: str, out: Path) -> Path:
    if kind == "collect":
        one.study(out=out)
        return out
    recipe = one.recipe(method=kind)
    return awd.merge(recipe, out, device="cpu", shard_bytes=SHARD_BYTES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "kills"), [("collect", 25), ("task_arithmetic", 20), ("ties", 5)])
def test_killed_at_any_moment_the_next_run_goes_on_to_the_same_bytes(
    one: Family, tmp_path: Path, kind: str, kills: int
) -> None:
    inputs = tree(one.root)
    expected = tree(finish(one, kind, tmp_path / "whole"))
    chance = random.Random(0)
    out, killed = tmp_path / "out", 0
    while killed < kills:
        process = child(one, kind, out)
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:  # it was faster; begin anew
            assert tree(out) == expected
            shutil.rmtree(out)
            continue
        killed += 1
        assert not out.exists() or tree(out) == expected
        if out.exists():
            shutil.rmtree(out)
        if killed % 5 == 0:
            finish(one, kind, out)
            assert tree(out) == expected
            shutil.rmtree(out)
    assert tree(one.root) == inputs
    assert {path.name for path in tmp_path.iterdir()} <= {"whole", "out", ".out.partial"}


@pytest.mark.parametrize("kind", ["collect", "task_arithmetic"])
def test_a_run_that_goes_on_does_not_do_again_what_was_finished(
    one: Family, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    process = child(one, kind, out, pause=0.1)
    journal = tmp_path / ".out.partial" / ".journal"
    while not journal.exists() or journal.read_text().count("\n") < 4:
        time.sleep(0.005)
        assert process.is_alive()
    process.kill()
    process.join()
    done = set(re.findall(r'"tensor": "([^"]+)"', journal.read_text()))
    read: list[str] = []
    plain = stream.Reader.__call__

    def noted(reader: stream.Reader, span: stream.Span, scratch: bool = False) -> stream.Chunk:
        read.append(reader.tensor.name)
        return plain(reader, span, scratch)

    monkeypatch.setattr(stream.Reader, "__call__", noted)
    finish(one, kind, out)
    assert len(done) >= 3
    assert set(read) == set(SHAPES) - done
    assert tree(out) == tree(finish(one, kind, tmp_path / "whole"))


@pytest.mark.parametrize("kind", ["collect", "task_arithmetic"])
def test_a_run_that_ended_just_before_its_last_step_is_finished_to_the_same_bytes(
    one: Family, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", refuse)
        with pytest.raises(awd.AwdError, match="run it again to go on"):
            finish(one, kind, out)
    assert (tmp_path / ".out.partial" / ".what").exists()
    assert (tmp_path / ".out.partial" / ".journal").exists()
    assert tree(finish(one, kind, out)) == tree(finish(one, kind, tmp_path / "whole"))


@pytest.mark.parametrize("kind", ["collect", "task_arithmetic"])
def test_a_second_writer_into_one_folder_is_refused(one: Family, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    process = child(one, kind, out, pause=0.1)
    while not (tmp_path / ".out.partial" / ".what").exists():
        assert process.is_alive()
        time.sleep(0.002)
    with pytest.raises(awd.AwdError, match=r"Another process is writing this output.*Wait for it"):
        finish(one, kind, out)
    process.join()
    assert process.exitcode == 0
    assert tree(out) == tree(finish(one, kind, tmp_path / "whole"))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1000)


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [truncate, make_a_folder])
@pytest.mark.parametrize("kind", ["collect", "task_arithmetic"])
def test_a_file_that_cannot_be_read_is_named_and_the_run_goes_on_when_it_can(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    one = family(tmp_path / "inputs", 2)
    whole = finish(one, kind, tmp_path / "whole")
    expected = tree(whole)
    file = one.expert_paths[1] / "model.safetensors"
    good = file.read_bytes()
    base, experts = one.base, one.experts  # opened before the damage is done
    damage(file)
    out = tmp_path / "out"

    def run() -> None:
        if kind == "collect":
            awd.collect(base, experts, out, device="cpu")
        else:
            awd.merge(one.recipe(), out, device="cpu", checkpoints=(base, experts))

    with pytest.raises(awd.AwdError, match=r"cannot be read.*expert-1.*Check the disk"):
        run()
    assert not out.exists()
    if file.is_dir():
        file.rmdir()
    file.write_bytes(good)
    assert tree(finish(one, kind, out)) == expected


@pytest.mark.parametrize("shard_bytes", [1, 500, 900, 10**9])
def test_shards_hold_what_was_asked_for(tmp_path: Path, shard_bytes: int) -> None:
    one = family(tmp_path, 3)
    out = awd.merge(one.recipe(), tmp_path / "out", device="cpu", shard_bytes=shard_bytes)
    assert same_bits(load(out), one.state())
    written = sorted(out.glob("*.safetensors"))
    opened = awd.open_checkpoint(out)  # which checks the index
    sizes: dict[Path, list[int]] = {file: [] for file in written}
    for tensor in opened.stored.values():
        sizes[tensor.file].append(tensor.n_bytes)
    assert all(sum(own) <= shard_bytes or len(own) == 1 for own in sizes.values())
    assert (len(written) == 1) == (shard_bytes == 10**9)
    assert awd.verify(out, load=False).ok


def test_an_input_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    one = Family(tmp_path / "inputs", base_state(), expert_states(base_state(), 2))
    file = one.expert_paths[0] / "model.safetensors"
    steps: Iterator[None] = iter([None])

    def change_once(step: awd.Progress) -> None:
        for _ in steps:
            # At once: what reads it meanwhile finds it whole.
            shutil.copyfile(file, one.root / "another")
            (one.root / "another").replace(file)

    with pytest.raises(awd.AwdError, match=r"An input changed while it was read.*expert-0"):
        awd.merge(one.recipe(), tmp_path / "out", device="cpu", progress=change_once)
    assert not (tmp_path / "out").exists()
