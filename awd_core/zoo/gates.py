"""The gates of the zoo: what has to hold before it may be used to compare merge methods.

With a(.) the mean accuracy over the tasks' test splits, experts on their own task each:
  gain       a(experts) - a(base) >= 0.10
  recovered  (a(merge) - a(base)) / (a(experts) - a(base)) in [0.25, 0.85], where the merge is
             theta_0 + lambda sum_k tau_k at the lambda that is best on validation
  turning    a(merge at lambda = 1) < a(merge at the best lambda)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from awd_core.evaluation.accuracy import TaskAccuracy, evaluate, mean_accuracy, recovered_gap
from awd_core.evaluation.encoder import Encoder
from awd_core.evaluation.tasks import Task

State = Mapping[str, Tensor]

MIN_GAIN = 0.10
MIN_RECOVERED = 0.25
MAX_RECOVERED = 0.85
COEFFICIENTS = tuple(step / 20 for step in range(21))


@dataclass(frozen=True)
class TaskRow:
    """Test accuracies of one task: base, own expert, merge at the best lambda and at 1."""

    task: str
    n: int
    base: float
    expert: float
    merge: float
    merge_at_one: float


@dataclass(frozen=True)
class Gates:
    """Measured figures of a zoo, and whether they hold.

    Attributes:
        coefficient: The lambda that is best on validation.
        validation: Mean validation accuracy at each lambda of the grid.
        rows: Test accuracies per task.
        base: Mean test accuracy of the base.
        experts: Mean test accuracy of the experts, each on its task.
        merge: Mean test accuracy of the merge at the best lambda.
        merge_at_one: Mean test accuracy of the merge at lambda = 1.
        recovered: Share of the gap that the merge recovers.
    """

    coefficient: float
    validation: tuple[float, ...]
    rows: tuple[TaskRow, ...]
    base: float
    experts: float
    merge: float
    merge_at_one: float
    recovered: float

    @property
    def gain(self) -> float:
        """a(experts) - a(base)."""
        return self.experts - self.base

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence per gate that does not hold."""
        problems = []
        if self.gain < MIN_GAIN:
            problems.append(f"the experts gain {self.gain:.3f} over the base, not {MIN_GAIN}")
        if not MIN_RECOVERED <= self.recovered <= MAX_RECOVERED:
            problems.append(
                f"task arithmetic recovers {self.recovered:.2f} of the gap, "
                f"not {MIN_RECOVERED} to {MAX_RECOVERED}"
            )
        if self.merge_at_one >= self.merge:
            problems.append("lambda = 1 is no worse than the best lambda")
        return tuple(problems)

    def as_dict(self) -> dict[str, object]:
        """The figures as plain data."""
        return asdict(self)


def summed_task_vectors(base: State, experts: Sequence[State]) -> dict[str, Tensor]:
    """sum_k (theta_k - theta_0) per tensor, float32, for the tensors that any expert changed.

    Args:
        base: Tensors of the base.
        experts: Tensors of the experts, by the same names.
    """
    total: dict[str, Tensor] = {}
    for name, value in base.items():
        if value.is_floating_point():
            summed = sum((expert[name] - value for expert in experts), value.new_zeros(()))
            if summed.any():
                total[name] = summed
    return total


def add(base: State, total: State, coefficient: float) -> dict[str, Tensor]:
    """theta_0 + lambda sum_k tau_k."""
    merged = dict(base)
    for name, vector in total.items():
        merged[name] = base[name] + coefficient * vector
    return merged


def measure(
    folder: Path,
    experts: Sequence[Encoder],
    tasks: Sequence[Task],
    limit: int | None = None,
    coefficient: float | None = None,
    progress: Callable[[], None] | None = None,
) -> Gates:
    """Measures the gates of a zoo.

    Args:
        folder: Hugging Face folder of the base.
        experts: One expert per task, in the order of the tasks.
        tasks: The tasks.
        limit: Examples per task; None for the whole splits.
        coefficient: A lambda chosen before; None to choose it on validation.
        progress: Called after each evaluation.
    """
    encoder = Encoder.from_folder(folder)
    base = encoder.model.state_dict()
    total = summed_task_vectors(base, [expert.model.state_dict() for expert in experts])

    def scored(one: Encoder, of: Sequence[Task], split: str = "test") -> tuple[TaskAccuracy, ...]:
        found = evaluate(one, of, split, limit)
        if progress is not None:
            progress()
        return found

    def merged(at: float, split: str = "test") -> tuple[TaskAccuracy, ...]:
        return scored(Encoder.from_state(folder, add(base, total, at)), tasks, split)

    validation: tuple[float, ...] = ()
    if coefficient is None:
        validation = tuple(mean_accuracy(merged(at, "validation")) for at in COEFFICIENTS)
        coefficient = COEFFICIENTS[validation.index(max(validation))]
    pairs = zip(experts, tasks, strict=True)
    of_base = scored(encoder, tasks)
    of_experts = tuple(scored(expert, [task])[0] for expert, task in pairs)
    at_best, at_one = merged(coefficient), merged(1.0)
    columns = zip(of_base, of_experts, at_best, at_one, strict=True)
    return Gates(
        coefficient=coefficient,
        validation=validation,
        rows=tuple(
            TaskRow(a.task, a.n, a.accuracy, b.accuracy, c.accuracy, d.accuracy)
            for a, b, c, d in columns
        ),
        base=mean_accuracy(of_base),
        experts=mean_accuracy(of_experts),
        merge=mean_accuracy(at_best),
        merge_at_one=mean_accuracy(at_one),
        recovered=recovered_gap(at_best, of_base, of_experts),
    )
