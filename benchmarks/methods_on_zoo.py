"""Every method on zoos, with and without AWD, at its default and at its best lambda.

    python -m benchmarks methods_on_zoo                                   the shipped zoo
    python -m benchmarks.methods_on_zoo DIR --without-shipped --methods ties sce --kept ROWS

Every DIR holds one expert for each task, as `make zoo` and `make zoo-full` train them. Every merge
is written by a process of its own, which gives processor time, peak memory and bytes read (the
first one reads its inputs once more, to hash them). AWD in front is `row` with its defaults.

Where coefficients are scales, one lambda for all multiplies the whole change to the base, so the
search scales the written merge: from the default up and down a grid until two in a row do not help,
on a fixed sample of the validation split alone. The test split is read for the default and for the
lambda that the search chose, never to choose. Methods that make a model for each task answer each
task with its own one, which a merge cannot: they have to be told the task. Methods for two experts
are left out.

Texts are encoded with matrix products in bfloat16, which halves the time: `awd_on_zoo` has base and
experts in float32. What the folder ROWS holds is not measured again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import awd_core as awd
from awd_core import zoo
from awd_core.evaluation import Encoder, TaskAccuracy, evaluate, mean_accuracy
from awd_core.merge import merged_state, plan_merge
from awd_core.method import MergeMethod
from awd_core.naming import with_distinct_labels
from awd_core.stream import chunks
from benchmarks._leaderboard import REFERENCES, SHOWN, Row, keep, kept_rows, tables, write_shown

GRID = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
AWD = {"granularity": "row"}
VALIDATION_TEXTS = 80

# What a child does: merge, then say what it took. getrusage would tell the peak of its parent.
CHILD = """
import json, sys, time
import awd_core as awd
def numbers(file):
    lines = open(f"/proc/self/{file}").read().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
