"""Every page as a user meets it, without a browser: what is drawn is what the analysis says."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import awd_core as awd
from analysis import figures, narrative, tables
from analysis.clustering import clusters
from analysis.overview import overview, rows_for
from awd_core import zoo
from awd_core.disentangle import PRESETS, alpha_path, match_norm
from awd_core.elements import DENSITIES
from awd_core.evaluation import LIVE_SAMPLE, evaluate_recipe, mean_accuracy
from dashboard import studies
from dashboard.close_ups import TITLES
from dashboard.look import SHOWN
from tests.helpers import family
from tests.screens.pages import (
    APP,
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

PAGES = ("interference", "tune", "merge", "open")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_on_the_zoo_without_a_click(page: str) -> None:
    test = on(page)
    assert not test.exception
    assert not test.error
    assert test.title


def test_the_overview_shows_the_cosine_of_every_pair_in_every_block(study: awd.Study) -> None:
    test = on("interference")
    table = tables.pair_by_block(view(study, **START))
    expected = table.pivot_table(
        index="pair", columns="block", values="cosine", sort=False, dropna=False
    )
    drawn = overview_of(test)
    assert list(drawn.index) == figures.pair_order(table)
    np.testing.assert_allclose(drawn, expected.loc[drawn.index, drawn.columns], atol=1e-6)
    heatmap = figure(test, "overview")["data"][0]
    assert heatmap["zmin"] == -heatmap["zmax"]


def test_findings_and_the_map_of_experts_stand_beside_the_overview(study: awd.Study) -> None:
    shown, test = view(study, **START), on("interference")
    labels = [expander.label for expander in test.expander]
    expected = [finding.text for finding in narrative.findings(shown, 4)]
    assert expected
    assert [label for label in labels if label in expected] == expected
    drawn = figure(test, "expert_map")["data"][0]
    places = np.stack([numbers(drawn["x"]), numbers(drawn["y"])], axis=1)
    np.testing.assert_allclose(places, clusters(shown).places, atol=1e-9)
    assert drawn["text"] == list(study.experts)
    tree = figure(test, "expert_tree")["layout"]["xaxis"]["ticktext"]
    assert tree == list(clusters(shown).ordered)


@pytest.mark.parametrize("key", SHOWN)
def test_every_measure_is_drawn_with_its_rows_on_one_scale(study: awd.Study, key: str) -> None:
    shown, measure = view(study, **START), SHOWN[key]
    if not measure.before.available(study):
        pytest.skip("not in this study")
    test = on("interference")
    test.selectbox(key="measure").set_value(key).run()
    for rows in rows_for(measure.before):
        if test.button_group(key="rows").value != rows:
            test.button_group(key="rows").set_value(rows).run()
        scales = set()
        for when, one in (("before", measure.before), ("after", measure.after)):
            if one is None:
                continue
            if measure.after is not None:
                test.button_group(key="when").set_value(when).run()
            assert not test.exception
            expected = overview(shown, one, rows)
            drawn = overview_of(test)
            np.testing.assert_allclose(
                drawn, expected.loc[drawn.index, drawn.columns], rtol=1e-5, atol=1e-6
            )
            left_out = expected.drop(index=drawn.index)
            assert left_out.isna().to_numpy().all()
            heatmap = figure(test, "overview")["data"][0]
            scales.add((heatmap["zmin"], heatmap["zmax"]))
        assert len(scales) == 1


def test_kinds_show_the_size_of_the_cosine_and_say_so(study: awd.Study) -> None:
    test = on("interference")
    test.button_group(key="rows").set_value("kinds").run()
    expected = overview(view(study, **START), SHOWN["absolute_cosine"].before, "kinds")
    drawn = overview_of(test)
    np.testing.assert_allclose(drawn, expected.loc[drawn.index, drawn.columns], atol=1e-6)
    picture = figure(test, "overview")
    assert picture["layout"]["title"]["text"] == "Mean |cos|, kinds by block, before AWD"
    assert picture["data"][0]["zmin"] == 0
    assert "|cos|" in test.button_group(key="rows").help
    caption = next(one.value for one in test.caption if "A click on a cell" in one.value)
    assert "Mean over all pairs" in caption
    assert "negative" not in caption


@pytest.mark.parametrize("granularity", ["model", "block", "tensor", "row"])
def test_granularity_and_norm_constraint_redraw_the_matrix(
    study: awd.Study, granularity: str
) -> None:
    test = on("tune")
    test.button_group(key="granularity").set_value(granularity).run()
    test.select_slider(key="alpha").set_value(0.01).run()
    assert not test.exception
    settings = {"granularity": granularity, "alpha_relative": 0.01, "lr_relative": 0.01}
    after = tables.matrix(view(study, **settings), when="after").to_numpy(copy=True)
    np.fill_diagonal(after, np.nan)
    np.testing.assert_allclose(matrices(test)[1].array, after, atol=1e-8)


def test_the_matrices_are_those_of_the_chosen_block(study: awd.Study) -> None:
    test = on("interference")
    test.select_slider(key="block").set_value("block 2").run()
    shown = view(study, **START)
    for when, drawn in zip(("before", "after"), matrices(test), strict=True):
        expected = tables.matrix(shown, "block", "block 2", when).to_numpy(copy=True)
        np.fill_diagonal(expected, np.nan)
        assert drawn.heading == f"{when} AWD"
        assert drawn.columns == list(study.experts)
        np.testing.assert_allclose(drawn.array, expected, atol=1e-8)


def test_alpha_can_be_given_in_the_papers_units(study: awd.Study) -> None:
    test = on("tune")
    test.button_group(key="alpha_units").set_value("paper's units").run()
    expected = view(study, granularity="model", alpha=0.1).disentangled.redundant_norm
    assert test.metric[1].value == f"{expected:.3g}"


def test_lambda_changes_the_merged_norm_and_solves_nothing_anew(study: awd.Study) -> None:
    test = on("tune")
    before = test.metric[1].value
    test.slider(key="lambda").set_value(0.6).run()
    expected = tables.summary(view(study, 0.6, **START)).set_index("key")
    assert test.metric[2].value == f"{expected.loc['merged_norm', 'after']:.3g}"
    assert test.metric[1].value == before


def test_lambda_for_each_expert_reaches_the_recipe() -> None:
    test = on("merge")
    test.toggle(key="apart").set_value(True).run()
    test.slider(key="lambda_of_library").set_value(0.75).run()
    recipe = awd.Recipe.from_yaml(test.code[0].value)
    assert recipe.coefficients is not None
    assert recipe.coefficients[0] == 0.75
    assert set(recipe.coefficients[1:]) == {0.3}


def set_awd(test: AppTest) -> awd.Settings | None:
    """AWD's settings as the recipe of this session has them."""
    return awd.Recipe.from_yaml(test.switch_page("views/merge.py").run().code[0].value).disentangle


