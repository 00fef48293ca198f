"""Merge, Try, Compare, Report and the settings' journal: what a review needs, without a browser."""

import io
import json
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from streamlit.testing.v1 import AppTest

import awd_core as awd
from analysis import tables
from analysis.exhibits import EXHIBITS, FORMATS, all_files, as_file, exhibits
from analysis.lm_eval import read_lm_eval
from analysis.measures import measure
from analysis.overview import overview
from analysis.view import View
from awd_core import archive, zoo
from awd_core.evaluation import LIVE_SAMPLE, evaluate_recipe
from awd_core.mergekit import to_mergekit
from dashboard import merge_controls, studies
from tests.helpers import family
from tests.html_tables import read_matrices
from tests.screens.pages import (
    SECONDS,
    START,
    figure,
    linked,
    matrices,
    numbers,
    on,
    overview_of,
    press,
    small_study,
    view,
)


def recipe_of(test: AppTest) -> awd.Recipe:
    return awd.Recipe.from_yaml(test.switch_page("views/merge.py").run().code[0].value)


def frame_with(test: AppTest, *columns: str) -> pd.DataFrame:
    """The first table that has these columns."""
    shown = [frame.value for frame in (*test.table, *test.dataframe)]
    return next(frame for frame in shown if set(columns) <= set(frame.columns))


def until(test: AppTest, done: Any, what: str) -> None:
    """Run the page again until something is there."""
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
        test.run()


# --- Merge ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [method.key for method in awd.METHODS])
def test_the_form_of_every_method_follows_from_its_declaration(key: str) -> None:
    method = awd.find_method(key)
    if method not in merge_controls.fitting_methods(8):
        pytest.skip("not for eight experts and one model")
    test = on("merge")
    test.selectbox(key="method").set_value(key).run()
    assert not test.exception
    recipe = awd.Recipe.from_yaml(test.code[0].value)
    assert recipe.method == key
    drawn = [*test.slider, *test.number_input, *test.selectbox, *test.toggle]
    for knob in method.knobs():
        widget = next(one for one in drawn if one.key == f"knob_{key}_{knob.name}")
        assert widget.value == knob.default
        if "high" in knob.metadata:
            assert (widget.min, widget.max) == (knob.metadata["low"], knob.metadata["high"])


def test_a_preset_of_a_method_sets_its_knobs() -> None:
    with_presets = [m for m in merge_controls.fitting_methods(8) if m.presets]
    if not with_presets:
        pytest.skip("no method has presets")
    method = with_presets[0]
    name, preset = next(iter(method.presets.items()))
    test = on("merge")
    test.selectbox(key="method").set_value(method.key).run()
    test.selectbox(key=f"preset_{method.key}").set_value(name).run()
    assert not test.exception
    found = awd.Recipe.from_yaml(test.code[0].value)
    assert {knob: found.knobs[knob] for knob in preset.knobs} == dict(preset.knobs)


def test_every_text_says_the_same_merge(study: awd.Study) -> None:
    test = on("merge")
    test.button_group(key="granularity").set_value("tensor").run()
    test.selectbox(key="dtype").set_value("bfloat16").run()
    yaml, shell, python, mergekit = (code.value for code in test.code)
    recipe = awd.Recipe.from_yaml(yaml)
    assert recipe.dtype == "bfloat16"
    assert yaml in shell
    source = python.split("awd.merge")[0]
    names: dict[str, Any] = {}
    exec(source, names)
    assert names["recipe"] == recipe
    assert mergekit.strip() == to_mergekit(recipe, study).strip()


def test_mergekit_gets_the_zoo_as_folders_and_adapters_on_their_base() -> None:
    """It knows neither `zoo:` nor adapters by themselves."""
    said = yaml.safe_load(on("merge").code[3].value)
    base = said["base_model"]
    assert (Path(base) / "config.json").exists()
    for key, model in zip(zoo.TASK_KEYS, said["models"], strict=True):
        before, _, adapter = model["model"].partition("+")
        assert before == base
        assert Path(adapter) == awd.open_checkpoint(f"zoo:{key}").path


