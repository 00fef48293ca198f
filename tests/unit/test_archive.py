"""A study in one file: what goes in comes out, and nothing else is taken."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

import awd_core as awd
from awd_core import archive
from awd_core.errors import AwdError, OutputError, StudyError
from tests.helpers import family


@pytest.fixture
def study(tmp_path: Path) -> awd.Study:
    made = family(tmp_path / "models", n_experts=3)
    experts = [awd.open_checkpoint(path) for path in made.expert_paths]
    return awd.collect(awd.open_checkpoint(made.base_path), experts, tmp_path / "study")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another machine: a data folder that knows no study."""
    home = tmp_path / "elsewhere"
    monkeypatch.setenv("AWD_HOME", str(home))
    return home


def test_a_study_travels_whole(study: awd.Study, elsewhere: Path, tmp_path: Path) -> None:
    file = archive.export_study(study, tmp_path / "x.awdstudy")
    with file.open("rb") as stream:
        opened = archive.import_study(stream)
    assert opened.path is not None
    assert opened.path == elsewhere / "studies" / study.digest[:16]
    assert opened.digest == study.digest
    np.testing.assert_array_equal(opened.grams, study.grams)
    assert study.path is not None
    for name in ("row_gram.safetensors", "study.json"):
        assert (opened.path / name).read_bytes() == (study.path / name).read_bytes()


def test_equal_studies_are_equal_files(study: awd.Study, tmp_path: Path) -> None:
    first = archive.export_study(study, tmp_path / "a.awdstudy")
    second = archive.export_study(study, tmp_path / "b.awdstudy")
    assert first.read_bytes() == second.read_bytes()


def test_an_existing_file_is_kept(study: awd.Study, tmp_path: Path) -> None:
    out = tmp_path / "x.awdstudy"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        archive.export_study(study, out)
    assert out.read_text() == "mine"


def _zip(members: dict[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../evil.json": b"{}", "complete": b"0" * 64}, "evil.json"),
        ({"/etc/x.json": b"{}", "complete": b"0" * 64}, "/etc/x.json"),
        ({"weights.pkl": b"x", "complete": b"0" * 64}, "weights.pkl"),
        ({"study.json": b"{}"}, "no member 'complete'"),
        ({"study.json": b"{}", "complete": b"../../x"}, "no SHA-256"),
        ({"study.json": b"{}", "complete": b"0" * 64}, "damaged"),
    ],
)
def test_nothing_but_a_study_is_unpacked(
    members: dict[str, bytes], said: str, elsewhere: Path
) -> None:
    with pytest.raises(AwdError, match="study") as caught:
        archive.import_study(_zip(members))
    assert said in str(caught.value)
    assert not list(elsewhere.rglob("*.json"))


def test_what_is_no_zip_is_refused(elsewhere: Path) -> None:
    with pytest.raises(StudyError, match="not a study"):
        archive.import_study(io.BytesIO(b"something else"))


def test_a_marker_of_another_study_is_refused(
    study: awd.Study, elsewhere: Path, tmp_path: Path
) -> None:
    assert study.path is not None
    members = {path.name: path.read_bytes() for path in study.path.iterdir()}
    with pytest.raises(StudyError, match="not a study"):
        archive.import_study(_zip(members | {"complete": b"1" * 64}))
    assert not (elsewhere / "studies" / ("1" * 16)).exists()


def test_spectra_that_come_later_are_added_to_the_study_that_is_here(
    study: awd.Study, elsewhere: Path, tmp_path: Path
) -> None:
    plain = archive.export_study(study, tmp_path / "plain.awdstudy")
    with plain.open("rb") as stream:
        assert not archive.import_study(stream).has_spectra
    with_spectra = awd.collect_spectra(study)
    whole = archive.export_study(with_spectra, tmp_path / "whole.awdstudy")
    with whole.open("rb") as stream:
        opened = archive.import_study(stream)
    assert opened.has_spectra
    np.testing.assert_array_equal(opened.spectra[1].values, with_spectra.spectra[1].values)
    with plain.open("rb") as stream:  # what is here stays
        assert archive.import_study(stream).has_spectra


def test_damaged_spectra_are_not_added(study: awd.Study, elsewhere: Path, tmp_path: Path) -> None:
    file = archive.export_study(awd.collect_spectra(study), tmp_path / "x.awdstudy")
    with zipfile.ZipFile(file) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    levels = {name: members.pop(name) for name in archive.LEVELS}
    here = archive.import_study(_zip(members))
    assert here.path is not None
    before = sorted(path.name for path in here.path.iterdir())
    with pytest.raises(StudyError, match="not a study"):
        archive.import_study(_zip(members | {name: data[:50] for name, data in levels.items()}))
    assert sorted(path.name for path in here.path.iterdir()) == before
