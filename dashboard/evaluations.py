"""Accuracy beside the sliders: one background thread, the newest request first.

A page asks for what it wants to show and gets what is known; the thread works off the newest
request, drops work that nobody wants any more between two batches, and keeps every result.
"""

import atexit
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from awd_core import AwdError, Cancelled, Recipe, Study, open_checkpoint, zoo
from awd_core.evaluation import Encoder, TaskAccuracy, evaluate, evaluate_recipe
from awd_core.progress import CancelFn

Result = tuple[TaskAccuracy, ...]
# Slider positions that are only passed over are not worth an evaluation.
SECONDS_OF_REST = 0.25


@dataclass
class _Request:
    key: Hashable
    work: Callable[[CancelFn], Result]


@dataclass
class Evaluator:
    """Evaluates in one thread for all sessions; results are kept by what they are of."""

    results: dict[Hashable, Result | AwdError] = field(default_factory=dict)
    _wanted: dict[str, _Request] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _closing: bool = False

    def __post_init__(self) -> None:
        # A thread that is inside torch when the interpreter ends brings the process down.
        atexit.register(self.close)

    def close(self) -> None:
        """Drop all wishes and wait until the thread has ended."""
        with self._changed:
            self._closing = True
            self._wanted.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def ask(
        self, session: str, key: Hashable, work: Callable[[CancelFn], Result]
    ) -> Result | AwdError | None:
        """The result, or None while it is being worked out; replaces the session's last wish."""
        with self._changed:
            if key in self.results:
                self._wanted.pop(session, None)
                return self.results[key]
            if session not in self._wanted or self._wanted[session].key != key:
                self._wanted.pop(session, None)
                self._wanted[session] = _Request(key, work)
                self._changed.notify()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="evaluator", daemon=True)
                self._thread.start()
        return None

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                session, request = next(reversed(self._wanted.items()))
                self._changed.wait(SECONDS_OF_REST)
                if self._wanted.get(session) is not request:
                    continue
            self._answer(session, request)

    def _answer(self, session: str, request: _Request) -> None:
        try:
            result: Result | AwdError = request.work(lambda: not self._is_wanted(request))
        except Cancelled:
            return
        except AwdError as error:
            result = error
        with self._changed:
            self.results[request.key] = result
            if self._wanted.get(session) is request:
                del self._wanted[session]

    def _is_wanted(self, request: _Request) -> bool:
        return any(wanted.key == request.key for wanted in self._wanted.values())


def is_zoo(study: Study) -> bool:
    """Whether the zoo's tasks are the experts' own."""
    return all(source.source.startswith("zoo:") for source in study.sources)


def merge_work(
    recipe: Recipe, study: Study, split: str, limit: int | None
) -> Callable[[CancelFn], Result]:
    """Accuracy of a merge on every task of the zoo."""

    def work(cancel: CancelFn) -> Result:
        return evaluate_recipe(recipe, zoo.tasks(), split, limit, study=study, cancel=cancel)

    return work


def base_work(split: str, limit: int | None) -> Callable[[CancelFn], Result]:
    """Accuracy of the zoo's base on every task."""

    def work(cancel: CancelFn) -> Result:
        encoder = Encoder.from_folder(zoo.base_folder())
        return evaluate(encoder, zoo.tasks(), split, limit, cancel)

    return work


def experts_work(study: Study, split: str, limit: int | None) -> Callable[[CancelFn], Result]:
    """Accuracy of every expert on its own task."""
    tasks = {task.key: task for task in zoo.tasks()}

    def work(cancel: CancelFn) -> Result:
        base = open_checkpoint(study.base.source)
        found: list[TaskAccuracy] = []
        for source in study.sources:
            expert = open_checkpoint(source.source)
            recipe = Recipe(base=study.base.source, experts=(source.source,), coefficient=1.0)
            task = tasks[source.source.removeprefix("zoo:")]
            found += evaluate_recipe(
                recipe, (task,), split, limit, checkpoints=(base, (expert,)), cancel=cancel
            )
        return tuple(found)

    return work