def test_free_space_is_that_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    mine = usage._replace(free=5_000_000)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: mine if tmp_path in (path, *path.parents) else usage
    )
    monkeypatch.setenv("AWD_ROOTS", str(tmp_path))
    test = on("merge")
    assert "**fits**" in next(one.value for one in test.caption if "to write" in one.value)
    test.text_input[0].set_value(str(tmp_path / "deep" / "merged")).run()
    said = next(one.value for one in test.caption if "to write" in one.value)
    assert "92 MB to write, 5.0 MB are free: **will not fit**" in said


def test_what_mergekit_cannot_say_is_said() -> None:
    test = on("merge")
    test.button_group(key="granularity").set_value("row").run()
    assert any("mergekit has no words" in info.value for info in test.info)


def test_without_the_weights_everything_but_writing_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_ROOTS", str(tmp_path))
    own = small_study(tmp_path)
    folder = studies.open_folder(str(own.path))
    (tmp_path / "models").rename(tmp_path / "gone")
    test = linked(study=studies.fingerprint(own))
    assert not test.exception
    assert test.metric
    for page in ("tune", "evaluate", "compare", "report", "merge"):
        test.switch_page(f"views/{page}.py").run()
        assert not test.exception, page
        assert not test.error, page
    export = next(button for button in test.button if button.label == "Export")
    assert export.disabled
    assert any("not on this machine" in info.value for info in test.info)
    assert awd.Recipe.from_yaml(test.code[0].value).experts
    assert folder.exists()


# --- journal -------------------------------------------------------------------------------------


def test_undo_and_redo_move_every_slider() -> None:
    test = on("merge")
    assert test.button(key="undo").disabled
    before = recipe_of(test)
    test.select_slider(key="alpha").set_value(0.01).run()
    test.slider(key="lambda").set_value(0.6).run()
    after = recipe_of(test)
    test.button(key="undo").click().run()
    test.button(key="undo").click().run()
    assert recipe_of(test) == before
    assert test.select_slider(key="alpha").value == 0.1
    test.button(key="redo").click().run()
    test.button(key="redo").click().run()
    assert recipe_of(test) == after
    assert test.button(key="redo").disabled


def test_history_goes_anywhere_and_a_new_setting_ends_the_old_future() -> None:
    test = on("merge")
    for value in (0.4, 0.5, 0.6):
        test.slider(key="lambda").set_value(value).run()
    test.button(key="history_1").click().run()
    assert recipe_of(test).coefficient == 0.4
    test.slider(key="lambda").set_value(0.9).run()
    assert test.button(key="redo").disabled
    test.button(key="undo").click().run()
    assert recipe_of(test).coefficient == 0.4


def test_a_named_preset_is_kept_and_set_again_in_another_session() -> None:
    test = on("merge")
    test.button_group(key="granularity").set_value("block").run()
    test.slider(key="lambda").set_value(0.7).run()
    wanted = recipe_of(test)
    test.text_input(key="name_of_preset").set_value("for the review").run()
    test.button(key="keep_preset").click().run()
    other = on("merge")
    assert recipe_of(other) != wanted
    other.selectbox(key="named").set_value("for the review").run()
    other.button(key="set_named").click().run()
    assert recipe_of(other) == wanted
    other.text_input(key="name_of_preset").set_value("../evil").run()
    other.button(key="keep_preset").click().run()
    assert "cannot have this name" in other.error[0].value
    assert other.title[0].value == "Write the merge"
    assert recipe_of(other) == wanted


def test_two_sessions_share_studies_and_no_state() -> None:
    one, two = on("merge"), on("merge")
    one.slider(key="lambda").set_value(0.9).run()
    one.button(key="pin").click().run()
    two.slider(key="lambda").set_value(0.2).run()
    assert recipe_of(one).coefficient == 0.9
    assert recipe_of(two).coefficient == 0.2
    two.switch_page("views/compare.py").run()
    assert any("Nothing is pinned" in info.value for info in two.info)


# --- lambda by block -----------------------------------------------------------------------------


