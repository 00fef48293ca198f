"""How a job ended is said on its own page, and what a verification found."""

import os
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import awd_core as awd
from dashboard import jobs
from tests.helpers import Family, family
from tests.screens.pages import done, on, press, small_study


@pytest.fixture
def models(tmp_path: Path, roots: Path, monkeypatch: pytest.MonkeyPatch) -> Family:
    monkeypatch.setenv("AWD_STUDY", str(small_study(tmp_path / "open").path))
    return family(tmp_path / "models", n_experts=2)


def after(job: jobs.Job, page: str) -> AppTest:
    """A page in the session that started a job, which has ended well."""
    test = on(page)
    test.session_state["job"] = job.id
    done(test)
    return test


def said(test: AppTest) -> str:
    return " ".join(box.value for box in (*test.success, *test.error))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_verification_says_which_check_failed(models: Family, damaged: bool) -> None:
    out = awd.merge(models.recipe(), models.root / "out")
    if damaged:
        (out / "config.json").write_text("{}")
    job = jobs.start("Verification", ("verify", str(out), "--no-load", "--json"), out)
    test = after(job, "merge")
    assert ("is not what its recipe makes" if damaged else "Verification is done") in said(test)
    (checks,) = [table.value for table in test.table if "passed" in table.value.columns]
    assert checks.loc["files are as written", "passed"].endswith("no" if damaged else "yes")
    assert ("config.json" in checks.loc["files are as written", "what was found"]) == damaged
    assert "Verification" not in said(after(job, "open"))


def test_an_export_is_found_again_after_a_reload(
    models: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_ROOTS", f"{models.root.parent}{os.pathsep}{awd.files.home()}")
    test = on("merge")
    (field,) = [one for one in test.text_input if one.label == "Output folder"]
    recipe = models.root / "recipe.yaml"
    recipe.write_text(models.recipe().to_yaml())
    out = Path(field.value or "").resolve()
    job = jobs.start("Export", ("merge", str(recipe), str(out)), out)
    again = on("merge")
    assert again.session_state["job"] == job.id
    done(again)
    assert "Verify" in [button.label for button in again.button]


def test_a_study_is_offered_for_the_checkpoints_that_were_asked_for(models: Family) -> None:
    sources = (str(models.base_path), *map(str, models.expert_paths))
    out = models.root / "study"
    job = jobs.start("Reading task vectors", ("collect", *sources, "--output", str(out)), out)
    test = after(job, "open")
    test.text_input(key="base").set_value(sources[0])
    for experts, is_asked in ((sources[1:], True), (sources[1:2], False)):
        test.text_area(key="expert_lines").set_value("\n".join(experts)).run()
        assert not test.exception
        assert ("Reading task vectors is done" in said(test)) == is_asked
        assert ("Look at it" in [button.label for button in test.button]) == is_asked
    assert "Reading task vectors" not in said(after(job, "merge"))


def test_an_output_that_exists_leaves_the_page_whole(models: Family) -> None:
    test = on("merge")
    (field,) = [one for one in test.text_input if one.label == "Output folder"]
    field.set_value(str(models.root)).run()
    press(test, "Export")
    assert "The output exists already" in said(test)
    assert "The same merge as text" in [heading.value for heading in test.subheader]


def test_every_remedy_is_seen(models: Family) -> None:
    test = on("open")
    test.text_input(key="base").set_value("zoo:base")
    test.text_area(key="expert_lines").set_value("\n".join(map(str, models.expert_paths))).run()
    assert not test.exception
    base, *experts = map(awd.open_checkpoint, ("zoo:base", *models.expert_paths))
    problems = awd.preflight(base, experts).problems
    said = [one.value for one in test.markdown if "What to do" in one.value]
    assert all(any(problem.remedy in one for one in said) for problem in problems)
    assert len(said) < 20 < len(problems)
    whole = [one.value for one in test.dataframe if "remedy" in one.value.columns]
    assert [len(one) for one in whole] == [len(problems)]
