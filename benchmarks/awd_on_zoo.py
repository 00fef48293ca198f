"""Accuracy of base, experts and merges on the zoo: lambda (and alpha) from validation, then test.

    python -m benchmarks.awd_on_zoo                       the shipped zoo
    python -m benchmarks.awd_on_zoo --experts DIR ...     other experts of the same base and tasks

Every method chooses its coefficient (and, with AWD, its norm constraint) by mean accuracy on the
whole validation split; ties go to the smaller coefficient. The test split is read once, for the
chosen setting. Nothing is chosen by looking at the test split.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import awd_core as awd
from awd_core import zoo
from awd_core.checkpoints import Checkpoint
from awd_core.disentangle import GRANULARITIES
from awd_core.evaluation import (
    Encoder,
    Task,
    TaskAccuracy,
    evaluate,
    evaluate_experts,
    evaluate_recipe,
    mean_accuracy,
    recovered_gap,
)

# Coarse steps up to where two in a row do not help, then half a step to both sides of the best.
LAMBDAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.3, 1.6)
FINE = 0.05
ALPHAS = (0.01, 0.1, 0.3)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Method, with AWD's granularity where it came first.
        coefficient: The lambda chosen on validation; None where there is none.
        alpha: The norm constraint chosen on validation, as a fraction of alpha_crit.
        validation: Mean accuracy there.
        test: Mean accuracy on the test split.
        recovered: Share of the gap between base and experts recovered on the test split.
        cosine: Mean |cos| over pairs, whole model, before and after AWD.
        per_task: Accuracy of each task on the test split.
    """

    name: str
    coefficient: float | None
    alpha: float | None
    validation: float
    test: float
    recovered: float
    cosine: tuple[float, float] | None
    per_task: dict[str, float]


@dataclass
class Bench:
    """Base, experts and tasks, opened once, and every validation accuracy that was measured."""

    base: Checkpoint
    experts: tuple[Checkpoint, ...]
    study: awd.Study
    tasks: tuple[Task, ...]

    def accuracy(
        self, fields: dict[str, Any], split: str, limit: int | None = None
    ) -> tuple[TaskAccuracy, ...]:
        """Accuracy of one recipe on every task."""
        recipe = awd.Recipe(
            base=self.base.source, experts=[expert.source for expert in self.experts], **fields
        )
        opened = (self.base, self.experts)
        return evaluate_recipe(
            recipe, self.tasks, split, limit, study=self.study, checkpoints=opened
        )

    def best_coefficient(self, fields: dict[str, Any]) -> tuple[float, float]:
        """(validation accuracy, lambda) at the best lambda; the smaller one of equals."""
        found: dict[float, float] = {}

        def look(coefficient: float) -> float:
            chosen = {**fields, "coefficient": coefficient}
            found[coefficient] = mean_accuracy(self.accuracy(chosen, "validation"))
            return found[coefficient]

        best, since = -1.0, 0
        for coefficient in LAMBDAS:
            mean = look(coefficient)
            best, since = (mean, 0) if mean > best else (best, since + 1)
            if since == 2:
                break
        peak = max(found, key=lambda coefficient: (found[coefficient], -coefficient))
        for coefficient in (peak - FINE, peak + FINE):
            look(round(coefficient, 2))
        peak = max(found, key=lambda coefficient: (found[coefficient], -coefficient))
        return found[peak], peak


def open_bench(folders: Sequence[Path] | None) -> Bench:
    """The shipped zoo, or experts from other folders in the order of the tasks."""
    base = awd.open_checkpoint("zoo:base")
    sources = [f"zoo:{key}" for key in zoo.TASK_KEYS] if folders is None else map(str, folders)
    experts = tuple(awd.open_checkpoint(source) for source in sources)
    return Bench(base, experts, awd.collect(base, experts), zoo.tasks())


