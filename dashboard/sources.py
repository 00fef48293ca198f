"""What on this machine looks like a checkpoint: in folders that may be looked at, in the hub cache.

Only names and sizes of files are looked at.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dashboard import roots

Kind = Literal["folder", "model", "adapter"]
MOST_ENTRIES = 60


@dataclass(frozen=True)
class Entry:
    """A folder to enter, or a checkpoint.

    Attributes:
        name: What it is called.
        source: What `open_checkpoint` takes; the path of a folder.
        kind: `folder`, `model` or `adapter`.
        size: Of its weights, in words.
    """

    name: str
    source: str
    kind: Kind
    size: str = ""


def list_folder(folder: Path) -> list[Entry]:
    """Checkpoints first, then folders to enter; hidden ones and files are left out."""
    with suppress(OSError):
        inside = sorted(
            path
            for path in folder.iterdir()
            if path.is_dir() and not path.name.startswith(".") and roots.is_allowed(path)
        )
        entries = [_entry(path) for path in inside]
        return sorted(entries, key=lambda entry: entry.kind == "folder")[:MOST_ENTRIES]
    return []


def hub_cache() -> list[Entry]:
    """The models of the Hugging Face cache that could be opened without the network."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return []
    found = []
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        if repository.repo_type != "model":
            continue
        snapshots = [one.snapshot_path for one in repository.revisions]
        kinds: list[Kind] = [kind for path in snapshots if (kind := _kind(path)) != "folder"]
        if kinds:
            size = f"{repository.size_on_disk / 1e6:,.0f} MB"
            found.append(Entry(repository.repo_id, repository.repo_id, kinds[0], size))
    return found[:MOST_ENTRIES]


def _entry(path: Path) -> Entry:
    kind = _kind(path)
    if kind == "folder":
        return Entry(path.name, str(path), kind)
    n_bytes = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return Entry(path.name, str(path), kind, f"{n_bytes / 1e6:,.0f} MB")


def _kind(path: Path) -> Kind:
    try:
        if (path / "adapter_config.json").is_file():
            return "adapter"
        weights = any(path.glob("*.safetensors"))
        if weights and isinstance(json.loads((path / "config.json").read_text("utf-8")), dict):
            return "model"
    except (OSError, ValueError):
        return "folder"
    return "folder"
