"""Independent tasks in threads, their results in order: how the pass and the merge use a machine.

Reading, hashing and compiled kernels release the interpreter lock, so threads are enough. While one
task waits for the disk another computes: what is read next is read ahead.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs tasks that do not depend on one another; their results come in the order of tasks."""

    def __call__(self, function: Callable[[Any], Result], tasks: Iterable[Any]) -> Iterator[Result]:
        """`function` of every task, in order."""
        ...


# One more than cores, so that none idles while a task waits for the disk.
WORKERS = int(os.environ.get("AWD_WORKERS", 0)) or (os.cpu_count() or 1) + 1


def in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int | None = None
) -> Iterator[Result]:
    """`function` of every task, computed ahead, in the order of the tasks.

    Twice as many tasks as workers are begun or waiting to be taken, never more: memory is bounded.
    An error of a task is raised where its result would have come; what was begun then ends first,
    and nothing else begins.

    Args:
        function: Called in any thread; must not depend on other tasks.
        tasks: Taken one by one.
        workers: Threads; `WORKERS` when left out.
    """
    workers = WORKERS if workers is None else workers
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="awd")
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