def test_factors_by_block_are_set_added_and_multiplied(study: awd.Study) -> None:
    test = on("tune")
    test.select_slider(key="factor_blocks").set_value(("block 1", "block 2")).run()
    test.number_input(key="factor_value").set_value(0.5).run()
    test.button(key="factor_apply").click().run()
    test.button_group(key="factor_operation").set_value("add").run()
    test.button(key="factor_apply").click().run()
    test.button_group(key="factor_operation").set_value("multiply").run()
    test.select_slider(key="factor_blocks").set_value(("block 2", "block 3")).run()
    test.button(key="factor_apply").click().run()
    assert not test.exception
    drawn = figure(test, "factors")["data"][0]
    shown = dict(zip(drawn["x"], numbers(drawn["y"]), strict=True))
    assert shown == dict.fromkeys(study.blocks, 1.0) | {"block 2": 0.5, "block 3": 0.5}
    wanted = View(
        study,
        awd.disentangle(study, **START),
        np.full(8, 0.3),
        np.array([0.5 if t.block in ("block 2", "block 3") else 1.0 for t in study.tensors]),
    )
    norm = tables.summary(wanted).set_index("key").loc["merged_norm", "after"]
    assert test.metric[2].value == f"{norm:.3g}"
    assert recipe_of(test).block_factors == {"block 2": 0.5, "block 3": 0.5}
    assert recipe_of(linked(block_factors="block 2=0.5; block 3=0.5")).block_factors == {
        "block 2": 0.5,
        "block 3": 0.5,
    }


def test_the_suggestion_gives_every_block_the_same_share(study: awd.Study) -> None:
    test = on("tune")
    test.button(key="factor_suggest").click().run()
    factors = recipe_of(test).block_factors
    assert factors
    grams = {
        block: np.sum([study.gram(t.name) for t in study.tensors if t.block == block], axis=0)
        for block in factors
    }
    kept = [factor * np.mean(grams[b].sum(1) / np.diag(grams[b])) for b, factor in factors.items()]
    np.testing.assert_allclose(kept, kept[0], rtol=0.01)
    test.button(key="factor_reset").click().run()
    assert not recipe_of(test).block_factors


@pytest.mark.parametrize("written", ["blok 3=0.5", "garbage", "block 1=nan", "block 1=inf"])
def test_factors_that_cannot_be_read_are_said_at_their_field(written: str) -> None:
    typed = on("merge")
    wanted = recipe_of(typed)
    typed.text_input(key="block_factors").set_value(written).run()
    for test in (typed, linked(block_factors=written).switch_page("views/merge.py").run()):
        assert not test.exception
        (field,) = (one for one in test.sidebar.expander if one.label == "λ by block")
        assert "cannot be read" in field.error[0].value
        assert field.proto.expanded
        assert recipe_of(test) == wanted
    typed.text_input(key="block_factors").set_value("block 1=0.5").run()
    assert recipe_of(typed).block_factors == {"block 1": 0.5}


# --- pins and Compare ----------------------------------------------------------------------------


def pinned() -> AppTest:
    """Setting A is the start; now is granularity row."""
    test = on("compare")
    assert any("Nothing is pinned" in info.value for info in test.info)
    press(test, "Pin this setting")
    return test.button_group(key="granularity").set_value("row").run()


def test_pinned_settings_stand_side_by_side(study: awd.Study) -> None:
    test = pinned()
    assert not test.exception
    table = frame_with(test, "A", "now")
    first = tables.summary(view(study, **START)).set_index("title")["after"]
    row = {**START, "granularity": "row"}
    now = tables.summary(view(study, **row)).set_index("title")["after"]
    np.testing.assert_allclose(table["A"], first.loc[table.index])
    np.testing.assert_allclose(table["now"], now.loc[table.index])
    changed = overview_of_difference(test)
    after = measure("cosine_after")
    expected = overview(view(study, **START), after, "pairs") - overview(
        view(study, **row), after, "pairs"
    )
    np.testing.assert_allclose(
        changed, expected.loc[changed.index, changed.columns], rtol=1e-4, atol=1e-6
    )


