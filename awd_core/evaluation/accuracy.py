"""Accuracy of an encoder on tasks with frozen heads, and accuracies relative to base and experts.

The answer to a text x is argmax_c <f(x), p_c>: f(x) the encoder's unit-norm feature, p_c the
prototype of class c, made once from the base and shared by base, experts and every merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from awd_core.evaluation.encoder import Encoder
from awd_core.evaluation.tasks import Example, Task
from awd_core.lazy import torch

# Examples per task of a live evaluation: about a second for eight tasks on two cores.
LIVE_SAMPLE = 32


@dataclass(frozen=True)
class TaskAccuracy:
    """How many of n examples of one task's split were answered rightly.

    Attributes:
        task: Key of the task.
        split: Its split.
        n: Examples.
        correct: Of them answered rightly.
        confusion: Examples of each label (rows) that got each answer (columns), in the order of
            the task's labels; empty where it was not counted.
    """

    task: str
    split: str
    n: int
    correct: int
    confusion: tuple[tuple[int, ...], ...] = ()

    @property
    def accuracy(self) -> float:
        """correct / n."""
        return self.correct / self.n

    @property
    def standard_error(self) -> float:
        """sqrt(p (1 - p) / n), p the accuracy."""
        return sqrt(self.accuracy * (1 - self.accuracy) / self.n)


def evaluate(
    encoder: Encoder,
    tasks: Sequence[Task],
    split: str,
    limit: int | None = None,
    cancel: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[TaskAccuracy, ...]:
    """Accuracy on each task's split, or on a fixed balanced sample of it, in the tasks' order.

    The texts of all tasks are encoded together, which fills the batches evenly.

    Args:
        encoder: The encoder.
        tasks: The tasks.
        split: `few_shot`, `validation` or `test`.
        limit: Examples per task; None for all.
        cancel: Asked before each batch; when it says True, `Cancelled` is raised.
        progress: Called after each batch with the numbers of texts done and wanted.
    """
    examples = [task.examples(split, limit) for task in tasks]
    texts = [example.text for sample in examples for example in sample]
    features = encoder.features(texts, cancel, progress)
    parts = features.split([len(sample) for sample in examples])
    return tuple(
        _accuracy(task, split, sample, part)
        for task, sample, part in zip(tasks, examples, parts, strict=True)
    )


def _accuracy(
    task: Task, split: str, examples: Sequence[Example], features: torch.Tensor
) -> TaskAccuracy:
    confusion = confusion_of(features, examples, task)
    correct = sum(row[position] for position, row in enumerate(confusion))
    return TaskAccuracy(task.key, split, len(examples), correct, confusion)


def confusion_of(
    features: torch.Tensor, examples: Sequence[Example], task: Task
) -> tuple[tuple[int, ...], ...]:
    """Examples of each label (rows) whose nearest prototype is that of each answer (columns)."""
    counts = [[0] * len(task.labels) for _ in task.labels]
    position = {label: number for number, label in enumerate(task.labels)}
    answers = (features @ task.head.T).argmax(dim=1).tolist()
    for answer, example in zip(answers, examples, strict=True):
        counts[position[example.label]][answer] += 1
    return tuple(map(tuple, counts))


def mean_accuracy(accuracies: Sequence[TaskAccuracy]) -> float:
    """Unweighted mean of the tasks' accuracies: (1/T) sum_t a_t."""
    return sum(found.accuracy for found in accuracies) / len(accuracies)


def normalised_accuracy(merge: Sequence[TaskAccuracy], experts: Sequence[TaskAccuracy]) -> float:
    """(1/T) sum_t a_t(merge) / a_t(expert t): 1 when the merge equals every expert on its task.

    Args:
        merge: Accuracies of the merge.
        experts: Accuracy of each task's own expert, in the same order.
    """
    pairs = zip(merge, experts, strict=True)
    return sum(one.accuracy / own.accuracy for one, own in pairs) / len(merge)


def recovered_gap(
    merge: Sequence[TaskAccuracy],
    base: Sequence[TaskAccuracy],
    experts: Sequence[TaskAccuracy],
) -> float:
    """(merge - base) / (experts - base) of mean accuracies: 0 at the base, 1 at the experts.

    Args:
        merge: Accuracies of the merge.
        base: Accuracies of the base.
        experts: Accuracy of each task's own expert.
    """
    floor = mean_accuracy(base)
    return (mean_accuracy(merge) - floor) / (mean_accuracy(experts) - floor)