@pytest.mark.parametrize("key", PRESETS)
def test_a_preset_is_solved_exactly_and_shown_by_the_sliders(key: str) -> None:
    preset = PRESETS[key]
    test = on("merge")
    test.selectbox(key="preset").set_value(key).run()
    assert not test.exception
    assert set_awd(test) == preset.settings
    assert test.button_group(key="granularity").value == preset.settings.granularity
    assert test.select_slider(key="steps").value == preset.settings.steps
    assert test.button_group(key="until").value == preset.settings.until
    if preset.settings.radius is not None:
        assert test.select_slider(key="radius").value == preset.settings.radius
    elif preset.settings.alpha is not None:
        assert test.select_slider(key="alpha_paper").value == preset.settings.alpha
    else:
        assert test.select_slider(key="alpha").value == preset.settings.alpha_relative


def test_sliders_change_single_fields_of_a_preset() -> None:
    test = on("merge")
    test.selectbox(key="preset").set_value("row").run()
    test.select_slider(key="steps").set_value(30).run()
    assert set_awd(test) == awd.Settings.preset("row", steps=30)
    # One loss over all rows, and its steps, have no meaning at another granularity.
    test.button_group(key="granularity").set_value("block").run()
    assert set_awd(test) == awd.Settings(granularity="block", alpha=1e-6, steps=30)


