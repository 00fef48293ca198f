"""Behind the numbers on page Interference: what is drawn is what the analysis says."""

from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import awd_core as awd
from analysis import element_figures, spectral_figures
from analysis.measures import MEASURES, measure
from dashboard.close_ups import TITLES, explaining
from dashboard.look import Part
from tests.screens.pages import done, figure, linked, numbers, on, small_study, view

PARTS = ("block 0", "embedding")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> awd.Study:
    return awd.collect_spectra(small_study(tmp_path_factory.mktemp("spectra")))


@pytest.fixture(autouse=True)
def opened(study: awd.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWD_STUDY", str(study.path))


def part_of(test: AppTest) -> Part:
    return Part(str(test.select_slider(key="block").value), test.selectbox(key="kind").value)


def test_every_measure_of_weights_or_directions_has_its_close_up() -> None:
    assert {explaining(one.key) for one in MEASURES if one.needs == "elements"} == {
        "agreement",
        "masks",
    }
    assert {explaining(one.key) for one in MEASURES if one.needs == "spectra"} == {
        "spectrum",
        "overcounting",
    }


@pytest.mark.parametrize("block", PARTS)
def test_agreement_follows_block_and_trim(study: awd.Study, block: str) -> None:
    test = on("interference")
    test.select_slider(key="block").set_value(block).run()
    for density in (0.2, 1.0):
        test.select_slider(key="density").set_value(density).run()
        assert not test.exception
        table = element_figures.agreement(view(study), "block", block, density)
        drawn = figure(test, "agreement")["data"]
        np.testing.assert_allclose(numbers(drawn[0]["y"]), table["share"], rtol=1e-5)
        np.testing.assert_allclose(numbers(drawn[1]["y"]), table["share_of_model"], rtol=1e-5)


def test_the_close_up_follows_the_measure_until_it_is_chosen_anew(study: awd.Study) -> None:
    test = on("interference")
    assert test.segmented_control(key="close_up").value == "agreement"
    test.selectbox(key="measure").set_value("catastrophic_fraction").run()
    table = element_figures.masks(view(study))
    drawn = figure(test, "masks")["data"]
    for trace, name in zip(drawn, element_figures.CLASSES, strict=False):
        np.testing.assert_allclose(numbers(trace["y"]), table[name], rtol=1e-5)
    test.select_slider(key="mask_share").set_value(0.2).run()
    densities = element_figures.mask_densities(view(study), 0.2, "block", part_of(test).block)
    drawn = figure(test, "masks")["data"]
    np.testing.assert_allclose(numbers(drawn[3]["y"]), densities["density"], rtol=1e-5)
    test.segmented_control(key="close_up").set_value("spectrum").run()
    assert figure(test, "spectrum")


def test_singular_values_are_those_of_the_chosen_matrix(study: awd.Study) -> None:
    test = linked(close_up=TITLES["spectrum"])
    part = part_of(test)
    matrix = spectral_figures.most_moved_matrix(view(study), part.scope, part.label)
    assert matrix is not None
    table = spectral_figures.spectrum(view(study), matrix)
    lines = [line for line in figure(test, "spectrum")["data"] if line["mode"] == "lines"]
    found = np.concatenate([numbers(line["y"]) for line in lines])
    np.testing.assert_allclose(found, table["value"], rtol=1e-5)


def test_overcounting_moves_with_lambda_and_with_its_factor_by_block(study: awd.Study) -> None:
    test = linked(close_up=TITLES["overcounting"])
    part = part_of(test)
    matrix = spectral_figures.most_moved_matrix(view(study), part.scope, part.label)
    assert matrix is not None
    test.slider(key="lambda").set_value(0.6).run()
    test.text_input(key="block_factors").set_value(f"{part.block}=0.5").run()
    assert not test.exception
    table = spectral_figures.overcounting(view(study, 0.3), matrix)
    found = numbers(figure(test, "overcounting")["data"][0]["z"]).T.ravel()
    np.testing.assert_allclose(found, table["scale"], rtol=1e-5)


def test_singular_values_that_are_missing_are_worked_out_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small_study(tmp_path)
    monkeypatch.setenv("AWD_STUDY", str(plain.path))
    test = linked(close_up=TITLES["spectrum"])
    assert "no singular values" in " ".join(info.value for info in test.info)
    test.button(key="collect_spectra").click().run()
    assert done(test).command == ("spectra", str(plain.path))
    assert figure(test, "spectrum")


def test_granularity_spectral_is_refused_to_a_link_where_there_are_no_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_STUDY", str(small_study(tmp_path).path))
    test = linked(granularity="spectral")
    assert not test.exception
    assert "`granularity=spectral`" in test.warning[0].value


def test_every_measure_of_the_zoo_is_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWD_STUDY", raising=False)
    test = linked(measure=measure("singular_task_interference").title)
    assert not test.exception
    assert not test.info
    assert figure(test, "spectrum")


def test_equalised_norms_say_why_there_are_no_directions(study: awd.Study) -> None:
    test = linked(close_up=TITLES["spectrum"], equalise="true")
    assert "Equalise" in " ".join(info.value for info in test.info)


def test_equalised_norms_take_granularity_spectral_from_control_and_address() -> None:
    test = linked(granularity="spectral")
    lost = "Granularity spectral is not possible with equalised norms."
    assert test.button_group(key="granularity").value == "spectral"
    assert lost not in [caption.value for caption in test.caption]
    test.toggle(key="equalise").set_value(True).run()
    assert not test.exception
    assert not test.warning
    assert lost in [caption.value for caption in test.sidebar.caption]
    assert test.button_group(key="granularity").value == "model"
    assert "granularity" not in test.query_params


def test_a_link_opens_the_close_up_whatever_the_measure(study: awd.Study) -> None:
    test = linked(close_up=TITLES["masks"], density="0.5")
    assert test.segmented_control(key="close_up").value == "masks"
    assert Path(str(study.path)).exists()
