"""The pass and the merge on a Ray cluster: `--engine ray`.

Both are made of tasks that do not depend on one another and whose results are taken in order. Here
every task runs in a Ray worker. Ray schedules, moves results and runs a task again when its worker
or node is lost; what is computed and the order in which it is put together stay the same, so the
bytes of a study or a merge do too.

Every node needs AWD Studio, and sees base and experts under the same paths.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from awd_core.errors import AwdError, ClusterError
from awd_core.parallel import Engine

Result = TypeVar("Result")

# A task is run again this often after its worker or node was lost; then the work fails.
RETRIES = 8
# Tasks that are begun or whose results wait, for each processor of the cluster. Results wait in
# the memory of the nodes.
AHEAD = 3
# A cluster that is there accepts a connection within milliseconds, over any network in seconds.
SECONDS_TO_ANSWER = 10


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[Engine]:
    """An engine that runs its tasks on a Ray cluster, for as long as the block lasts.

    Args:
        address: Of a running cluster; `RAY_ADDRESS` when left out. Without either a cluster of
            this machine alone is started, and stopped at the end.

    Raises:
        ClusterError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _ray()
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _require_answer(address)
        ray.init(address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterError(
            "The Ray cluster cannot be used",
            where=address or "this machine",
            received=str(error).splitlines()[0],
            expected="a running cluster with the same versions of Ray and Python",
            remedy="Start one with `ray start --head`, or leave --engine out.",
        ) from error
    try:
        yield _in_order
    finally:
        ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Ray itself tries for minutes before it says that nobody answers."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()


def _in_order(function: Callable[[Any], Result], tasks: Iterable[Any]) -> Iterator[Result]:
    ray = _ray()
    # The function carries the headers of all checkpoints: sent once, not with every task.
    shared = ray.put(function)
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
    ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    try:
        for task in tasks:
            waiting.append(remote.remote(shared, task))
            if len(waiting) >= ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _run(function: Callable[[Any], Result], task: Any) -> Result:
    return function(task)


def _result(reference: Any) -> Any:
    from ray.exceptions import RayError, RayTaskError

    try:
        return _ray().get(reference)
    except RayTaskError as error:
        # What the task raised, as it would have been raised here.
        if isinstance(error.cause, AwdError):
            raise error.cause from error
        raise
    except RayError as error:
        raise ClusterError(
            "The Ray cluster lost a task and gave it up",
            received=str(error).splitlines()[0],
            expected=f"a worker that lives through one of {RETRIES + 1} tries",
            remedy="Look for nodes that run out of memory or do not see the checkpoints, then run"
            " the command again.",
        ) from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ClusterError(
            "Ray is not installed",
            where="engine ray",
            remedy="Install it on every node: pip install -r requirements-cluster.txt",
        ) from error
    return ray
