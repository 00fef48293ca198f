"""The command line: verbs, machine-readable output, exit codes, a process that is stopped."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from awd_core import METHODS, Recipe, Settings, open_study, solve
from awd_core import __main__ as command_line
from awd_core.disentangle import PRESETS
from tests.helpers import QUERY, Family, base_state, family, save, tree


@pytest.fixture
def made(tmp_path: Path) -> Family:
    return family(tmp_path, n_experts=2)


def awd(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command, in this process."""
    monkeypatch.setattr(sys, "argv", ["awd", *map(str, arguments)])
    # Handlers of this process stay pytest's own.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def sources(made: Family) -> list[str]:
    return [str(made.base_path), *map(str, made.expert_paths)]


def test_the_way_from_folders_to_a_verified_merge(
    made: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: object) -> dict[str, Any]:
        code, out, err = awd(monkeypatch, capsys, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    assert run("inspect", *sources(made))["ok"] is True
    study = run("collect", *sources(made), "-o", tmp_path / "study")["study"]
    recipe = tmp_path / "recipe.yaml"
    solved = run("tune", study, "--granularity", "row", "--recipe", recipe)
    assert (
        solved["mean_absolute_cosine_of_groups_after"]
        < solved["mean_absolute_cosine_of_groups_before"]
    )
    merged = run("merge", recipe, tmp_path / "merged")["merged"]
    checks = {check["name"]: check["ok"] for check in run("verify", merged, "--no-load")["checks"]}
    assert all(checks.values())


def test_methods_lists_every_method_with_its_knobs_and_presets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = awd(monkeypatch, capsys, "methods", "--json")
    assert code == 0, err
    listed = {one["key"]: one for one in json.loads(out)["methods"]}
    assert list(listed) == [method.key for method in METHODS]
    assert listed["ties"]["knobs"][0]["name"] == "density"
    assert listed["ties"]["presets"]["fusionbench"]["coefficient"] == 0.3
    for key in listed:
        code, out, err = awd(monkeypatch, capsys, "methods", key)
        assert code == 0, err
        assert listed[key]["title"] in out
    code, out, err = awd(monkeypatch, capsys, "methods", "tie")
    assert code == 1
    assert "Did you mean 'ties'" in " ".join(err.split())


@pytest.fixture
def study(made: Family, tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    made.study(out=folder)
    return folder


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ([], {}),
        (["--until", "converged", "--steps", "50"], {"until": "converged", "steps": 50}),
        (["--radius", "0.2", "--penalty", "none"], {"radius": 0.2, "penalty": "none"}),
        (["--momentum", "0.5"], {"momentum": 0.5}),
        (["--weight-decay", "0.25"], {"weight_decay": 0.25}),
        (["--granularity", "row", "--alpha", "0"], {"granularity": "row", "alpha": 0.0}),
        *([["--preset", key], preset.fields] for key, preset in PRESETS.items()),
        (
            ["--preset", "norm-bounded", "--radius", "0.1", "--granularity", "tensor"],
            PRESETS["norm-bounded"].fields | {"radius": 0.1, "granularity": "tensor"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_tune_are_the_settings_that_are_solved(
    options: list[str],
    fields: dict[str, Any],
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "recipe.yaml"
    code, out, err = awd(monkeypatch, capsys, "tune", study, *options, "--recipe", recipe, "--json")
    assert code == 0, err
    settings = Settings(**fields)
    assert Recipe.load(recipe).disentangle == settings
    solved = solve(open_study(study), settings)
    assert json.loads(out)["redundant_norm"] == solved.redundant_norm
    assert json.loads(out)["outcome"] == solved.outcome
    assert ("alpha_critical" in json.loads(out)) == (settings.granularity == "model")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--preset", "papers"], "Did you mean 'paper'"),
        (["--preset", "paper", "--alpha-relative", "0.1"], "give either alpha"),
        (["--preset", "row", "--granularity", "model"], "row_average belongs to granularity row"),
        (["--preset", "converged", "--until", "never"], "'steps' or 'converged'"),
        (["--radius", "0.3"], "radius is a hard constraint"),
        (["--momentum", "1"], "less than 1"),
    ],
)
def test_settings_that_cannot_be_used_end_with_one(
    options: list[str],
    sentence: str,
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = awd(monkeypatch, capsys, "tune", study, *options, "--json")
    assert code == 1
    assert json.loads(out)["error"] == "RecipeError"
    assert sentence in err


def test_wrong_inputs_end_with_one_and_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = awd(monkeypatch, capsys, "inspect", tmp_path, tmp_path, "--json")
    assert code == 1
    assert json.loads(out)["error"] == "CheckpointError"
    assert "save_pretrained" in err


def test_experts_that_do_not_match_end_with_one(
    made: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (made.expert_paths[0] / "config.json").write_text('{"model_type": "other"}')
    code, out, _ = awd(monkeypatch, capsys, "inspect", *sources(made), "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False


def test_outputs_that_cannot_be_written_end_with_one(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "x"
    for arguments, said in (
        (("tune", study, "--recipe", nowhere), "The output cannot be written"),
        (("export-study", study, "-o", nowhere), "The output cannot be written"),
        (("spectra", study, "--events", nowhere), "Progress cannot be written"),
    ):
        code, _, err = awd(monkeypatch, capsys, *arguments)
        assert (code, said in err) == (1, True), err


def test_a_study_in_one_file_is_a_study(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWD_HOME", str(tmp_path / "home"))
    file = tmp_path / "one.awdstudy"
    assert awd(monkeypatch, capsys, "export-study", study, "-o", file)[0] == 0
    answers = [awd(monkeypatch, capsys, "tune", path, "--json") for path in (study, file)]
    assert answers[0] == answers[1]
    file.write_bytes(b"no study")
    assert "This is not a study" in awd(monkeypatch, capsys, "tune", file)[2]


def test_weights_that_are_not_finite_stand_in_the_way(
    made: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name: tensor.clone() for name, tensor in made.expert_states[1].items()}
    state[QUERY][:] = float("nan")
    save_file(state, made.expert_paths[1] / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = awd(monkeypatch, capsys, "inspect", *sources(made), "--json")
    problems = json.loads(out, parse_constant=pytest.fail)["problems"]
    assert code == 1
    assert [one["where"] for one in problems if one["kind"] == "finite"] == ["expert 'expert-1'"]


def test_nothing_left_to_merge_is_refused(
    made: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = awd(
        monkeypatch, capsys, "collect", *sources(made), "-o", tmp_path / "out", "--exclude", "*"
    )
    assert code == 1
    assert "none to merge" in err


@pytest.mark.parametrize("arguments", [("merge",), ("no-such-verb",), ("tune", "x", "--nope")])
def test_usage_errors_end_with_two(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert awd(monkeypatch, capsys, *arguments)[0] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_ends_with_130_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    events = tmp_path / "events.jsonl"
    before = tree(tmp_path)
    arguments = ["collect", "zoo", "-o", str(tmp_path / "study"), "--events", str(events)]
    child = subprocess.Popen(
        [sys.executable, "-m", "awd_core", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (events.exists() and events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(number)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "nothing half-written" in err
    assert json.loads(events.read_text().splitlines()[-1])["state"] == "cancelled"
    events.unlink()
    assert tree(tmp_path) == before


def test_inspect_tells_the_base_the_cost_and_what_to_do(
    made: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = save(tmp_path / "wrong", base_state(seed=7))
    arguments = ["inspect", wrong, *made.expert_paths, "--candidate-base", made.base_path]
    code, out, _ = awd(monkeypatch, capsys, *arguments, "--json")
    found = json.loads(out)
    assert code == 0
    (row,) = found["problems"]
    assert (row["kind"], row["remedy"]) == ("base", "Use 'base' as the base.")
    assert [fit["base"] for fit in found["base_fit"]] == ["wrong", "base"]
    assert found["estimate"]["verdict"] in ("fits", "tight", "will not fit")
    code, out, _ = awd(monkeypatch, capsys, *arguments, "--strict")
    assert code == 1
    assert "warning base: base 'wrong': experts at" in out
    assert "Use 'base' as the base." in out
    assert "GB free" in out


def test_many_rows_of_a_kind_are_counted_for_a_person_and_listed_for_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save(tmp_path / "base", {f"[/w]{n}": torch.ones(2) for n in range(9)})
    expert = save(tmp_path / "expert", {"[/w]0": torch.ones(2)})
    code, out, _ = awd(monkeypatch, capsys, "inspect", base, expert)
    assert code == 1
    assert "error missing: tensor '[/w]1' of expert 'expert': no such tensor" in out
    assert "error 3 more of kind missing" in out
    code, out, _ = awd(monkeypatch, capsys, "inspect", base, expert, "--json")
    assert sum(row["kind"] == "missing" for row in json.loads(out)["problems"]) == 8


def test_spectra_are_added_to_a_study_that_is_there(
    made: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = tmp_path / "study"
    assert awd(monkeypatch, capsys, "collect", *sources(made), "-o", study)[0] == 0
    before = open_study(study)
    assert not before.has_spectra
    code, out, _ = awd(monkeypatch, capsys, "spectra", study, "--json")
    assert code == 0
    after = open_study(study)
    assert json.loads(out)["matrices"] == len(after.spectra[0]) > 0
    assert after.digest == before.digest
    made.expert_paths[0].joinpath("model.safetensors").unlink()
    assert awd(monkeypatch, capsys, "spectra", tmp_path / "nothing")[0] == 1


def test_pickled_weights_need_leave_at_every_verb(
    made: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder, state in zip(
        [made.base_path, *made.expert_paths],
        [made.base_state, *made.expert_states],
        strict=True,
    ):
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(made.recipe(coefficient=0.3).to_yaml())
    for arguments in (
        ("inspect", *sources(made)),
        ("collect", *sources(made), "-o", tmp_path / "study"),
        ("merge", recipe, out),
        ("verify", out, "--no-load"),
    ):
        if arguments[0] != "verify":
            code, _, error = awd(monkeypatch, capsys, *arguments)
            assert (code, "--allow-pickle" in error) == (1, True)
        code, _, error = awd(monkeypatch, capsys, *arguments, "--allow-pickle")
        assert code == 0, error


def test_common_rows_go_from_the_study_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("base", "one", "two")
    for seed, (name, rows) in enumerate(zip(names, (5, 6, 5), strict=True)):
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(rows, 4, generator=generator)
        save(tmp_path / name, {"model.embed_tokens.weight": table})
    folders = [tmp_path / name for name in names]
    study, recipe = tmp_path / "study", tmp_path / "recipe.yaml"
    code, _, error = awd(monkeypatch, capsys, "collect", *folders, "-o", study)
    assert (code, "common_rows" in error) == (1, True)
    option = ("--vocabulary", "common_rows")
    assert awd(monkeypatch, capsys, "collect", *folders, "-o", study, *option)[0] == 0
    assert awd(monkeypatch, capsys, "tune", study, "--recipe", recipe)[0] == 0
    assert Recipe.load(recipe).vocabulary == "common_rows"
    assert awd(monkeypatch, capsys, "merge", recipe, tmp_path / "out")[0] == 0
    assert awd(monkeypatch, capsys, "inspect", *folders, "--vocabulary", "all")[0] == 2
