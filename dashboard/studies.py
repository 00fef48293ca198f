"""The studies that this machine knows: collected here, dropped here, or opened from a folder."""

import json
from contextlib import suppress
from pathlib import Path

from awd_core import AwdError, Study, files, open_study
from awd_core.study import MARKER
from dashboard import roots

FINGERPRINT = 16  # characters of a digest that name a study in links and folders
MOST_REMEMBERED = 20


def fingerprint(study: Study) -> str:
    """What a link calls a study."""
    return study.collected_digest[:FINGERPRINT]


def recent() -> list[Path]:
    """Folders of complete studies, newest first."""
    own = [marker.parent for marker in (files.home() / "studies").glob("*/complete")]
    others = [folder for folder in _remembered() if (folder / MARKER).exists()]
    every = dict.fromkeys([*own, *others])
    return sorted(every, key=lambda folder: (folder / MARKER).stat().st_mtime, reverse=True)


def find(print_: str) -> Path | None:
    """The folder of the study that a link names; None when it is not on this machine."""
    for folder in recent():
        marker = (folder / MARKER).read_text(encoding="utf-8")
        if len(print_) >= FINGERPRINT and marker.startswith(print_):
            return folder
    return None


def open_folder(path: str) -> Path:
    """A study folder under the allowed roots, remembered from now on.

    Raises:
        AwdError: It lies outside, or holds no study.
    """
    folder = roots.allowed(path)
    open_study(folder)
    known = [folder, *(other for other in _remembered() if other != folder)]
    files.home().mkdir(parents=True, exist_ok=True)
    partial = _list_file().with_suffix(".partial")
    partial.write_text(json.dumps([str(one) for one in known[:MOST_REMEMBERED]]), encoding="utf-8")
    partial.rename(_list_file())
    return folder


def _remembered() -> list[Path]:
    """Folders elsewhere that were opened once; those that may not be opened now are left out."""
    try:
        listed = json.loads(_list_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    allowed = []
    for path in listed:
        with suppress(AwdError):
            allowed.append(roots.allowed(path))
    return allowed


def _list_file() -> Path:
    return files.home() / "studies.json"