def overview_of_difference(test: AppTest) -> pd.DataFrame:
    drawn = figure(test, "difference")["data"][0]
    return pd.DataFrame(numbers(drawn["z"]), index=drawn["y"], columns=drawn["x"])


def test_tune_shows_what_changed_since_a_pin(study: awd.Study) -> None:
    test = pinned()
    test.switch_page("views/tune.py").run()
    table = frame_with(test, "now − A")
    np.testing.assert_allclose(table["now − A"], table["now"] - table["A"])
    shown = {matrix.heading: matrix for matrix in matrices(test)}
    before = tables.matrix(view(study, **START), when="after").to_numpy(copy=True)
    now = tables.matrix(view(study, **{**START, "granularity": "row"}), when="after").to_numpy()
    np.fill_diagonal(before, np.nan)
    np.testing.assert_allclose(shown["A"].array, before, atol=1e-8)
    np.testing.assert_allclose(shown["now − A"].array, now - before, atol=1e-8)


def test_going_back_to_a_pin_sets_it_again() -> None:
    test = pinned()
    test.button(key="back_A").click().run()
    assert test.button_group(key="granularity").value == "model"
    test.button(key="unpin_A").click().run()
    assert any("Nothing is pinned" in info.value for info in test.info)


@pytest.mark.timeout(900)  # evaluations on a machine that does other things
def test_compare_evaluates_every_setting(study: awd.Study) -> None:
    test = pinned()

    def complete() -> bool:
        bars = [chart for chart in test.get("plotly_chart") if "compared" in chart.proto.id]
        return bool(bars) and len(json.loads(bars[0].proto.spec)["data"]) == 4

    until(test, complete, "not every setting was evaluated")
    recipe = awd.Recipe(
        base="zoo:base",
        experts=[f"zoo:{key}" for key in zoo.TASK_KEYS],
        coefficient=0.3,
        disentangle=awd.Settings(**START),
    )
    found = evaluate_recipe(recipe, zoo.tasks(), "validation", LIVE_SAMPLE, study=study)
    drawn = figure(test, "compared_accuracy")["data"]
    bars = {trace["name"]: trace for trace in drawn}
    assert set(bars) == {"base", "own expert", "A", "now"}
    shown = dict(zip(bars["A"]["x"], numbers(bars["A"]["y"]), strict=True))
    for one in found:
        assert shown[one.task] == pytest.approx(one.accuracy, abs=1e-6)
    own = dict(zip(bars["own expert"]["x"], numbers(bars["own expert"]["y"]), strict=True))
    now = dict(zip(bars["now"]["x"], numbers(bars["now"]["y"]), strict=True))
    lost = numbers(figure(test, "drops")["data"][0]["y"])
    assert lost == pytest.approx([own[task] - now[task] for task in zoo.TASK_KEYS], abs=1e-6)


# --- Try -----------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_try_shows_normalised_accuracy_transfer_and_confusion(study: awd.Study) -> None:
    test = on("evaluate")
    until(test, lambda: any("-radar" in c.proto.id for c in test.get("plotly_chart")), "no radar")
    bars = {trace["name"]: trace for trace in figure(test, "normalised")["data"]}
    experts = figure(test, "accuracy_base_experts_this")["data"]
    by_name = {
        trace["name"]: dict(zip(trace["x"], numbers(trace["y"]), strict=True)) for trace in experts
    }
    merged, own = by_name["this setting"], by_name["own expert"]
    shown = dict(zip(bars["this setting"]["x"], numbers(bars["this setting"]["y"]), strict=True))
    for task in zoo.TASK_KEYS:
        assert shown[task] == pytest.approx(merged[task] / own[task], rel=1e-5)

    test.toggle(key="confusion").set_value(True).run()
    tables_shown = [found for html in test.get("html") for found in read_matrices(html.proto.body)]
    confusions = {found.heading: found for found in tables_shown}
    task = zoo.tasks()[0]
    counts = np.array(
        evaluate_recipe(recipe_of(test), [task], "validation", LIVE_SAMPLE, study=study)[
            0
        ].confusion
    )
    np.testing.assert_allclose(
        confusions["this setting"].array, counts / counts.sum(1, keepdims=True), atol=1e-8
    )

    test.switch_page("views/evaluate.py").run()
    test.toggle(key="transfer").set_value(True).run()

    def complete() -> bool:
        found = [one for html in test.get("html") for one in read_matrices(html.proto.body)]
        return any(one.heading == "expert, on task" and len(one.rows) == 8 for one in found)

    until(test, complete, "no transfer matrix")
    drawn = [one for html in test.get("html") for one in read_matrices(html.proto.body)]
    transfer = next(one for one in drawn if one.heading == "expert, on task")
    np.testing.assert_allclose(
        np.diag(transfer.array), [own[task] for task in zoo.TASK_KEYS], atol=1e-6
    )


