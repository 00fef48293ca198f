"""Folders that are whole or absent, hashes, and where AWD Studio keeps its own files."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from awd_core.errors import OutputError


def home() -> Path:
    """Where studies, jobs and settings live: `AWD_HOME`, else the user's data folder."""
    if chosen := os.environ.get("AWD_HOME"):
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME", "~/.local/share")
    return Path(data).expanduser() / "awd-studio"


def require_new(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        OutputError: `out` exists already, or cannot.
    """
    try:
        exists = out.exists() or out.is_symlink()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise OutputError(
            "The output cannot be written",
            where=out,
            received=error.strerror or error,
            remedy="Choose another name or folder.",
        ) from error
    if exists:
        raise OutputError(
            "The output exists already",
            where=out,
            received="a file" if out.is_file() else "a folder",
            expected="a path where nothing is yet",
            remedy="Choose another name, or remove it first.",
        )


def require_space(out: Path, n_bytes: int) -> None:
    """Refuse to start what cannot be finished.

    Raises:
        OutputError: Less than `n_bytes` are free where `out` will be.
    """
    free = free_space(out)
    if free < n_bytes:
        raise OutputError(
            "There is not enough space on the disk",
            where=_nearest(out),
            received=f"{sized(free)} free",
            expected=f"at least {sized(n_bytes)}",
            remedy="Free some space, or choose another disk.",
        )


def free_space(out: Path) -> int:
    """Bytes that are free where `out` is or will be."""
    return shutil.disk_usage(_nearest(out)).free


def sized(n_bytes: float) -> str:
    """`12 bytes`, `1.3 kB`, `91 MB`: in the unit that leaves one to three digits."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    units = ("kB", "MB", "GB", "TB")
    power = next((p for p in (1, 2, 3) if n_bytes < 999.5 * 1000**p), 4)
    value = n_bytes / 1000**power
    return (
        f"{value:,.1f} {units[power - 1]}" if value < 9.95 else f"{value:,.0f} {units[power - 1]}"
    )


def _nearest(out: Path) -> Path:
    """What is there of a path: itself, or the first folder above it."""
    return next(parent for parent in (out, *out.absolute().parents) if parent.exists())


@contextmanager
def whole_folder(out: Path, digest: str = "") -> Iterator[Path]:
    """A folder to fill that becomes `out` in one step when the block ends.

    Until then it is a hidden folder beside `out`. Killed, or stopped by an error of reading or
    writing, it stays: the next run with the same `digest` finds what was finished and goes on (see
    `Journal`). Cancelled, or stopped by any other error, it leaves no trace. Every file is flushed
    to the disk before the rename, so that `out` is whole even after a crash.

    Args:
        out: What it shall be.
        digest: Says what is being made; what was left of anything else is removed. Nothing is
            taken up again without one.

    Raises:
        OutputError: `out` exists, cannot be written, or is being written by another process.
    """
    require_new(out)
    partial = out.with_name(f".{out.name}.partial")
    what, keep = partial / _WHAT, False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial, out):
            try:
                require_new(
                    out
                )  # a first writer may have finished while this one opened the folder
                _begin(partial, digest)
                yield partial
                _flush(partial)
                for journal in (partial / _JOURNAL, *partial.glob(f"*/{_JOURNAL}")):
                    journal.unlink(missing_ok=True)
                what.unlink()
                _fsync(partial)
                _rename_new(partial, out)
            except BaseException as error:
                keep = bool(digest) and what.exists() and _may_be_taken_up(error)
                if not keep:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        kept = f" What is finished stays in {partial.name}: run it again to go on." if keep else ""
        raise OutputError(
            "The output cannot be written",
            where=out,
            received=error.strerror or error,
            remedy=f"Check that the folder is writable and the disk has space.{kept}",
        ) from error


_WHAT, _JOURNAL = ".what", ".journal"


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    """Hold the hidden folder for this process alone; the lock goes with the process."""
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not partial.exists() or partial.stat().st_ino != os.fstat(descriptor).st_ino:
            raise BlockingIOError  # it was finished or removed a moment ago
        yield
    except BlockingIOError as error:
        raise OutputError(
            "Another process is writing this output",
            where=out,
            received=f"{partial.name} is in use",
            remedy="Wait for it to end, or choose another folder.",
        ) from error
    finally:
        os.close(descriptor)


def _begin(partial: Path, digest: str) -> None:
    what = partial / _WHAT
    if not digest or not what.is_file() or what.read_text(encoding="utf-8") != digest:
        for path in partial.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    what.write_text(digest, encoding="utf-8")


def _may_be_taken_up(error: BaseException) -> bool:
    """Whether the same run may succeed later: a disk was full, a file could not be read."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)


class Journal:
    """What is finished in a folder that is being filled: one line of JSON for each step.

    Files are flushed to the disk before the lines that speak of them, so a line is true even after
    a loss of power. That is done in the background: work goes on while the disk writes.

    Args:
        folder: From `whole_folder`, with a digest.
    """

    # Flushing after each of ten thousand small tensors would take longer than the work.
    SECONDS_BETWEEN = 1.0

    def __init__(self, folder: Path) -> None:
        self._file = folder / _JOURNAL
        self._lines: list[str] = []
        self._touched: set[Path] = set()
        self._last = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._flushing: Future[None] | None = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Nothing may write into the folder after its end, and no refusal of the disk may be lost.
        self._thread.shutdown()
        if kind is None:
            self._wait()

    def entries(self) -> list[Any]:
        """Every step that was written whole."""
        if not self._file.exists():
            return []
        found, whole = [], 0
        with self._file.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # cut short by the end of the process that wrote it
                found.append(json.loads(line))
                whole += len(line)
        os.truncate(self._file, whole)
        return found

    def add(self, entry: Any, *files: Path) -> None:
        """A step is finished; `files` are what it wrote to.

        Raises:
            OSError: The disk refused an earlier step.
        """
        self._lines.append(json.dumps(entry) + "\n")
        self._touched.update(files)
        if time.monotonic() - self._last >= self.SECONDS_BETWEEN:
            self._begin_flush()

    def flush(self) -> None:
        """Make all steps last.

        Raises:
            OSError: The disk refused.
        """
        self._begin_flush()
        self._wait()

    def _begin_flush(self) -> None:
        self._wait()
        self._flushing = self._thread.submit(self._write, self._lines, sorted(self._touched))
        self._lines, self._touched = [], set()
        self._last = time.monotonic()

    def _wait(self) -> None:
        if self._flushing is not None:
            self._flushing.result()

    def _write(self, lines: list[str], touched: list[Path]) -> None:
        for file in touched:
            _fsync(file)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A file to write that becomes `out` in one step when the block ends, or leaves no trace.

    Raises:
        OutputError: `out` exists, cannot be written, or was made by somebody else meanwhile.
    """
    require_new(out)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _fsync(partial)
        _rename_new(partial, out)
    except OSError as error:
        raise OutputError(
            "The output cannot be written",
            where=out,
            received=error.strerror or error,
            remedy="Check that the folder is writable and the disk has space.",
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _rename_new(partial: Path, out: Path) -> None:
    # rename() would replace an empty folder silently; a second writer may have come first.
    require_new(out)
    partial.rename(out)
    _fsync(out.parent)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