def test_the_start_values_can_be_had_back() -> None:
    test = on("merge")
    before = set_awd(test)
    assert before == awd.Settings(**START)
    test.selectbox(key="preset").set_value("norm-bounded").run()
    test.selectbox(key="preset").set_value("start").run()
    assert set_awd(test) == before


def test_a_hard_bound_takes_the_place_of_alpha(study: awd.Study) -> None:
    test = on("tune")
    test.button_group(key="alpha_units").set_value("bound r").run()
    test.select_slider(key="radius").set_value(0.01).run()
    settings = {"granularity": "model", "penalty": "none", "radius": 0.01, "lr_relative": 0.01}
    solved = view(study, **settings).disentangled
    assert test.metric[1].value == f"{solved.redundant_norm:.3g}"
    assert solved.relative_redundant_norm == pytest.approx(0.01)
    assert "penalty" not in [group.key for group in test.button_group]


@pytest.mark.parametrize("penalty", ["l2_squared", "none"])
def test_penalty_reaches_the_solver(study: awd.Study, penalty: Any) -> None:
    test = on("tune")
    test.button_group(key="penalty").set_value(penalty).run()
    fields = START if penalty == "l2_squared" else {"lr_relative": 0.01}
    solved = view(study, penalty=penalty, **fields).disentangled
    assert test.metric[1].value == f"{solved.redundant_norm:.3g}"
    assert test.select_slider(key="alpha").disabled == (penalty == "none")


def test_until_converged_takes_the_steps_as_a_limit(study: awd.Study) -> None:
    test = on("tune")
    test.button_group(key="until").set_value("converged").run()
    test.select_slider(key="steps").set_value(1000).run()
    settings = {"alpha_relative": 0.1, "lr_relative": 0.05, "steps": 1000, "until": "converged"}
    outcome = view(study, **settings).disentangled.outcome
    assert outcome in [text.value for text in test.caption]


@pytest.mark.parametrize(
    ("link", "settings"),
    [
        ({"preset": "Converged", "steps": "1000"}, awd.Settings.preset("converged", steps=1000)),
        (
            {"alpha_units": "paper's units", "alpha_paper": "0.01"},
            awd.Settings(alpha=0.01),
        ),
        (
            {"alpha_units": "bound r", "radius": "0.05", "until": "converged"},
            awd.Settings(radius=0.05, penalty="none", until="converged", lr_relative=0.05),
        ),
        (
            {"penalty": "‖δ‖²", "granularity": "tensor"},
            awd.Settings(
                penalty="l2_squared", granularity="tensor", alpha_relative=0.1, lr_relative=0.01
            ),
        ),
    ],
    ids=["preset", "paper's units", "bound", "penalty"],
)
def test_a_link_sets_every_control(link: dict[str, str], settings: awd.Settings) -> None:
    test = AppTest.from_file(APP, default_timeout=SECONDS)
    for name, value in link.items():
        test.query_params[name] = value
    test.run()
    assert not test.exception
    assert set_awd(test) == settings


@pytest.mark.parametrize(
    "link",
    [
        {"granularity": "column"},
        {"lambda": "99"},
        {"method": "nope", "measure": "nope"},
        {"experts": ["library", "exception", "nobody"]},
        {"awd": "perhaps"},
    ],
    ids=str,
)
def test_what_a_link_asks_for_in_vain_is_said_once(link: dict[str, Any]) -> None:
    test = linked(**link, block="block 3")
    assert not test.exception
    (warning,) = test.warning
    for name, value in link.items():
        refused = value[-1] if isinstance(value, list) else value
        assert f"`{name}={refused}`" in warning.value
    assert "block" not in warning.value
    assert "library" not in warning.value
    test.run()
    assert not test.warning


