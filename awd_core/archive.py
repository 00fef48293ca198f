"""A study as one file to hand to somebody: `.awdstudy`, a zip without weights."""

import re
import shutil
import zipfile
from pathlib import Path
from typing import IO

from safetensors import SafetensorError, safe_open

from awd_core import files
from awd_core.errors import StudyError
from awd_core.study import MARKER, SPECTRA, SPECTRAL_GRAM, Study, open_study

SUFFIX = ".awdstudy"
# What a study consists of: plain names, numbers and text, nothing that could run.
_MEMBER = re.compile(r"[a-z_]+\.(json|jsonl|safetensors|parquet)|complete")
MOST_BYTES = 8 << 30
# Collected on demand, beside what the digest names; spectra need the Grams, which come first.
LEVELS = (SPECTRAL_GRAM, SPECTRA)


def export_study(study: Study, out: str | Path) -> Path:
    """Write a study as one file.

    Raises:
        StudyError: The study was never written to a folder.
        OutputError: `out` exists already, or cannot be written.
    """
    out = Path(out).expanduser().absolute()
    if study.path is None:
        raise StudyError("This study is not on disk", remedy="Collect it into a folder first.")
    with files.whole_file(out) as partial, partial.open("wb") as stream:
        write_study(study.path, stream)
    return out


def open_study_or_file(path: str | Path) -> Study:
    """A study folder, or a `.awdstudy` file, which is unpacked first.

    Raises:
        StudyError: Neither.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        return open_study(path)
    with path.open("rb") as stream:
        return import_study(stream, str(path))


def write_study(folder: Path, stream: IO[bytes]) -> None:
    """The files of a study folder as a zip, the marker last; equal studies give equal bytes."""
    members = sorted(path for path in folder.iterdir() if _MEMBER.fullmatch(path.name))
    members.sort(key=lambda path: path.name == MARKER)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in members:
            entry = zipfile.ZipInfo(path.name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def import_study(stream: IO[bytes], name: str = "study.awdstudy") -> Study:
    """Unpack a `.awdstudy` under AWD Studio's own folder and open it; weights are not needed.

    Where the study is here already, levels that only the file holds (spectra) are added to it.

    Raises:
        StudyError: Not such a file, one that holds anything else, or a damaged study.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            _require_members(entries, name)
            digest = archive.read(MARKER).decode("ascii")
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise _refused(name, "a marker that is no SHA-256")
            folder = files.home() / "studies" / digest[:16]
            if not (folder / MARKER).exists():
                _unpack(archive, entries, folder)
            else:
                _add_levels(archive, entries, folder)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, EOFError, SafetensorError) as error:
        raise _refused(name, f"{type(error).__name__}: {error}") from error
    study = open_study(folder)
    if study.digest != digest:
        shutil.rmtree(folder)
        raise _refused(name, "a marker that belongs to another study")
    return study


def _unpack(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path) -> None:
    files.require_space(folder, sum(entry.file_size for entry in entries))
    with files.whole_folder(folder) as partial:
        for entry in entries:
            with archive.open(entry) as source, (partial / entry.filename).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        open_study(partial)


def _add_levels(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path) -> None:
    """What was collected on demand on the machine that sent the file."""
    sent = {entry.filename: entry for entry in entries}
    missing = [name for name in LEVELS if name in sent and not (folder / name).exists()]
    files.require_space(folder, sum(sent[name].file_size for name in missing))
    for name in missing:
        with files.whole_file(folder / name) as file:
            with archive.open(sent[name]) as source, file.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            with safe_open(file, framework="numpy") as level:
                level.keys()


def _require_members(entries: list[zipfile.ZipInfo], name: str) -> None:
    names = [entry.filename for entry in entries]
    for member in names:
        if not _MEMBER.fullmatch(member) or names.count(member) > 1:
            raise _refused(name, f"a member {member[:80]!r}")
    if MARKER not in names:
        raise _refused(name, f"no member {MARKER!r}")
    if sum(entry.file_size for entry in entries) > MOST_BYTES:
        raise _refused(name, f"more than {MOST_BYTES >> 30} GiB unpacked")


def _refused(name: str, received: str) -> StudyError:
    return StudyError(
        "This is not a study",
        where=name,
        received=received,
        expected=f"a {SUFFIX} file that `awd export-study` wrote",
        remedy="Ask for the file again, or collect base and experts here.",
    )
