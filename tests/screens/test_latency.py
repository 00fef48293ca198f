"""Solving ahead of the sliders: what a next drag may ask for is there before it is asked for."""

from concurrent.futures import wait

import pytest

import awd_core as awd
from awd_core import Settings
from dashboard import latency, state
from dashboard.awd_controls import FRACTIONS, RADII, nearby
from tests.screens.pages import on, small_study


@pytest.fixture
def solves(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> list[Settings]:
    """Every solve of the app, on a study of its own that nothing is kept of."""
    study = small_study(tmp_path_factory.mktemp("ahead"), n_experts=4)
    monkeypatch.setenv("AWD_STUDY", str(study.path))
    state._solved.clear()
    asked: list[Settings] = []
    solve = awd.solve

    def noted(study: awd.Study, settings: Settings) -> awd.Disentangled:
        asked.append(settings)
        return solve(study, settings)

    monkeypatch.setattr(awd, "solve", noted)
    return asked


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        (Settings(alpha_relative=0.1), "alpha_relative", [0.05, 0.2, 0.02, 0.3]),
        (Settings(alpha_relative=FRACTIONS[0]), "alpha_relative", [0.001, 0.002]),
        (Settings(alpha_relative=FRACTIONS[-1]), "alpha_relative", [1.0, 0.9]),
        (Settings(alpha=1e-6), "alpha", [0.0, 0.0001, 0.00015]),
        (Settings(radius=RADII[2], penalty="none"), "radius", [0.005, 0.02, 0.0, 0.03]),
        (Settings(penalty="none"), "radius", []),
        (None, "alpha", []),
    ],
)
def test_the_next_positions_of_a_slider(
    settings: Settings | None, field: str, expected: list[float]
) -> None:
    found = nearby(settings)
    assert [getattr(one, field) for one in found] == pytest.approx(expected, rel=0.05)
    assert all(
        settings is not None
        and one.model_dump(exclude={field}) == settings.model_dump(exclude={field})
        for one in found
    )


def test_a_drag_finds_its_solution(solves: list[Settings]) -> None:
    test = on("tune")
    assert not test.exception
    wait(test.session_state[latency.AHEAD])
    assert {one.alpha_relative for one in solves if one.steps} >= {0.02, 0.05, 0.2, 0.3}
    solves.clear()
    test.select_slider(key="alpha").set_value(0.05).run()
    assert not test.exception
    wait(test.session_state[latency.AHEAD])
    assert 0.05 not in {one.alpha_relative for one in solves}


def test_long_solves_are_not_begun_unasked(
    solves: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "MOST_GROUPS_AHEAD", 0)
    test = on("tune")
    assert not test.exception
    assert latency.AHEAD not in test.session_state
    assert {one.alpha_relative for one in solves if one.steps} == {0.1}
