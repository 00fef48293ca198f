"""How a command tells its progress: a bar on a terminal, lines in `events.jsonl` for the app."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from awd_core.errors import Cancelled, OutputError
from awd_core.progress import Progress

# The bar and the file are not told of every chunk; people read a few numbers a second.
SECONDS_BETWEEN = 0.1


class Watcher:
    """Shows progress while a command runs; use as a context manager.

    Args:
        events: File to append JSON lines to.
        quiet: Whether standard output is for a machine, so that no bar is drawn.
    """

    def __init__(self, events: Path | None, quiet: bool) -> None:
        self._events = events
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or events is not None,
        )
        self._last = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        self._write({"state": "running"})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if error is None:
            self._write({"state": "done"})
        elif isinstance(error, Cancelled):
            self._write({"state": "cancelled"})
        else:
            self._write({"state": "failed", "message": str(error)})

    def progress(self, step: Progress) -> None:
        """Take one step of the work."""
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN and step.done < step.total:
            return
        self._last = now
        self._write({"state": "running", "fraction": step.fraction, **vars(step)})
        if not self._bar.tasks or self._bar.tasks[-1].description != step.stage:
            self._bar.add_task(step.stage, total=step.total, what="")
        self._bar.update(self._bar.tasks[-1].id, completed=step.done, what=step.what)

    def cancelled(self) -> bool:
        """Never by itself: Ctrl-C and SIGTERM interrupt the command."""
        return False

    def _write(self, event: dict[str, object]) -> None:
        if self._events is None:
            return
        try:
            with self._events.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"time": time.time(), **event}) + "\n")
        except OSError as error:
            raise OutputError(
                "Progress cannot be written",
                where=self._events,
                received=error.strerror,
                remedy="Check that its folder exists and is writable.",
            ) from error
