"""Every method on the shipped zoo, with and without AWD, at its default and at its best lambda.

    python -m benchmarks methods_on_zoo                       all methods
    python -m benchmarks.methods_on_zoo --methods ties sce    some

Every merge is written by a process of its own, which gives time, peak memory and bytes read. Where
coefficients are scales, one lambda for all multiplies the whole change to the base, so the search
scales the written merge; it looks at a fixed sample of the validation split alone. The test split
is read for the default and for the lambda that the search chose, never to choose. Standard errors
are those of the mean over tasks of binomial shares. Methods for two experts are left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import awd_core as awd
from awd_core import zoo
from awd_core.evaluation import (
    Encoder,
    TaskAccuracy,
    evaluate,
    evaluate_experts,
    mean_accuracy,
    normalised_accuracy,
)
from awd_core.method import MergeMethod
from awd_core.stream import chunks

LAMBDAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0)
AWD = {"granularity": "row"}

# What a child does: merge, then say what it took.
CHILD = """
import json, resource, sys, time
import awd_core as awd
start = time.perf_counter()
awd.merge(awd.Recipe.load(sys.argv[1]), sys.argv[2], device="cpu")
seconds = time.perf_counter() - start
io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "read": int(io["rchar"])}))
"""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: The method, and whether AWD came first.
        coefficient: lambda; None where there is none.
        chosen: `default`, or `validation` where the search chose it.
        validation: Mean accuracy on the sample.
        test: Accuracy of every task on the whole test split.
        normalised: Mean of accuracies relative to each task's expert.
        alignment: Mean over experts of cos(merged change, tau_k).
        cost: Seconds, peak bytes and bytes read of the merge.
    """

    name: str
    coefficient: float | None
    chosen: str
    validation: float
    test: tuple[TaskAccuracy, ...]
    normalised: float
    alignment: float
    cost: dict[str, float]