@pytest.mark.parametrize(
    "link",
    [
        {"lambda": "0.30", "granularity": "model", "awd": "TRUE", "steps": "300"},
        {"alpha": "0.1 α_crit", "preset": "Start values", "penalty": "‖δ‖", "until": "after steps"},
        {"method": "Task arithmetic", "measure": SHOWN["cosine"].title, "when": "before AWD"},
        {"close_up": TITLES["agreement"], "density": "20%", "unknown": "kept"},
        {"lambda": "0.5", "experts": ["library", "exception"], "block_factors": "block 1=0.5"},
    ],
    ids=str,
)
def test_a_link_that_names_defaults_was_not_in_vain(link: dict[str, Any]) -> None:
    assert not linked(**link).warning


def test_alpha_crit_and_knee_are_said_at_the_slider(study: awd.Study) -> None:
    path = alpha_path(study)
    assert path.knee is not None
    knee = path.alpha[path.knee]
    test = on("merge")
    said = [text.value for text in test.sidebar.caption]
    assert any(
        f"α_crit = {path.critical:.3g}" in text and f"{knee / path.critical:.2g} α_crit" in text
        for text in said
    )
    test.button_group(key="alpha_units").set_value("paper's units").run()
    said = [text.value for text in test.sidebar.caption]
    assert f"α_crit = {path.critical:.3g}, knee of the path at {knee:.3g}." in said


def test_the_knee_is_a_stop_of_the_slider_and_stays_set_below_the_model(study: awd.Study) -> None:
    path = alpha_path(study)
    assert path.knee is not None
    knee = float(f"{path.alpha[path.knee] / path.critical:.2g}")
    test = linked(alpha=f"{knee:g} α_crit (knee)")
    assert not test.warning
    assert set_awd(test) == view(study, **START | {"alpha_relative": knee}).disentangled.settings
    test.button_group(key="granularity").set_value("row").run()
    assert test.select_slider(key="alpha").value == knee
    assert any("knee is that of the whole model" in one.value for one in test.sidebar.caption)


def test_alpha_stays_near_a_stop_that_is_gone(study: awd.Study) -> None:
    critical = alpha_path(study).critical
    test = linked(alpha_units="paper's units")
    test.select_slider(key="alpha_paper").set_value(critical).run()
    test.button_group(key="granularity").set_value("row").run()
    found = set_awd(test)
    assert found is not None
    assert found.alpha == pytest.approx(critical, rel=0.3)


def test_alpha_path_has_the_setting_on_it_and_stays_when_lambda_moves(study: awd.Study) -> None:
    test = on("tune")
    key = "alpha_path_mean_absolute_cosine"
    drawn = figure(test, key)
    table = tables.alpha_path(alpha_path(study))
    np.testing.assert_allclose(numbers(drawn["data"][0]["x"]), table["share"], rtol=1e-6)
    np.testing.assert_allclose(
        numbers(drawn["data"][0]["y"]), table["mean_absolute_cosine"], rtol=1e-6
    )
    here = tables.alpha_setting(view(study, **START))
    np.testing.assert_allclose(numbers(drawn["data"][1]["y"]), here["mean_absolute_cosine"])
    test.slider(key="lambda").set_value(0.6).run()
    assert figure(test, key) == drawn
    test.select_slider(key="alpha").set_value(0.01).run()
    assert numbers(figure(test, key)["data"][1]["x"]) == pytest.approx([0.01])
    test.button_group(key="granularity").set_value("block").run()
    assert len(figure(test, key)["data"]) == 1


