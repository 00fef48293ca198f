"""AWD on zoos of several seeds: does it help, by how much, and is interference what hurts?

    python -m benchmarks.awd_on_zoos DIR DIR ...

Every DIR holds one expert for each task, as `make zoo ZOO_ARGS="--seed 1 --out DIR"` or `make
zoo-full ZOO_ARGS="--seed 1 --out DIR"` trains them; the shipped zoo always comes first. Every line
of the table chooses its coefficient by mean accuracy on a fixed sample of the validation split (the
smaller one of equals) and reads the test split once. Settings of AWD are the defaults of every
granularity and the presets as they are: nothing but lambda is chosen. Where delta comes out as 0
the line is that of task arithmetic.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import awd_core as awd
from analysis.accuracy_drop import correlation, drops
from analysis.view import View
from awd_core import zoo
from awd_core.disentangle import GRANULARITIES, PRESETS
from awd_core.evaluation import TaskAccuracy, evaluate_experts, mean_accuracy, recovered_gap
from benchmarks.awd_on_zoo import Bench, of_base

# Texts a task on which lambda is chosen: 640 in all.
VALIDATION_TEXTS = 80
# The grid of task arithmetic; the others start at its best and climb in steps of FINE.
LAMBDAS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
FINE = 0.05


@dataclass(frozen=True)
class Line:
    """One method on one zoo.

    Attributes:
        name: The method.
        coefficient: lambda chosen on validation; None for base and experts.
        test: Accuracy of every task on the test split.
        recovered: Share of the gap between base and experts.
        cosine: Mean |cos| over pairs in the groups AWD works on, before and after.
        whole: The same over the whole model.
    """

    name: str
    coefficient: float | None
    test: dict[str, float]
    recovered: float
    cosine: tuple[float, float] | None = None
    whole: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """Unweighted over tasks."""
        return float(np.mean(list(self.test.values())))


def candidates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and recipe fields of everything that follows task arithmetic."""
    yield "TIES", {"method": "ties"}
    for granularity in (*GRANULARITIES, "spectral"):
        fields = {"granularity": granularity, "alpha_relative": 0.1, "lr_relative": 0.01}
        yield f"AWD {granularity} + task arithmetic", {"disentangle": fields}
    for key in ("paper", "row", "converged", "norm-bounded"):
        settings = PRESETS[key].settings.model_dump(exclude_defaults=True)
        yield f"AWD preset {key} + task arithmetic", {"disentangle": settings}


class Search:
    """Validation accuracies of one method, measured once each."""

    def __init__(self, bench: Bench, fields: dict[str, Any]) -> None:
        self._bench, self._fields = bench, fields
        self._found: dict[float, float] = {}

    def look(self, coefficient: float) -> float:
        """Mean accuracy on the sample."""
        if coefficient not in self._found:
            fields = {**self._fields, "coefficient": coefficient}
            accuracies = self._bench.accuracy(fields, "validation", VALIDATION_TEXTS)
            self._found[coefficient] = mean_accuracy(accuracies)
        return self._found[coefficient]

    @property
    def best(self) -> float:
        """The smallest coefficient of the highest accuracy."""
        return max(self._found, key=lambda value: (self._found[value], -value))

    def climb(self, start: float) -> float:
        """From `start` in steps of FINE, to both sides, until two in a row do not help."""
        self.look(start)
        for direction in (-1, 1):
            since, at = 0, start
            while since < 2 and at + direction * FINE > FINE / 2:
                at = round(at + direction * FINE, 2)
                best = self._found[self.best]
                since = 0 if self.look(at) > best else since + 1
        return self.best


