"""Controls that choose among things: type and seed, pins, the form of files, recent studies."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

import awd_core as awd
from analysis.measures import measure
from analysis.overview import overview
from dashboard import studies
from tests.helpers import family
from tests.screens.pages import START, figure, numbers, on, press, small_study, view


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> awd.Study:
    return small_study(tmp_path_factory.mktemp("controls"))


@pytest.fixture(autouse=True)
def opened(study: awd.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.path is not None
    monkeypatch.setenv("AWD_STUDY", str(study.path))
    monkeypatch.setenv("AWD_ROOTS", str(study.path.parent))


def recipe_of(test: AppTest) -> awd.Recipe:
    return awd.Recipe.from_yaml(test.code[0].value)


def test_type_and_seed_reach_the_recipe() -> None:
    test = on("merge")
    assert (recipe_of(test).dtype, recipe_of(test).seed) == ("base", 0)
    test.selectbox(key="dtype").set_value("bfloat16").run()
    test.number_input(key="seed").set_value(7).run()
    assert not test.exception
    assert [
        code for code in test.code if "dtype: bfloat16" in code.value and "seed: 7" in code.value
    ]


def pinned(*granularities: str) -> AppTest:
    """A, B, ... are these granularities; the last one is set now."""
    test = on("compare")
    for granularity in granularities:
        test.button_group(key="granularity").set_value(granularity).run()
        test.button(key="pin").click().run()
    assert not test.exception
    return test


def test_any_two_settings_can_be_subtracted(study: awd.Study) -> None:
    test = pinned("model", "tensor", "row")
    settings = {"A": "model", "B": "tensor", "C": "row"}
    after = measure("cosine_after")
    for first, second in (("B", "A"), ("A", "C")):
        test.selectbox(key="first_setting").set_value(first).run()
        test.selectbox(key="second_setting").set_value(second).run()
        drawn = figure(test, "difference")["data"][0]
        shown = pd.DataFrame(numbers(drawn["z"]), index=drawn["y"], columns=drawn["x"])
        one, other = (
            overview(view(study, **{**START, "granularity": settings[name]}), after, "pairs")
            for name in (first, second)
        )
        expected = (one - other).loc[shown.index, shown.columns]
        np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-6)


def test_tune_compares_with_the_pin_that_is_chosen() -> None:
    test = pinned("model", "tensor")
    test.button_group(key="granularity").set_value("row").run()
    test.switch_page("views/tune.py").run()
    for name in ("A", "B"):
        test.button_group(key="against").set_value(name).run()
        assert not test.exception
        columns = [set(table.value.columns) for table in test.table]
        assert {"now", name, f"now − {name}"} in columns


def test_awd_is_not_said_to_shorten_a_merge_that_it_lengthens() -> None:
    test = on("tune")
    test.button_group(key="granularity").set_value("row").run()
    norm = next(one for one in test.metric if one.label.startswith("Merged norm"))
    assert norm.delta.startswith("+")
    assert "AWD shortens" not in norm.proto.help
    assert "shorter or longer" in norm.proto.help


def test_a_spectral_direction_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = family(tmp_path / "models", n_experts=3)
    experts = [awd.open_checkpoint(path) for path in made.expert_paths]
    folder = tmp_path / "study"
    awd.collect(awd.open_checkpoint(made.base_path), experts, folder, spectral=True)
    monkeypatch.setenv("AWD_STUDY", str(folder))
    test = on("interference")
    test.button_group(key="granularity").set_value("spectral").run()
    assert not test.exception
    assert "Mean |cos| in a spectral direction" in [one.label for one in test.metric]
    said = [one.value for one in test.caption]
    assert any(one.startswith("Each spectral direction has its own") for one in said)


def test_tune_says_what_of_a_pin_needs_weights() -> None:
    test = pinned("model")
    test.selectbox(key="method").set_value("ties").run()
    test.switch_page("views/tune.py").run()
    assert not test.exception
    drawn = next(one for one in test.table if "now − A" in one.value.columns)
    assert "needs weights" in drawn.proto.arrow_data.styler.display_values.decode("latin-1")
    assert not any("now − A" in one.value.columns for one in test.dataframe)


@pytest.mark.parametrize("form", ["csv", "parquet", "json"])
def test_numbers_are_offered_in_the_form_that_is_chosen(form: str) -> None:
    test = on("report")
    test.button_group(key="format").set_value(form).run()
    assert not test.exception
    offered = [button.proto.label for button in test.get("download_button")]
    assert f"This slide's numbers ({form})" in offered
    assert f"All numbers ({form}, zip)" in offered


def test_studies_open_by_path_and_are_then_recent(
    study: awd.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWD_STUDY")
    monkeypatch.setenv("AWD_HOME", str(tmp_path))
    test = on("open")
    field = next(one for one in test.text_input if "study folder" in one.label)
    field.set_value(str(study.path)).run()
    press(test, "Open study")
    assert not test.exception
    assert study.path in studies.recent()
    assert test.query_params["study"] in (
        studies.fingerprint(study),
        [studies.fingerprint(study)],
    )
    again = on("open")
    listed = [button.key for button in again.button if str(button.key).startswith("study_")]
    assert listed == [f"study_{study.path}"]  # the zoo's own has its own button
    again.button(key=f"study_{study.path}").click().run()
    assert any("3 experts" in one.value for one in again.sidebar.markdown)


def test_pins_say_what_forgets_them() -> None:
    said = " ".join(caption.value for caption in pinned("model").sidebar.caption)
    assert "Loading the page anew forgets pins and history" in said


def test_the_words_of_the_first_load_are_gone_when_it_is_done() -> None:
    test = on("interference")
    assert test.metric
    assert not any("Getting ready" in info.value for info in test.info)