def test_match_norm_makes_the_merge_as_long_as_task_arithmetic(study: awd.Study) -> None:
    test = on("tune")
    test.button_group(key="granularity").set_value("row").run()
    test.button(key="match_norm").click().run()
    settings = {"granularity": "row", "alpha_relative": 0.1, "lr_relative": 0.01}
    solved = view(study, **settings).disentangled
    expected = round(float(match_norm(solved, 0.3)), 2)
    assert expected != 0.3
    assert test.slider(key="lambda").value == expected
    summary = tables.summary(view(study, expected, **settings)).set_index("key")
    without = tables.summary(view(study, 0.3, **settings)).set_index("key")
    target = without.loc["merged_norm", "before"]
    assert abs(summary.loc["merged_norm", "after"] / target - 1) < 0.005 / expected
    # Pressed again it would have nothing to do, until lambda is moved.
    assert test.button(key="match_norm").disabled
    test.slider(key="lambda").set_value(2.0).run()
    assert not test.button(key="match_norm").disabled


def test_a_match_beyond_the_slider_ends_there_and_says_so(study: awd.Study) -> None:
    test = on("tune")
    test.button_group(key="alpha_units").set_value("bound r").run()
    test.slider(key="lambda").set_value(2.0).run()
    solved = view(
        study, granularity="model", penalty="none", radius=0.3, lr_relative=0.01
    ).disentangled
    exact = float(match_norm(solved, 2.0))
    assert exact > 2
    assert any(f"λ = {exact:.3g}" in text.value for text in test.caption)


@pytest.mark.parametrize("switch", ["average", "ties", "off", "apart"])
def test_no_match_is_offered_where_there_is_none(switch: str) -> None:
    test = on("tune")
    if switch == "off":
        test.toggle(key="awd").set_value(False).run()
    elif switch == "apart":
        test.toggle(key="apart").set_value(True).run()
        test.slider(key="lambda_of_library").set_value(0.75).run()
    else:
        test.selectbox(key="method").set_value(switch).run()
    assert not test.exception
    assert "match_norm" not in [button.key for button in test.button]


def test_equalised_norms_reach_figures_and_recipe(study: awd.Study) -> None:
    test = on("tune")
    test.toggle(key="equalise").set_value(True).run()
    assert not test.exception
    expected = view(awd.equalise_norms(study), **START)
    after = tables.matrix(expected, when="after").to_numpy(copy=True)
    np.fill_diagonal(after, np.nan)
    np.testing.assert_allclose(matrices(test)[1].array, after, atol=1e-8)
    test.switch_page("views/merge.py").run()
    assert awd.Recipe.from_yaml(test.code[0].value).equalise_norms


def test_awd_off_leaves_the_task_vectors_alone() -> None:
    test = on("interference")
    test.toggle(key="awd").set_value(False).run()
    assert test.metric[2].value == "0.0%"
    before, after = matrices(test)
    np.testing.assert_array_equal(before.array, after.array)


@pytest.mark.parametrize("method", ["average", "ties"])
def test_other_methods_have_their_own_recipe(method: str) -> None:
    test = on("merge")
    test.selectbox(key="method").set_value(method).run()
    assert not test.exception
    assert awd.Recipe.from_yaml(test.code[0].value).method == method


def test_block_slider_shows_the_tensors_of_the_block(study: awd.Study) -> None:
    test = on("interference")
    test.select_slider(key="block").set_value("block 3").run()
    shown = test.dataframe(key="tensors").value
    moved = [t for t in study.tensors if t.block == "block 3" and study.gram(t.name).any()]
    assert len(shown) == len(moved)


def test_a_measure_of_pairs_fills_the_matrices_of_a_kind(study: awd.Study) -> None:
    test = on("interference")
    test.selectbox(key="measure").set_value("sign_conflict").run()
    test.select_slider(key="block").set_value("block 3").run()
    test.selectbox(key="kind").set_value("mlp.up").run()
    (drawn,) = matrices(test)
    inside = [
        position
        for position, tensor in enumerate(study.tensors)
        if (tensor.block, tensor.kind) == ("block 3", "mlp.up")
    ]
    agreement = study.elements.agreement[inside, DENSITIES.index(1.0)].sum(0)
    overlap = study.elements.overlap[inside, DENSITIES.index(1.0)].sum(0)
    expected = (1 - agreement / overlap) / 2
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(drawn.array, expected, atol=1e-8)