def test_try_on_some_experts_of_the_zoo_shows_their_tasks(awd_home: Path) -> None:
    keys = ("torch_area", "exception")
    opened = [awd.open_checkpoint(f"zoo:{key}") for key in keys]
    some = awd.collect(awd.open_checkpoint("zoo:base"), opened)
    test = linked(study=some.digest[: studies.FINGERPRINT])
    test.switch_page("views/evaluate.py").run()
    until(test, lambda: any("-radar" in c.proto.id for c in test.get("plotly_chart")), "no radar")
    assert not test.exception
    assert set(figure(test, "normalised")["data"][0]["x"]) == {tables.MEAN, *keys}


RESULTS = {
    "results": {
        "hellaswag": {"acc,none": 0.61, "acc_stderr,none": 0.005, "alias": "hellaswag"},
        "gsm8k": {"exact_match,strict-match": 0.4, "exact_match_stderr,strict-match": 0.01},
    },
    "config": {"model_args": "pretrained=/models/merged,dtype=bfloat16"},
}


def test_results_of_lm_eval_stand_beside_one_another() -> None:
    test = on("evaluate")
    second = json.loads(json.dumps(RESULTS).replace("/models/merged", "/models/base"))
    test.file_uploader(key="lm_eval").set_value(
        [
            ("a.json", json.dumps(RESULTS).encode(), "application/json"),
            ("b.json", json.dumps(second).encode(), "application/json"),
        ]
    )
    test.run()
    assert not test.exception
    table = frame_with(test, "/models/merged")
    assert set(table.columns) == {"/models/merged", "/models/base"}
    assert table.loc[("hellaswag", "acc"), "/models/merged"] == 0.61
    assert table.loc[("gsm8k", "exact_match (strict-match)"), "/models/base"] == 0.4


def test_two_results_of_one_model_are_not_taken_for_one() -> None:
    test = on("evaluate")
    again = json.loads(json.dumps(RESULTS))
    again["results"]["hellaswag"]["acc,none"] = 0.11
    files = [("a.json", RESULTS), ("b.json", again), ("b.json", again)]
    test.file_uploader(key="lm_eval").set_value(
        [(name, json.dumps(found).encode(), "application/json") for name, found in files]
    )
    test.run()
    assert not test.exception
    table = frame_with(test, "/models/merged (a.json)")
    assert list(table.loc[("hellaswag", "acc")]) == [0.61, 0.11, 0.11]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{", "no JSON"),
        ("[]", "without `results`"),
        ('{"results": [1]}', "without `results`"),
        ('{"results": {"arc": [1, 2]}}', "no task with a number"),
    ],
)
def test_what_is_no_result_of_lm_eval_is_said_in_words(written: str, words: str) -> None:
    with pytest.raises(awd.AwdError, match=words):
        read_lm_eval(written, "results.json")


def test_results_of_lm_eval_need_no_configuration() -> None:
    text = json.dumps({"results": {"arc": {"acc,none": 0.5}}, "config": None})
    assert list(read_lm_eval(text, "mine.json")["model"]) == ["mine.json"]