def measure(bench: Bench) -> tuple[list[Line], pd.DataFrame]:
    """All methods on one zoo, and interference beside loss for each of its experts."""
    base, experts = (
        of_base(bench, "test"),
        evaluate_experts(bench.base, bench.experts, bench.tasks, "test"),
    )

    def line(name: str, test: Sequence[TaskAccuracy], **more: Any) -> Line:
        per_task = {one.task: one.accuracy for one in test}
        return Line(
            name,
            more.pop("coefficient", None),
            per_task,
            recovered_gap(test, base, experts),
            **more,
        )

    lines = [line("base", base), line("experts, each on its own task", experts)]
    plain = Search(bench, {})
    for value in LAMBDAS:
        plain.look(value)
    start = plain.best
    merged = bench.accuracy({"coefficient": start}, "test")
    lines.append(line("task arithmetic", merged, coefficient=start))
    for name, fields in candidates():
        began = time.perf_counter()
        cosines: dict[str, Any] = {}
        if "disentangle" in fields:
            solved = awd.disentangle(bench.study, **fields["disentangle"])
            cosines = {"cosine": solved.objective, "whole": solved.mean_absolute_cosine}
            if not solved.redundant_norm:
                lines.append(line(name, merged, coefficient=start, **cosines))
                continue
        best = Search(bench, fields).climb(max(start, 0.6) if "method" in fields else start)
        test = bench.accuracy({**fields, "coefficient": best}, "test")
        lines.append(line(name, test, coefficient=best, **cosines))
        print(f"  {name}: {lines[-1].mean:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    plain_view = View(bench.study, awd.no_redundancy(bench.study), np.ones(bench.study.n_experts))
    return lines, drops(plain_view, experts, merged)


def table(zoos: Sequence[Sequence[Line]]) -> str:
    """Mean and standard deviation over zoos."""
    rows = [
        "| | λ | test | difference to task arithmetic | share of the gap |"
        " mean abs. cos in groups | of the whole model |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = np.array(
        [next(one.mean for one in zoo if one.name == "task arithmetic") for zoo in zoos]
    )
    for lines in zip(*zoos, strict=True):
        means = np.array([line.mean for line in lines])
        gaps = np.array([line.recovered for line in lines])
        chosen = ", ".join(
            f"{line.coefficient:g}" for line in lines if line.coefficient is not None
        )
        rows.append(
            f"| {lines[0].name} | {chosen} | {_spread(means)} |"
            f" {_spread(means - plain, sign='+')} | {_spread(gaps, 3)} |"
            f" {_cosines([line.cosine for line in lines])} |"
            f" {_cosines([line.whole for line in lines])} |"
        )
    return "\n".join(rows)


def _spread(values: np.ndarray, digits: int = 4, sign: str = "") -> str:
    if len(values) == 1:
        return f"{values[0]:{sign}.{digits}f}"
    return f"{values.mean():{sign}.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def _cosines(pairs: Sequence[tuple[float, float] | None]) -> str:
    found = [pair for pair in pairs if pair is not None]
    if not found:
        return ""
    before, after = np.mean(found, axis=0)
    return f"{before:.4f} → {after:.4f}"


def said(lost: pd.DataFrame) -> str:
    """Does the expert that interferes more lose more?"""
    return (
        "Interference of an expert (mean |cos| with the others, over blocks) and the accuracy its"
        f" task loses from expert to best task arithmetic, {correlation(lost).sentence} Zoos share"
        " their tasks, so experts of several zoos are not independent."
    )


def open_zoo(folder: Path | None) -> Bench:
    """The shipped zoo, or the experts that a folder has, with every level of the study."""
    base = awd.open_checkpoint("zoo:base")
    keys = [key for key in zoo.TASK_KEYS if folder is None or (folder / key).is_dir()]
    sources = [f"zoo:{key}" if folder is None else str(folder / key) for key in keys]
    experts = tuple(awd.open_checkpoint(source) for source in sources)
    tasks = tuple(task for task in zoo.tasks() if task.key in keys)
    return Bench(base, experts, awd.collect(base, experts, spectral=True), tasks)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoos", type=Path, nargs="*", help="folders of experts, beside the shipped")
    parser.add_argument("--without-shipped", action="store_true", help="only the given folders")
    parser.add_argument("--json", type=Path, help="keep every number there, zoo by zoo")
    arguments = parser.parse_args()
    folders = [*([] if arguments.without_shipped else [None]), *arguments.zoos]
    found: list[list[Line]] = []
    lost: list[pd.DataFrame] = []
    for folder in folders:
        lines, some = measure(open_zoo(folder))
        found.append(lines)
        lost.append(some)
        if arguments.json:
            kept = [{"lines": [asdict(line) for line in one]} for one in found]
            kept.append({"drops": pd.concat(lost).to_dict("records")})
            arguments.json.write_text(json.dumps(kept, indent=1))
    print(f"\n{table(found)}\n\n{said(pd.concat(lost))}")


if __name__ == "__main__":
    main()
