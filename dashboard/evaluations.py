"""Accuracy beside the sliders: asked of a process of its own, the newest wish first.

A page asks for what it wants to show and gets what is known. The process works off the newest wish
of all sessions, drops work that nobody wants any more, and every result is kept.
"""

import atexit
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from awd_core import AwdError, Recipe, Study
from awd_core.evaluation import TaskAccuracy

Result = tuple[TaskAccuracy, ...]


@dataclass(frozen=True)
class Wish:
    """What shall be evaluated; equal wishes have one answer.

    Attributes:
        what: The study's base on the experts' tasks, each expert on its own, or a merge on all.
        study: Folder of the study.
        digest: Of the study, for a folder can be collected anew.
        split: Split of every task.
        limit: Texts a task; None for all.
        recipe: Of the merge, as JSON.
    """

    what: Literal["base", "experts", "merge"]
    study: str
    digest: str
    split: str
    limit: int | None
    recipe: str | None = None

    def line(self, number: int) -> str:
        """The request as `dashboard.evaluator` reads it."""
        recipe = None if self.recipe is None else json.loads(self.recipe)
        return json.dumps({**asdict(self), "recipe": recipe, "id": number}) + "\n"


def wishes(study: Study, recipe: Recipe, split: str, limit: int | None) -> dict[str, Wish]:
    """Base, experts and merge: all that the panel shows."""
    of = (str(study.path), study.collected_digest, split, limit)
    return {
        "experts": Wish("experts", *of),
        "base": Wish("base", *of),
        "merge": Wish("merge", *of, recipe.model_dump_json()),
    }


def transfer_wishes(study: Study, split: str, limit: int | None) -> dict[str, Wish]:
    """Every expert by itself on every task, by its label."""
    of = (str(study.path), study.collected_digest, split, limit)
    experts = [source.source for source in study.sources]
    found = {}
    for position, label in enumerate(study.experts):
        alone = tuple(float(k == position) for k in range(len(experts)))
        recipe = Recipe(base=study.base.source, experts=experts, coefficients=alone)
        found[label] = Wish("merge", *of, recipe.model_dump_json())
    return found


class Evaluator:
    """The process and all its answers, for every session of a server."""

    def __init__(self) -> None:
        self.results: dict[Wish, Result | AwdError] = {}
        self._wanted: dict[tuple[str, str], Wish] = {}
        self._asked: list[Wish] = []
        self._working: Wish | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """The process; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, so that it is ready when the first wish comes."""
        with self._lock:
            self._ensure_process()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def ask(self, session: str, wish: Wish) -> Result | AwdError | None:
        """The answer, or None while it is being worked out; replaces the last wish of its kind."""
        with self._lock:
            place = (session, wish.what)
            if wish in self.results:
                self._wanted.pop(place, None)
            elif self._wanted.get(place) != wish:
                self._wanted.pop(place, None)
                self._wanted[place] = wish
            self._send_newest()
            return self.results.get(wish)

    def _send_newest(self) -> None:
        newest = next(reversed(self._wanted.values()), None)
        if newest == self._working:
            return
        self._working = newest
        process = self._ensure_process()
        line = "null\n"
        if newest is not None:
            self._asked.append(newest)
            line = newest.line(len(self._asked) - 1)
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return  # its listener sees the end as well, and says so

    def _ensure_process(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dashboard.evaluator"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return self._process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            reply = json.loads(line)
            with self._lock:
                self._keep(self._asked[reply["id"]], _result(reply))
        code = process.wait()
        # A line that it never read would be written again on closing.
        with suppress(BrokenPipeError), process:
            pass
        with self._lock:
            if self._process is not process:
                return  # closed on purpose
            self._process = None
            if self._working is not None:
                self._keep(self._working, _ended(code))

    def _keep(self, wish: Wish, result: Result | AwdError) -> None:
        self.results[wish] = result
        self._wanted = {place: other for place, other in self._wanted.items() if other != wish}
        if self._working == wish:
            self._working = None
        if self._wanted:
            self._send_newest()


def _result(reply: dict[str, Any]) -> Result | AwdError:
    if "error" in reply:
        return AwdError(**reply["error"])
    accuracies: Sequence[dict[str, Any]] = reply["accuracies"]
    return tuple(
        TaskAccuracy(**{**one, "confusion": tuple(map(tuple, one["confusion"]))})
        for one in accuracies
    )


def _ended(code: int) -> AwdError:
    return AwdError(
        "The process that evaluates ended",
        received=f"exit code {code}",
        remedy="It needs about 1 GB of memory. Change a setting to try again.",
    )
