"""Readings of tensors, spread over threads: which chunks are read when, and who takes them in.

A sweep is a value: one tensor, and the statistics that want to see it. What a chunk contributes is
a pure function of the chunk, so chunks are read and worked on in any thread; contributions are
taken in in order. Sweeps of other tensors fill the time while the last chunks of one are awaited.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from awd_core.parallel import WORKERS, drop, pool
from awd_core.statistic import Statistic
from awd_core.stream import Reader, Span


@dataclass
class Sweep:
    """One reading of one tensor.

    Attributes:
        position: Of the tensor in the study.
        reader: What reads it.
        spans: Its chunks, in order.
        statistics: Who wants to see them.
        found: Arrays of this tensor that are known already, from earlier sweeps and this one.
    """

    position: int
    reader: Reader
    spans: list[Span]
    statistics: list[Statistic]
    found: dict[str, Any] = field(default_factory=dict)
    _missing: int = field(init=False)

    def __post_init__(self) -> None:
        self._missing = len(self.spans)

    def parts(self, span: Span) -> list[Any]:
        """What one chunk contributes to every statistic."""
        chunk = self.reader(span, scratch=True)
        return [statistic.part(chunk) for statistic in self.statistics]

    def add(self, parts: list[Any]) -> None:
        """Take in the contributions of the next chunk."""
        for statistic, part in zip(self.statistics, parts, strict=True):
            statistic.add(part)
        self._missing -= 1

    @property
    def is_finished(self) -> bool:
        """Whether every chunk was taken in."""
        return self._missing == 0

    def followed_by(self) -> "Sweep | None":
        """Another sweep of the same tensor, where a statistic needs one; its results are kept."""
        found = dict(self.found)
        for statistic in self.statistics:
            found |= statistic.result()
        following = [one.followed_by() for one in self.statistics]
        wanted = [one for one in following if one is not None]
        self.found = found
        return Sweep(self.position, self.reader, self.spans, wanted, found) if wanted else None


def run(
    sweeps: Iterable[Sweep], finished: Callable[[Sweep], None], workers: int | None = None
) -> None:
    """Run sweeps, and those that follow from them.

    Twice as many chunks as workers are begun or waiting, never more: memory is bounded.

    Args:
        sweeps: Taken one by one.
        finished: Called with the last sweep of each tensor, in the thread that called `run`.
        workers: Threads; `WORKERS` when left out.
    """
    workers = WORKERS if workers is None else workers
    remaining, following = iter(sweeps), deque[Sweep]()
    waiting: deque[tuple[Sweep, Future[list[Any]]]] = deque()

    def take() -> None:
        sweep, future = waiting.popleft()
        sweep.add(future.result())
        close(sweep)

    def close(sweep: Sweep) -> None:
        if sweep.is_finished:
            another = sweep.followed_by()
            if another is None:
                finished(sweep)
            else:
                following.append(another)

    try:
        while True:
            sweep = following.popleft() if following else next(remaining, None)
            if sweep is None:
                if not waiting:
                    return
                take()
                continue
            if not sweep.spans:
                close(sweep)
            for span in sweep.spans:
                waiting.append((sweep, pool(workers).submit(sweep.parts, span)))
                if len(waiting) >= 2 * workers:
                    take()
    finally:
        drop(future for _, future in waiting)