# --- Report --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [one.key for one in EXHIBITS if one.needs != "spectra"])
def test_every_slide_says_and_shows_something(study: awd.Study, key: str) -> None:
    test = on("report")
    test.selectbox(key="slide").set_value(key).run()
    assert not test.exception
    exhibit = next(one for one in EXHIBITS if one.key == key)
    shown = view(study, **START)
    assert test.title[0].value == exhibit.title
    assert any(exhibit.sentence(shown) in html.proto.body for html in test.get("html"))
    drawn = [chart for chart in test.get("plotly_chart") if f"slide_{key}" in chart.proto.id]
    assert drawn or matrices(test)
    pd.testing.assert_frame_equal(
        frame_with(test, *exhibit.table(shown).columns).reset_index(drop=True),
        exhibit.table(shown).reset_index(drop=True),
        check_dtype=False,
    )


def test_slides_turn_and_stop_at_both_ends() -> None:
    test = on("report")
    assert test.button(key="turn_Previous").disabled
    test.button(key="turn_Next").click().run()
    assert test.title[0].value == EXHIBITS[1].title
    test.selectbox(key="slide").set_value(EXHIBITS[-1].key).run()
    assert test.button(key="turn_Next").disabled
    press(test, "Slide alone")
    assert "To keep" not in [subheader.value for subheader in test.subheader]


@pytest.mark.parametrize("form", FORMATS)
def test_every_chart_can_be_had_as_a_file(study: awd.Study, form: Any) -> None:
    shown = view(study, **START)
    with zipfile.ZipFile(io.BytesIO(all_files(shown, form))) as packed:
        assert set(packed.namelist()) == {f"{one.key}.{form}" for one in exhibits(shown)}
        for one in exhibits(shown):
            data = packed.read(f"{one.key}.{form}")
            assert data == as_file(one.table(shown), form)
            read = {
                "csv": lambda data: pd.read_csv(io.BytesIO(data)),
                "json": lambda data: pd.DataFrame(json.loads(data)),
                "parquet": lambda data: pd.read_parquet(io.BytesIO(data)),
            }[form](data)
            pd.testing.assert_frame_equal(
                read, one.table(shown), check_dtype=False, rtol=1e-9, check_exact=False
            )


# --- Open ----------------------------------------------------------------------------------------


def test_a_dropped_study_opens_without_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = small_study(tmp_path)
    file = archive.export_study(own, tmp_path / "x.awdstudy")
    monkeypatch.setenv("AWD_HOME", str(tmp_path / "elsewhere"))
    (tmp_path / "models").rename(tmp_path / "gone")
    test = on("open")
    test.file_uploader(key="dropped").set_value(
        ("x.awdstudy", file.read_bytes(), "application/zip")
    )
    test.run()
    assert not test.error
    press(test, "Look at this study")
    assert test.title[0].value == "Where do the experts interfere?"
    assert len(overview_of(test)) == 3
    assert test.query_params["study"] in (studies.fingerprint(own), [studies.fingerprint(own)])


def test_a_dropped_file_that_is_no_study_is_refused() -> None:
    test = on("open")
    test.file_uploader(key="dropped").set_value(("x.awdstudy", b"nothing", "application/zip"))
    test.run()
    assert "not a study" in test.error[0].value
    assert any(subheader.value == "Checkpoints" for subheader in test.subheader)  # and the rest


def test_folders_are_found_by_clicking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWD_ROOTS", str(tmp_path))
    made = family(tmp_path / "models", n_experts=2)
    (tmp_path / "other").mkdir()
    test = on("open")
    assert test.button(key="browse_up").disabled
    test.button(key=f"enter_{tmp_path / 'models'}").click().run()
    test.button(key=f"base_{made.base_path}").click().run()
    for expert in made.expert_paths:
        test.button(key=f"expert_{expert}").click().run()
    assert test.text_input(key="base").value == str(made.base_path)
    lines = test.text_area(key="expert_lines").value or ""
    assert lines.splitlines() == [str(expert) for expert in made.expert_paths]
    assert "Nothing stands in the way" in test.success[0].value
