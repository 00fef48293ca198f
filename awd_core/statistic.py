"""What the pass gathers: one class for each statistic, all of them fed by one read of the weights.

A new statistic is a class here or in a file of its own, and one entry in `awd_core.collect`.
"""

import abc
from typing import Any

import numpy as np

from awd_core.stream import Chunk


class Statistic(abc.ABC):
    """One statistic of one tensor, gathered chunk by chunk.

    Chunks run beside one another and their parts are added in order, so a result depends neither
    on the size of a chunk nor on the number of threads where a sum of parts does not: counts, or
    float64 sums over rows that are never divided.

    Args:
        n_experts: K.
    """

    def __init__(self, n_experts: int) -> None:
        self.n_experts = n_experts

    @classmethod
    @abc.abstractmethod
    def arrays(cls, n_experts: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Name, shape and type of what a study keeps for each tensor; zero where nothing changes.

        With those of `followed_by`.
        """

    @abc.abstractmethod
    def part(self, chunk: Chunk) -> Any:
        """What one chunk contributes. It changes nothing, and may run in any thread."""

    @abc.abstractmethod
    def add(self, part: Any) -> None:
        """Take in the parts, in the order of chunks."""

    @abc.abstractmethod
    def result(self) -> dict[str, np.ndarray]:
        """The arrays of this tensor, by name."""

    def followed_by(self) -> "Statistic | None":
        """What needs the result of this one and the chunks a second time; mostly nothing."""
        return None
