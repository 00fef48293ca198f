"""Independent tasks in threads, their results in order: how the pass and the merge use a machine.

Reading, hashing and compiled kernels release the interpreter lock, so threads are enough. While one
task waits for the disk another computes: what is read next is read ahead.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs tasks that do not depend on one another; their results come in the order of tasks."""

    def __call__(self, function: Callable[[Any], Result], tasks: Iterable[Any]) -> Iterator[Result]:
        """`function` of every task, in order."""
        ...


# One more than cores, so that none idles while a task waits for the disk.
WORKERS = (os.cpu_count() or 1) + 1


_of_thread = threading.local()


def _mark() -> None:
    _of_thread.works = True


@cache
def pool(workers: int) -> ThreadPoolExecutor:
    """The threads of this process; a task must never wait for another one."""
    return ThreadPoolExecutor(workers, thread_name_prefix="awd", initializer=_mark)


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int | None = None,
    ahead: int | None = None,
) -> Iterator[Result]:
    """`function` of every task, computed ahead, in the order of the tasks.

    No more than `ahead` tasks are begun or waiting to be taken: memory is bounded.
    An error of a task is raised where its result would have come; what was begun then ends first,
    and nothing else begins. Inside a task its own parts run one after the other, in its thread.

    Args:
        function: Called in any thread; must not depend on other tasks.
        tasks: Taken one by one.
        workers: Threads; `WORKERS` when left out.
        ahead: Twice as many as workers when left out. More where results are small and a long task
            would leave the other threads nothing to do.
    """
    if hasattr(_of_thread, "works"):
        yield from map(function, tasks)
        return
    workers = WORKERS if workers is None else workers
    ahead = 2 * workers if ahead is None else ahead
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool(workers).submit(function, task))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        drop(waiting)


def drop(waiting: Iterable[Future[Result]]) -> None:
    """Wait for what is running, and let nothing else of it begin."""
    wait([future for future in waiting if not future.cancel()])
