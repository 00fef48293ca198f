"""What long work tells the one who waits, and how it is stopped."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from awd_core.errors import Cancelled


@dataclass(frozen=True)
class Progress:
    """One step of long work.

    Attributes:
        stage: What is going on, in a few words.
        done: Units finished (bytes for weights, examples for an evaluation).
        total: Units in all.
        what: The tensor or task at hand.
        seconds: Since the work began.
    """

    stage: str
    done: int
    total: int
    what: str
    seconds: float

    @property
    def fraction(self) -> float:
        """Share done, 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Time left at the speed so far; None before anything is done."""
        if not self.done:
            return None
        return self.seconds * (self.total - self.done) / self.done


ProgressFn = Callable[[Progress], None]
CancelFn = Callable[[], bool]


class Reporter:
    """Counts work, tells `progress` and raises when `cancel` says so."""

    def __init__(
        self,
        stage: str,
        total: int,
        progress: ProgressFn | None = None,
        cancel: CancelFn | None = None,
    ) -> None:
        self._stage, self._total = stage, total
        self._progress, self._cancel = progress, cancel
        self._done, self._start = 0, time.monotonic()

    def advance(self, units: int, what: str) -> None:
        """`units` more are done.

        Raises:
            Cancelled: `cancel` returned True.
        """
        self._done += units
        if self._progress is not None:
            seconds = time.monotonic() - self._start
            self._progress(Progress(self._stage, self._done, self._total, what, seconds))
        if self._cancel is not None and self._cancel():
            raise Cancelled()


class InOrder:
    """Tells of steps in their order, whatever the order in which they are finished.

    Args:
        report: Who is told.
        steps: Units and name of every step.
    """

    def __init__(self, report: Reporter, steps: Sequence[tuple[int, str]]) -> None:
        self._report, self._steps = report, steps
        self._finished: set[int] = set()
        self._told = 0

    def finished(self, step: int) -> None:
        """One step is finished.

        Raises:
            Cancelled: The report's `cancel` returned True.
        """
        self._finished.add(step)
        while self._told in self._finished:
            units, what = self._steps[self._told]
            self._told += 1
            self._report.advance(units, what)
