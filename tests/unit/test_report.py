"""The report is one file that needs nothing else, and says what the measures say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import awd_core as awd
from analysis import report, tables
from analysis.measures import MEASURES
from analysis.narrative import findings
from analysis.report import reviewed, write_report
from awd_core.errors import OutputError, RecipeError
from tests.analysis_studies import collected, random_vectors

LABELS = ("math", "</script><img src=x onerror=alert(1)>", "code & prose")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> awd.Study:
    return collected(tmp_path_factory.mktemp("report"), random_vectors(3, seed=1), LABELS)


@pytest.fixture(scope="module")
def recipe(study: awd.Study) -> awd.Recipe:
    return awd.Recipe(
        base=study.base.source,
        experts=[source.source for source in study.sources],
        coefficients=(0.2, 0.4, 0.6),
        disentangle={"granularity": "row", "steps": 20},
    )


@pytest.fixture(scope="module")
def text(study: awd.Study, recipe: awd.Recipe, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = write_report(study, tmp_path_factory.mktemp("out") / "review.html", recipe)
    return out.read_text(encoding="utf-8")


def test_it_holds_findings_recipe_fingerprints_and_every_definition(
    text: str, study: awd.Study, recipe: awd.Recipe
) -> None:
    for finding in findings(reviewed(study, recipe).view):
        assert report.escape(finding.text) in text
    assert report.escape(recipe.to_yaml()) in text
    assert study.digest in text
    assert all(source.fingerprint in text for source in (study.base, *study.sources))
    for one in MEASURES:
        assert f'id="{one.key}"' in text
        assert report.escape(one.formula) in text


def test_numbers_are_those_of_the_view_of_the_recipe(
    text: str, study: awd.Study, recipe: awd.Recipe
) -> None:
    view = reviewed(study, recipe).view
    np.testing.assert_array_equal(view.multipliers, [0.2, 0.4, 0.6])
    assert view.disentangled.settings.granularity == "row"
    for value in tables.retained(view)["retained"]:
        assert f'data-value="{float(value)!r}"' in text


def test_figures_are_there_in_both_themes_and_nothing_is_fetched(text: str) -> None:
    assert text.count("plotly.js v") == 1
    body = text.split('<script type="application/json" id="figures">')[1].split("</script>")[0]
    figures = json.loads(body)
    assert len(figures) >= 5
    for key, themes in figures.items():
        assert set(themes) == {"light", "dark"}
        assert f'data-key="{key}"' in text
        assert themes["light"]["data"]
        assert themes["light"] != themes["dark"]
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=", text.split("<script>")[0])
    assert "default-src 'none'" in text


def test_a_name_cannot_become_code(text: str) -> None:
    assert LABELS[1] not in text
    assert report.escape(LABELS[1]) in text


def test_it_never_overwrites_and_leaves_nothing_half_written(
    study: awd.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "review.html"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_report(study, out)
    assert out.read_text() == "mine"

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_report(study, tmp_path / "other.html")
    assert [path.name for path in tmp_path.iterdir()] == ["review.html"]


def test_a_recipe_of_other_experts_is_refused(study: awd.Study, recipe: awd.Recipe) -> None:
    other = recipe.model_copy(update={"experts": recipe.experts[::-1]})
    with pytest.raises(RecipeError, match="other experts"):
        reviewed(study, other)


def test_the_command_writes_it_and_says_where(
    study: awd.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "review.html"
    assert report.main([str(study.path), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == out.stat().st_size
    assert report.main([str(study.path), "-o", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert report.main([str(tmp_path), "-o", str(tmp_path / "x.html")]) == 1
    assert "not a complete study" in capsys.readouterr().err