read, cpu = int(numbers("io")["rchar"][0]), time.process_time()
awd.merge(awd.Recipe.load(sys.argv[1]), sys.argv[2], device="cpu")
cpu = time.process_time() - cpu
read = int(numbers("io")["rchar"][0]) - read
peak = int(numbers("status")["VmHWM"][0]) * 1024
print(json.dumps({"cpu": cpu, "peak": peak, "read": read}))
"""

State = dict[str, torch.Tensor]
Models = Sequence[State]  # one for all tasks, or one for each


class QuickEncoder(Encoder):
    """Features with matrix products in bfloat16."""

    batch_size = 128

    def encode(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Features of one batch."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().encode(ids, attention_mask).float()


class Bench:
    """Base, experts and tasks of one zoo, opened once."""

    def __init__(self, folder: Path | None, kept: Path) -> None:
        keys = [key for key in zoo.TASK_KEYS if folder is None or (folder / key).is_dir()]
        self.name = "shipped" if folder is None else folder.name
        self.sources = [f"zoo:{key}" if folder is None else str(folder / key) for key in keys]
        self.base = awd.open_checkpoint("zoo:base")
        self.experts = with_distinct_labels(list(map(awd.open_checkpoint, self.sources)))
        self.kind = "lora" if self.experts[0].kind == "lora" else "full"
        self.tasks = [task for task in zoo.tasks() if task.key in keys]
        self.start = load_file(next(self.base.path.glob("*.safetensors")))
        self.own = self._references(kept)

    def _references(self, kept: Path) -> dict[str, float]:
        """Keeps the accuracies of base and experts, and returns those of the experts."""
        known = {row.method: row for row in kept_rows(kept, self.name)}
        for name in REFERENCES:
            if name not in known:
                experts = [self.expert(source) for source in self.sources]
                models = [self.start] if name == "base" else experts
                test = self.accuracy(models, "test")
                accuracies = {one.task: one.accuracy for one in test}
                row = (self.name, self.kind, name, False, "default", None, accuracies)
                known[name] = Row(*row, standard_error(test))
                keep(kept, [known[name]])
        return known["experts"].test

    def expert(self, source: str) -> State:
        """The whole weights of one expert."""
        recipe = awd.Recipe(base="zoo:base", experts=[source], coefficient=1.0)
        return merged_state(plan_merge(recipe, device="cpu"))

    def accuracy(
        self, models: Models, split: str, limit: int | None = None
    ) -> tuple[TaskAccuracy, ...]:
        """Accuracy of one model on every task, or of each model on its own task."""
        encoders = [QuickEncoder.from_state(self.base.path, state) for state in models]
        if len(encoders) == 1:
            return evaluate(encoders[0], self.tasks, split, limit)
        pairs = zip(encoders, self.tasks, strict=True)
        return tuple(evaluate(encoder, [task], split, limit)[0] for encoder, task in pairs)

    def merge(self, fields: dict[str, Any], per_task: bool) -> tuple[Models, dict[str, float]]:
        """The merged weights, and what they cost."""
        recipe = awd.Recipe(base="zoo:base", experts=self.sources, **fields)
        with tempfile.TemporaryDirectory() as name:
            file, out = Path(name) / "recipe.yaml", Path(name) / "out"
            file.write_text(recipe.to_yaml(), encoding="utf-8")
            command = [sys.executable, "-c", CHILD, file, out]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            folders = [out / one.label for one in self.experts] if per_task else [out]
            models = [load_file(next(folder.glob("*.safetensors"))) for folder in folders]
        return models, json.loads(printed.splitlines()[-1])

    def scaled(self, models: Models, factor: float) -> Models:
        """theta_0 + factor (theta - theta_0)."""
        if factor == 1:
            return models
        return [
            {
                name: torch.lerp(self.start[name], tensor, factor)
                if tensor.is_floating_point()
                else tensor
                for name, tensor in state.items()
            }
            for state in models
        ]

    def fit(self, models: Models) -> tuple[np.ndarray, float]:
        """cos(merged change, tau_k) of every expert, and the relative norm of the change."""
        n_experts = len(self.experts)
        products, own, squares = np.zeros(n_experts), np.zeros(n_experts), np.zeros(len(models))
        for name, tensor in self.base.stored.items():
            if not tensor.is_float or not any(one.touches(name) for one in self.experts):
                continue
            start = self.start[name].double()
            changes = torch.stack(
                [(state[name] - start).reshape(tensor.matrix_shape) for state in models]
            )
            squares += changes.square().sum((1, 2)).numpy()
            for chunk in chunks(tensor, self.experts, "cpu"):
                part = changes[:, chunk.start : chunk.stop]
                products += (chunk.task_vectors * part).sum((1, 2)).numpy()
                own += chunk.task_vectors.square().sum((1, 2)).numpy()
        lengths = np.sqrt(own * squares)
        cosines = products / np.where(lengths > 0, lengths, np.inf)
        return cosines, float(np.sqrt(squares).mean() / np.sqrt(own).mean())


def climb(look: Callable[[float], float], start: float) -> float:
    """The best coefficient from `start` up and down the grid; the smallest of equals."""
    grid = sorted({*GRID, start})
    found = {start: look(start)}
    for step in (-1, 1):
        at, since = grid.index(start) + step, 0
        while 0 <= at < len(grid) and since < 2:
            best = max(found.values())
            found[grid[at]] = look(grid[at])
            since = 0 if found[grid[at]] > best else since + 1
            at += step
    return max(found, key=lambda value: (found[value], -value))


def rows(bench: Bench, method: type[MergeMethod], disentangle: bool) -> Iterator[Row]:
    """The default, and the best lambda where there is another one."""
    fields: dict[str, Any] = {"method": method.key}
    if disentangle:
        fields["disentangle"] = AWD
    merged, cost = bench.merge(fields, method.needs_task)
    cosines, length = bench.fit(merged)
    has_scale = method.takes_coefficients and method.coefficients_are == "scales"
    default = method.default_coefficient if has_scale else 1.0
    seen: dict[float, float] = {}

    def look(coefficient: float) -> float:
        models = bench.scaled(merged, coefficient / default)
        seen[coefficient] = mean_accuracy(bench.accuracy(models, "validation", VALIDATION_TEXTS))
        return seen[coefficient]

    best = climb(look, default) if has_scale else default
    for coefficient in dict.fromkeys((default, best)):
        test = bench.accuracy(bench.scaled(merged, coefficient / default), "test")
        yield Row(
            zoo=bench.name,
            kind=bench.kind,
            method=method.key,
            awd=disentangle,
            chosen="default" if coefficient == default else "validation",
            coefficient=coefficient if has_scale else None,
            test={one.task: one.accuracy for one in test},
            error=standard_error(test),
            validation=seen[coefficient] if coefficient in seen else look(coefficient),
            normalised=float(np.mean([one.accuracy / bench.own[one.task] for one in test])),
            cosine=float(cosines.mean()),
            least_cosine=float(cosines.min()),
            length=coefficient / default * length,
            **cost,
        )


def standard_error(accuracies: Sequence[TaskAccuracy]) -> float:
    """Of the mean over tasks."""
    return float(np.sqrt(sum(one.standard_error**2 for one in accuracies)) / len(accuracies))


def measure(
    bench: Bench, chosen: Sequence[type[MergeMethod]], with_awd: Sequence[bool], kept: Path
) -> None:
    """What is not there yet, kept as soon as it is."""
    done = {(row.method, row.awd) for row in kept_rows(kept, bench.name)}
    n_experts = len(bench.experts)
    for disentangle in with_awd:
        for method in chosen:
            too_many = n_experts > (method.most_experts or n_experts)
            refuses = disentangle and not method.takes_task_vectors
            if too_many or refuses or (method.key, disentangle) in done:
                continue
            found = list(rows(bench, method, disentangle))
            keep(kept, found)
            for row in found:
                said = f"{row.zoo}, {row.name}, {row.coefficient}: {row.mean:.4f}"
                print(said, file=sys.stderr, flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoos", type=Path, nargs="*", help="folders of experts, beside the shipped")
    parser.add_argument("--without-shipped", action="store_true", help="only the given folders")
    parser.add_argument("--methods", nargs="+", help="keys; all by default")
    parser.add_argument("--awd", choices=("without", "with", "both"), default="both")
    parser.add_argument("--kept", type=Path, help="folder of rows measured before and now")
    parser.add_argument("--show", action="store_true", help=f"write {SHOWN.name} for the app")
    arguments = parser.parse_args()
    chosen = [
        method
        for method in awd.METHODS
        if arguments.methods is None or method.key in arguments.methods
    ]
    with_awd = {"without": (False,), "with": (True,), "both": (False, True)}[arguments.awd]
    with tempfile.TemporaryDirectory() as name:
        kept = arguments.kept or Path(name)
        for folder in [*([] if arguments.without_shipped else [None]), *arguments.zoos]:
            measure(Bench(folder, kept), chosen, with_awd, kept)
        every = [row for file in sorted(kept.glob("*.jsonl")) for row in kept_rows(kept, file.stem)]
    print("\n".join(tables(every)))
    if arguments.show:
        write_shown(every, "python -m benchmarks.methods_on_zoo --show; benchmarks/RESULTS.md")


if __name__ == "__main__":
    main()
