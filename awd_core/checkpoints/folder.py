"""The edge of a checkpoint: which files of its folder are read, and the JSON in them.

Names and contents come from outside. A name that leads out of the folder, a pipe that would never
end and JSON that says two things are refused before anything is made of them.
"""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awd_core.errors import CheckpointError

# Configurations and indexes are read whole. The largest index known has a few MB.
MAX_JSON_BYTES = 100_000_000


def inside(
    folder: Path, name: str, *, named_by: str | None = None, home: Path | None = None
) -> Path:
    """A regular file directly in a folder, or a link that stays in it.

    A snapshot in the Hugging Face cache links into the `blobs` of its own repository; any other
    link out of the folder could put a private file into a model that is then shared.

    Args:
        folder: The checkpoint's folder.
        name: File name without a path.
        named_by: The file that names it, when that is not the user.
        home: Where links must stay, when that is a folder above.

    Raises:
        CheckpointError: The name leads out of the folder, or there is no such regular file.
    """
    asked = folder / named_by if named_by else folder
    try:
        plain = Path(name).name == name and name not in ("", ".", "..") and "\0" not in name
        file = folder / name
        mode = file.stat().st_mode if plain else 0
        real = file.resolve() if plain else file
    except FileNotFoundError:
        raise CheckpointError(
            "A shard is missing" if named_by else "A file is missing",
            where=folder,
            received=f"no {name}",
            expected=f"every file that {named_by} names" if named_by else None,
            remedy=f"Download the missing {'shard' if named_by else 'file'}.",
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # a ring of links, a name too long
        raise CheckpointError(
            "A file of the checkpoint cannot be read",
            where=asked,
            received=f"{name[:200]!r}: {error}",
            remedy="Download or copy the checkpoint again.",
        ) from error
    if not plain:
        raise CheckpointError(
            "The index points outside its folder",
            where=asked,
            received=repr(name[:200]),
            expected="a file name without a path",
            remedy="Do not use this checkpoint unless you know who made it.",
        )
    if not any(real.is_relative_to(place) for place in _homes(home or folder)):
        raise CheckpointError(
            "A link leads out of the checkpoint's folder",
            where=file,
            received=f"a link to {real}",
            expected="a file, or a link to one in the same folder",
            remedy="If you made the link, put the file itself there; else do not use this folder.",
        )
    if not stat.S_ISREG(mode):
        raise CheckpointError(
            "A file of the checkpoint is not a regular file",
            where=file,
            received="a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device",
            remedy="Download or copy the checkpoint again.",
        )
    return file


def _homes(folder: Path) -> tuple[Path, ...]:
    """Where the links of a folder may end: in it, or in the blobs of the same cached repository."""
    real = folder.resolve()
    if real.parent.name == "snapshots":
        return real, real.parent.parent / "blobs"
    return (real,)


def listed(folder: Path, suffix: str) -> list[str]:
    """Names of the files of a folder that end in `suffix`, sorted; hidden files left out."""
    return sorted(path.name for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def read_json(file: Path, what: str) -> Mapping[str, Any]:
    """A JSON object; `what` names the thing that the folder was taken for.

    Raises:
        CheckpointError: No such file, not UTF-8, not a JSON object, or a name twice in it.
    """
    if not file.exists() and not file.is_symlink():
        raise CheckpointError(
            f"This is not {what}",
            where=file.parent,
            received=f"no {file.name}",
            expected=f"a {file.name} beside the weights",
            remedy="Point at the folder that `save_pretrained` wrote.",
        )
    inside(file.parent, file.name)
    try:
        if (size := file.stat().st_size) > MAX_JSON_BYTES:
            raise ValueError(f"{size:,} bytes, more than a configuration can have")
        found = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique_names)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file.name} cannot be read",
            where=file,
            received=error,
            expected="a JSON object",
            remedy="Copy the file again from where the model came from.",
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{file.name} is not a JSON object", where=file, received=type(found).__name__
        )
    return found


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook for `json.loads`: an object in which a name stands twice is an error."""
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice[:200]!r} stands in it twice")
    return names
