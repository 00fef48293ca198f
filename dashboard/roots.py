"""Which folders the app may open: those under the allowed roots, and nothing else."""

import os
from pathlib import Path

from awd_core import AwdError, files


def allowed_roots() -> tuple[Path, ...]:
    """`AWD_ROOTS` (a list like PATH), else the user's home, the working folder and our own."""
    if chosen := os.environ.get("AWD_ROOTS"):
        return tuple(Path(root).expanduser().resolve() for root in chosen.split(os.pathsep))
    return Path.home().resolve(), Path.cwd().resolve(), files.home().resolve()


def allowed(path: str) -> Path:
    """The folder, with links resolved.

    Raises:
        AwdError: It lies outside the allowed roots, or is no path at all.
    """
    try:
        resolved = Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise AwdError(
            "This is not a path on this machine",
            where=repr(path),
            received=str(error),
            expected=f"a folder under {', '.join(map(str, allowed_roots()))}",
        ) from error
    if not is_allowed(resolved):
        raise AwdError(
            "This folder is outside of what the app may open",
            where=path,
            expected=f"a folder under {', '.join(map(str, allowed_roots()))}",
            remedy="Start the app with AWD_ROOTS set to the folders that it may open.",
        )
    return resolved


def is_allowed(path: Path) -> bool:
    """Whether it lies under an allowed root, links resolved."""
    resolved = path.resolve()
    return any(resolved == root or root in resolved.parents for root in allowed_roots())


def allowed_source(source: str) -> str:
    """A folder under the allowed roots, or a source that is no path on this machine."""
    if source.startswith(("/", ".", "~")) or Path(source).exists():
        return str(allowed(source))
    return source