def candidates() -> Iterator[tuple[str, dict[str, Any], tuple[float | None, ...]]]:
    """Name, recipe fields and norm constraints of everything that chooses a lambda."""
    yield "task arithmetic", {"method": "task_arithmetic"}, (None,)
    yield "TIES", {"method": "ties"}, (None,)
    for granularity in GRANULARITIES:
        fields = {"method": "task_arithmetic", "disentangle": {"granularity": granularity}}
        yield f"AWD ({granularity}) + task arithmetic", fields, ALPHAS


def measure(bench: Bench) -> list[Row]:
    """Every row of the table."""
    base_test = of_base(bench, "test")
    experts_test = evaluate_experts(bench.base, bench.experts, bench.tasks, "test")

    def row(
        name: str,
        found: tuple[TaskAccuracy, ...],
        validation: float,
        coefficient: float | None = None,
        alpha: float | None = None,
        cosine: tuple[float, float] | None = None,
    ) -> Row:
        recovered = recovered_gap(found, base_test, experts_test)
        per_task = {one.task: one.accuracy for one in found}
        return Row(
            name,
            coefficient,
            alpha,
            validation,
            mean_accuracy(found),
            recovered,
            cosine,
            per_task,
        )

    base_validation = mean_accuracy(of_base(bench, "validation"))
    experts_validation = mean_accuracy(
        evaluate_experts(bench.base, bench.experts, bench.tasks, "validation")
    )
    rows = [
        row("base", base_test, base_validation),
        row("experts, each on its own task", experts_test, experts_validation),
    ]
    average = {"method": "average"}
    average_validation = mean_accuracy(bench.accuracy(average, "validation"))
    rows.append(row("average", bench.accuracy(average, "test"), average_validation))
    for name, fields, alphas in candidates():
        start = time.perf_counter()
        best, chosen, alpha = (-1.0, 0.0), fields, None
        for candidate in alphas:
            tried = _with_alpha(fields, candidate)
            found = bench.best_coefficient(tried)
            if found[0] > best[0]:
                best, chosen, alpha = found, tried, candidate
        test = bench.accuracy({**chosen, "coefficient": best[1]}, "test")
        rows.append(row(name, test, best[0], best[1], alpha, _cosine(bench, chosen)))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def _with_alpha(fields: dict[str, Any], alpha: float | None) -> dict[str, Any]:
    if alpha is None:
        return fields
    settings = {**fields["disentangle"], "alpha_relative": alpha, "lr_relative": 0.01}
    return {**fields, "disentangle": settings}


def _cosine(bench: Bench, fields: dict[str, Any]) -> tuple[float, float] | None:
    if "disentangle" not in fields:
        return None
    solved = awd.disentangle(bench.study, **fields["disentangle"])
    return solved.mean_absolute_cosine


def of_base(bench: Bench, split: str) -> tuple[TaskAccuracy, ...]:
    """Accuracy of the base on every task."""
    return evaluate(Encoder.from_folder(bench.base.path), bench.tasks, split)


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        "| | λ | α / α_crit | validation | test | share of the gap | mean abs. cos |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cosine = "" if row.cosine is None else f"{row.cosine[0]:.4f} → {row.cosine[1]:.4f}"
        alpha = "" if row.alpha is None else f"{row.alpha:g}"
        coefficient = "" if row.coefficient is None else f"{row.coefficient:g}"
        lines.append(
            f"| {row.name} | {coefficient} | {alpha} | {row.validation:.4f} | {row.test:.4f} |"
            f" {row.recovered:.1%} | {cosine} |"
        )
    return "\n".join(lines)


def per_task(rows: Sequence[Row]) -> str:
    """Accuracy of each task on the test split."""
    tasks = list(rows[0].per_task)
    lines = [f"| | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for row in rows:
        accuracies = (f"{row.per_task[task]:.3f}" for task in tasks)
        lines.append(f"| {row.name} | {' | '.join(accuracies)} |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=Path, nargs="+", help="expert folders, in task order")
    parser.add_argument("--json", type=Path, help="also write every number there")
    arguments = parser.parse_args()
    rows = measure(open_bench(arguments.experts))
    print(f"\n{markdown(rows)}\n\n{per_task(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
