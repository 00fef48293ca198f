"""Try on texts of one's own: a job of its own, whose numbers are those of the evaluation."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import awd_core as awd
from awd_core.evaluation.own import evaluate_own
from awd_core.evaluation.own_results import read_evaluated
from awd_core.evaluation.own_texts import read_texts
from dashboard import jobs
from dashboard.own_texts import FOLDER
from tests.own_models import own_family, own_texts
from tests.screens.pages import done, ended, figure, numbers, on, press, small_study

START = "Evaluate base, experts and this merge"


def study_of(root: Path, kind: str) -> awd.Study:
    base, experts = own_family(root / "models", kind)
    opened = [awd.open_checkpoint(path) for path in (base, *experts)]
    return awd.collect(opened[0], opened[1:], root / "study")


def said(test: AppTest) -> str:
    return " ".join(one.value for one in [*test.info, *test.caption, *test.markdown, *test.error])


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_base_experts_and_merge_are_evaluated_in_a_job_and_kept_with_the_study(
    roots: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    study = study_of(roots, kind)
    monkeypatch.setenv("AWD_STUDY", str(study.path))
    texts = own_texts(roots / "mine.jsonl")
    test = on("evaluate")
    assert not test.exception
    test.text_input(key="own_path").set_value(str(texts)).run()
    assert "tasks: topic, verb" in said(test)
    press(test, START)
    done(test)
    assert study.path is not None
    (file,) = (study.path / FOLDER).glob("*.json")
    recipe = awd.Recipe.from_yaml(read_evaluated(file).recipe)
    assert recipe.coefficient == test.slider(key="lambda").value
    expected = evaluate_own(recipe, read_texts(texts), study=study)
    drawn = figure(test, "own_scores")["data"]
    assert [trace["name"] for trace in drawn] == ["topic", "verb"]
    for trace in drawn:
        own = [one for one in expected if one.task == trace["name"]]
        assert trace["x"] == ["base", "expert-0", "expert-1", "merge"]
        np.testing.assert_allclose(numbers(trace["y"]), [one.value for one in own], rtol=1e-5)
    assert "this setting" in test.selectbox(key="own_kept").options[0]
    assert not [button for button in test.button if button.label == START]
    test.slider(key="lambda").set_value(1.0).run()
    assert "another setting" in test.selectbox(key="own_kept").options[0]
    assert [button for button in test.button if button.label == START]


@pytest.mark.parametrize("begun", [False, True], ids=["while it starts", "while it evaluates"])
def test_a_cancelled_evaluation_ends_its_process_and_leaves_nothing(
    roots: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    study = study_of(roots, "causal")
    assert study.path is not None
    monkeypatch.setenv("AWD_STUDY", str(study.path))
    texts = own_texts(roots / "mine.jsonl")
    texts.write_text("\n".join([texts.read_text()] * 300))
    test = on("evaluate")
    test.text_input(key="own_path").set_value(str(texts)).run()
    before = sorted(study.path.rglob("*"))
    press(test, START)
    job = jobs.load(test.session_state["job"])
    assert job is not None
    deadline = time.monotonic() + 120
    while begun and jobs.status(job).fraction == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert jobs.status(job).state == "running"
    press(test, "Cancel")
    assert ended(test)[1].state == "cancelled"
    # It says so before it ends.
    deadline = time.monotonic() + 60
    while jobs._alive(job.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.killpg(job.pid, 0)
    test.run()
    assert "was cancelled" in said(test)
    assert sorted(study.path.rglob("*")) == before
    assert [button for button in test.button if button.label == START]


def test_a_job_that_cannot_be_done_says_why(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(roots, "encoder")
    monkeypatch.setenv("AWD_STUDY", str(study.path))
    texts = roots / "mine.txt"
    texts.write_text("the cat sleeps\n\na dog runs")
    test = on("evaluate")
    test.text_input(key="own_path").set_value(str(texts)).run()
    press(test, START)
    assert ended(test)[1].state == "failed"
    test.run()
    assert "without a label" in said(test)
    assert study.path is not None
    assert not (study.path / FOLDER).exists()


def test_files_outside_and_files_of_other_kinds_are_refused(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(roots, "causal")
    monkeypatch.setenv("AWD_STUDY", str(study.path))
    test = on("evaluate")
    for path, words in (
        ("/etc/passwd", "outside"),
        (roots / "study" / "study.json", "another kind"),
    ):
        test.text_input(key="own_path").set_value(str(path)).run()
        assert words in said(test)
        assert not [button for button in test.button if button.label == START]


def test_models_that_cannot_be_evaluated_say_so(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_STUDY", str(small_study(roots).path))
    test = on("evaluate")
    assert not test.exception
    assert "cannot be evaluated here" in said(test)
    assert "lm_eval" in " ".join(code.value for code in test.code)


def test_a_dropped_file_of_texts_is_read_as_one_at_a_path(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_STUDY", str(study_of(roots, "causal").path))
    test = on("evaluate")
    test.file_uploader(key="own_file").set_value(("../mine.csv", b"text,label\na,b\n", "text/csv"))
    test.run()
    assert not test.exception
    assert "`mine.csv`: 1 texts, 1 labels, tasks: mine" in said(test)
    assert [button for button in test.button if button.label == START]
    test.file_uploader(key="own_file").set_value(("mine.csv", b"words\na\n", "text/csv")).run()
    assert "cannot be read" in said(test)