def test_experts_can_be_left_out_of_every_picture() -> None:
    test = on("interference")
    test.multiselect(key="experts").set_value(["torch_area", "library", "exception"]).run()
    assert matrices(test)[0].columns == ["library", "exception", "torch_area"]
    assert set(overview_of(test).index) == {
        "library × exception",
        "library × torch_area",
        "exception × torch_area",
    }


def test_one_expert_alone_is_said_to_leave_all_of_them(study: awd.Study) -> None:
    said = "library alone has no pair: all experts are shown."
    test = linked(experts="library")
    assert said in [caption.value for caption in test.caption]
    assert matrices(test)[0].columns == list(study.experts)
    test.multiselect(key="experts").set_value(["library", "exception"]).run()
    assert said not in [caption.value for caption in test.caption]


def test_a_link_reopens_the_view(study: awd.Study) -> None:
    tensor = next(t.name for t in study.tensors if (t.block, t.kind) == ("block 2", "mlp.down"))
    test = linked(
        measure="Sign conflict",
        rows="kinds",
        block="block 2",
        kind="mlp.down",
        tensor=tensor,
        study="zoo",
    )
    assert not test.exception
    assert test.selectbox(key="measure").value == "sign_conflict"
    assert test.button_group(key="rows").value == "kinds"
    assert test.select_slider(key="block").value == "block 2"
    assert test.selectbox(key="kind").value == "mlp.down"
    position = [t.name for t in study.tensors].index(tensor)
    level = DENSITIES.index(1.0)
    agreement = study.elements.agreement[position, level]
    expected = (1 - agreement / study.elements.overlap[position, level]) / 2
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(matrices(test)[0].array, expected, atol=1e-8)


def test_a_chosen_tensor_belongs_to_its_block(study: awd.Study) -> None:
    tensor = next(t.name for t in study.tensors if (t.block, t.kind) == ("block 3", "mlp.down"))
    test = linked(block="block 3", tensor=tensor)
    position = list(test.dataframe(key="tensors").value["tensor"].map(tensor.endswith)).index(True)
    assert ticked_rows(test) == [position]
    alone = matrices(test)[0].array
    test.button(key="all_of_block").click().run()
    assert not test.exception
    assert ticked_rows(test) == []
    assert "tensor" not in test.query_params
    assert not np.allclose(matrices(test)[0].array, alone, equal_nan=True)
    test = linked(block="block 3", tensor=tensor)
    test.select_slider(key="block").set_value("block 2").run()
    assert not test.exception
    assert ticked_rows(test) == []
    assert "tensor" not in test.query_params
    assert "all_of_block" not in [button.key for button in test.button]


def ticked_rows(test: AppTest) -> list[int]:
    return list(test.session_state["tensors"]["selection"]["rows"])


def test_a_link_sets_every_coefficient() -> None:
    test = linked(apart="true", lambda_of_library="0.75", lambda_of_exception="-0.5")
    code = test.switch_page("views/merge.py").run().code[0].value
    recipe = awd.Recipe.from_yaml(code)
    assert recipe.coefficients is not None
    assert recipe.coefficients[0] == 0.75
    assert recipe.coefficients[zoo.TASK_KEYS.index("exception")] == -0.5


