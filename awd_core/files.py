"""Folders that are whole or absent, hashes, and where AWD Studio keeps its own files."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        OutputError: `out` exists already.
    """
    if out.exists() or out.is_symlink():
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
    folder = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(
            "There is not enough space on the disk",
            where=folder,
            received=f"{free / 1e9:.2f} GB free",
            expected=f"{n_bytes / 1e9:.2f} GB",
            remedy="Free some space, or choose another disk.",
        )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` in one step when the block ends, or leaves no trace.

    Every file is flushed to the disk before the rename, so that `out` is whole even after a crash.

    Raises:
        OutputError: `out` exists, cannot be written, or was made by somebody else meanwhile.
    """
    require_new(out)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        _flush(partial)
        _rename_new(partial, out)
    except OSError as error:
        raise OutputError(
            "The output cannot be written",
            where=out,
            received=error.strerror or error,
            remedy="Check that the folder is writable and the disk has space.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