class Bench:
    """Base, experts and tasks, opened once."""

    def __init__(self, sample: int) -> None:
        self.base = awd.open_checkpoint("zoo:base")
        self.sources = [f"zoo:{key}" for key in zoo.TASK_KEYS]
        self.experts = [awd.open_checkpoint(source) for source in self.sources]
        self.tasks = zoo.tasks()
        self.sample = sample
        self.start = load_file(next(self.base.path.glob("*.safetensors")))
        self.of_experts = evaluate_experts(self.base, self.experts, self.tasks, "test")

    def accuracy(
        self, state: dict[str, torch.Tensor], split: str, limit: int | None = None
    ) -> tuple[TaskAccuracy, ...]:
        """Accuracy of weights on every task."""
        return evaluate(Encoder.from_state(self.base.path, state), self.tasks, split, limit)

    def merge(self, fields: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The merged weights, and what they cost."""
        recipe = awd.Recipe(base="zoo:base", experts=self.sources, **fields)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-c", CHILD, folder / "recipe.yaml", folder / "out"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        state: dict[str, Any] = {}
        for file in (folder / "out").glob("*.safetensors"):
            state |= load_file(file)
        return state, json.loads(printed.splitlines()[-1])

    def scaled(self, state: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
        """theta_0 + factor (theta - theta_0)."""
        return {
            name: torch.lerp(self.start[name], tensor, factor)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in state.items()
        }

    def alignment(self, state: dict[str, torch.Tensor]) -> float:
        """Mean over experts of the cosine of the merged change and tau_k."""
        products, squares, own = np.zeros(len(self.experts)), 0.0, np.zeros(len(self.experts))
        for name, tensor in self.base.stored.items():
            touched = any(expert.touches(name) for expert in self.experts)
            if not tensor.is_float or not touched:
                continue
            change = (state[name].double() - self.start[name].double()).reshape(tensor.matrix_shape)
            squares += float(change.square().sum())
            for chunk in chunks(tensor, self.experts, torch.device("cpu")):
                vectors = chunk.task_vectors
                products += (vectors * change[chunk.start : chunk.stop]).sum((1, 2)).numpy()
                own += vectors.square().sum((1, 2)).numpy()
        lengths = np.sqrt(own * squares)
        return float(np.mean(products / np.where(lengths > 0, lengths, np.inf)))


def rows(bench: Bench, method: type[MergeMethod], disentangle: bool) -> Iterator[Row]:
    """The default, and the best lambda where there is one to choose."""
    fields: dict[str, Any] = {"method": method.key}
    name = method.title
    if disentangle:
        fields["disentangle"], name = AWD, f"AWD (row) + {name}"
    with tempfile.TemporaryDirectory() as folder:
        merged, cost = bench.merge(fields, Path(folder))
    alignment = bench.alignment(merged)

    def row(state: dict[str, torch.Tensor], coefficient: float | None, chosen: str) -> Row:
        sample = mean_accuracy(bench.accuracy(state, "validation", bench.sample))
        test = bench.accuracy(state, "test")
        relative = normalised_accuracy(test, bench.of_experts)
        return Row(name, coefficient, chosen, sample, test, relative, alignment, cost)

    scales = method.takes_coefficients and method.coefficients_are == "scales"
    default = method.default_coefficient if scales else None
    yield row(merged, default, "default")
    if default is None:
        return
    found = {
        coefficient: mean_accuracy(
            bench.accuracy(bench.scaled(merged, coefficient / default), "validation", bench.sample)
        )
        for coefficient in LAMBDAS
    }
    best = max(found, key=lambda coefficient: (found[coefficient], -coefficient))
    if best != default:
        yield row(bench.scaled(merged, best / default), best, "validation")


def standard_error(accuracies: Sequence[TaskAccuracy]) -> float:
    """Of the mean over tasks."""
    return float(np.sqrt(sum(one.standard_error**2 for one in accuracies)) / len(accuracies))


def line(row: Row) -> str:
    """One row of the table."""
    coefficient = "" if row.coefficient is None else f"{row.coefficient:g}"
    return (
        f"| {row.name} | {coefficient} | {row.chosen} | {row.validation:.3f} |"
        f" {mean_accuracy(row.test):.4f} ± {standard_error(row.test):.4f} | {row.normalised:.3f} |"
        f" {row.alignment:.3f} | {row.cost['seconds']:.1f} | {row.cost['peak'] / 1e6:,.0f} |"
        f" {row.cost['read'] / 1e6:,.0f} |"
    )


HEAD = (
    "| method | λ | chosen by | validation sample | test | normalised | mean cos(change, τ) |"
    " s | peak MB | MB read |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", help="keys; all by default")
    parser.add_argument("--sample", type=int, default=32, help="validation texts a task")
    parser.add_argument("--without-awd", action="store_true", help="leave out the rows with AWD")
    arguments = parser.parse_args()
    began = time.perf_counter()
    bench = Bench(arguments.sample)
    n_experts = len(bench.experts)
    chosen = [
        method
        for method in awd.METHODS
        if (arguments.methods is None or method.key in arguments.methods)
        and n_experts <= (method.most_experts or n_experts)
        and not method.needs_task
    ]
    print(f"Experts, each on its own task: {mean_accuracy(bench.of_experts):.4f}.\n\n{HEAD}")
    every: list[Row] = []
    for method in chosen:
        for disentangle in (False, True):
            if disentangle and (arguments.without_awd or not method.takes_task_vectors):
                continue
            for row in rows(bench, method, disentangle):
                print(line(row), flush=True)
                every.append(row)
    tasks = [one.task for one in bench.of_experts]
    print(f"\nTest accuracy of every task:\n\n| method | λ | {' | '.join(tasks)} |")
    print("|---" * (len(tasks) + 2) + "|")
    for row in every:
        accuracies = " | ".join(f"{one.accuracy:.3f}" for one in row.test)
        coefficient = "" if row.coefficient is None else f"{row.coefficient:g}"
        print(f"| {row.name} | {coefficient} | {accuracies} |")
    print(f"\n{time.perf_counter() - began:.0f} s in all.")


if __name__ == "__main__":
    main()