def test_the_address_names_the_study_and_finds_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on("interference").query_params["study"] in ("zoo", ["zoo"])
    monkeypatch.setenv("AWD_ROOTS", str(tmp_path))
    # Seven, as no other test collects: a study is found by its fingerprint wherever it lies.
    own = small_study(tmp_path, n_experts=7)
    folder = studies.open_folder(str(own.path))
    fingerprint = studies.fingerprint(own)
    test = linked(study=fingerprint)
    assert not test.error
    assert any("7 experts" in text.value for text in test.sidebar.markdown)
    shutil.rmtree(folder)
    gone = linked(study=fingerprint)
    assert "not on this machine" in gone.error[0].value
    assert any(fingerprint in text.value for text in gone.markdown)
    assert not gone.metric  # no numbers of another study in its place
    gone.switch_page("views/open.py").run()
    press(gone, "The zoo: 8 LoRA experts of a text encoder")
    gone.switch_page("views/interference.py").run()
    assert not gone.error
    assert gone.metric


@pytest.mark.timeout(900)  # an evaluation on a machine that does other things
def test_accuracy_appears_by_itself_and_is_that_of_the_recipe(study: awd.Study) -> None:
    test = on("tune")
    deadline = time.monotonic() + SECONDS
    while not any("mean accuracy" in text.value for text in test.markdown):
        assert time.monotonic() < deadline, "no accuracy appeared"
        time.sleep(0.5)
        test.run()
    recipe = awd.Recipe.from_yaml(on("merge").code[0].value)
    found = evaluate_recipe(recipe, zoo.tasks(), "validation", LIVE_SAMPLE, study=study)
    shown = next(text.value for text in test.markdown if "mean accuracy" in text.value)
    assert f"**{mean_accuracy(found):.1%}** mean accuracy" in shown


def test_open_explains_itself_and_says_what_is_wrong(tmp_path: Path) -> None:
    test = on("open")
    assert any("two experts" in info.value for info in test.info)
    test.text_input[1].set_value("/nowhere/base").run()
    test.text_area[0].set_value("/nowhere/expert").run()
    assert "outside of what the app may open" in test.error[0].value


def test_open_shows_the_preflight_of_folders_that_do_not_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_ROOTS", str(zoo.base_folder().parents[1]))
    monkeypatch.chdir(tmp_path)
    test = on("open")
    test.text_input[1].set_value(str(zoo.base_folder())).run()
    test.text_area[0].set_value("zoo:library\nzoo:library").run()
    assert not test.exception
    said = [one.value for one in test.markdown if "What to do" in one.value]
    assert "the same weights as expert" in said[0]


def test_own_checkpoints_are_checked_collected_and_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_ROOTS", str(tmp_path))
    made = family(tmp_path, n_experts=3)
    test = on("open")
    test.text_input[1].set_value(str(made.base_path)).run()
    test.text_area[0].set_value("\n".join(map(str, made.expert_paths))).run()
    assert "Nothing stands in the way" in test.success[0].value
    press(test, "Collect")
    deadline = time.monotonic() + SECONDS
    while not any(button.label == "Look at it" for button in test.button):
        assert time.monotonic() < deadline, "the pass did not end"
        assert not any("failed" in error.value for error in test.error), test.error
        time.sleep(0.5)
        test.run()
    press(test, "Look at it")
    assert any("3 experts" in text.value for text in test.markdown)
    test.switch_page("views/interference.py").run()
    assert not test.exception
    assert len(figure(test, "overview")["data"][0]["y"]) == 3
    test.switch_page("views/tune.py").run()
    assert any("belong to the zoo" in info.value for info in test.info)


def test_export_over_an_existing_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_ROOTS", str(tmp_path))
    test = on("merge")
    test.text_input[0].set_value(str(tmp_path)).run()
    press(test, "Export")
    assert "exists already" in test.error[0].value


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("~nobody-of-this-name/merged", "not a path"),
        ("mer\0ged", "not a path"),
        ("m" * 5000, "cannot be written"),
    ],
)
def test_an_output_that_is_no_path_is_said(written: str, words: str) -> None:
    test = on("merge")
    test.text_input[0].set_value(written).run()
    assert not test.exception
    press(test, "Export")
    assert not test.exception
    assert words in test.error[0].value
