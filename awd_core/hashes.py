"""SHA-256 of inputs, in the background, and never twice for a file that did not change.

What is known of a file is remembered under its place on the disk, size and times of change, as Git
does. Whoever wants to know for certain (`awd verify`) reads the bytes again.
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from awd_core import files
from awd_core.errors import CheckpointError

# Files whose hash is remembered; the oldest are forgotten first.
REMEMBERED = 10_000


def identity(file: Path) -> str:
    """What changes when a file does: device, inode, size, times of modification and change."""
    stat = file.stat()
    return f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"


class InputHashes:
    """Hashes of a set of files; computed from the moment this is made.

    Args:
        inputs: The files.
    """

    def __init__(self, inputs: Iterable[Path]) -> None:
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="hash")
        self._known = _remembered()
        self._before = {file: identity(file) for file in inputs}
        self._hashes = {
            file: self._pool.submit(files.sha256, file)
            for file, own in self._before.items()
            if own not in self._known
        }

    def result(self) -> dict[Path, str]:
        """SHA-256 of every file.

        Raises:
            CheckpointError: One of them has changed since; what was made of them means nothing.
        """
        found = {}
        for file, own in self._before.items():
            hashed = self._hashes.get(file)
            found[file] = self._known[own] if hashed is None else hashed.result()
        self._pool.shutdown()
        for file, own in self._before.items():
            if identity(file) != own:
                raise CheckpointError(
                    "An input changed while it was read",
                    where=file,
                    remedy="Wait until nothing writes to it any more, then merge again.",
                )
        _remember({self._before[file]: found[file] for file in self._hashes})
        return found

    def stop(self) -> None:
        """Compute no more of them."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _memory() -> Path:
    return files.home() / "hashes.json"


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_memory().read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}


def _remember(new: dict[str, str]) -> None:
    if not new:
        return
    known = list((_remembered() | new).items())[-REMEMBERED:]
    beside = _memory().with_suffix(f".{os.getpid()}")
    try:
        _memory().parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(dict(known)), encoding="utf-8")
        beside.replace(_memory())
    except OSError:  # a convenience; the hashes themselves are there
        beside.unlink(missing_ok=True)
