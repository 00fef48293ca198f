"""`python -m awd_core.zoo.train`: builds the zoo from the installed packages, from nothing.

Texts, heads, experts, gates, in this order. Exit code 1 when a gate does not hold.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from awd_core.errors import AwdError, nearest
from awd_core.evaluation.encoder import Encoder
from awd_core.evaluation.tasks import Task
from awd_core.zoo import (
    DATA_FOLDER,
    EXPERTS_FOLDER,
    GATES_FILE,
    HEADS_FILE,
    TASK_KEYS,
    base_folder,
    tasks,
)
from awd_core.zoo.cards import write_card
from awd_core.zoo.corpus import Corpus, build_corpus, training_examples, write_corpus
from awd_core.zoo.experts import load_adapter, save_adapter, save_full
from awd_core.zoo.gates import COEFFICIENTS, Gates, measure
from awd_core.zoo.heads import write_heads
from awd_core.zoo.labelling import RULES
from awd_core.zoo.sources import DISTRIBUTIONS
from awd_core.zoo.training import (
    FULL_TRAINING,
    LORA_TRAINING,
    LoraSettings,
    TrainingSettings,
    fit,
    with_adapter,
)

FULL_FOLDER = Path("zoo-full")
LORA = LoraSettings()

console = Console()
app = typer.Typer(add_completion=False)


@app.command()
def main(
    full: Annotated[bool, typer.Option("--full", help="Train all parameters, no LoRA.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder that receives the experts.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of adapters and batches.")] = 0,
    only: Annotated[str, typer.Option("--tasks", help="Comma-separated task keys.")] = "",
    only_build: Annotated[
        bool, typer.Option("--only-build", help="Texts and heads only, no training.")
    ] = False,
) -> None:
    """Builds the zoo: texts and heads, then one expert per task, then the gates."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    try:
        keys = chosen_tasks(only)
        corpus = build_texts()
        # Other zoos stand on the shipped texts and heads, or they could not be compared with it.
        if not full and out is None:
            write_corpus(corpus, DATA_FOLDER)
            write_heads(Encoder.from_folder(base_folder()), tasks(), HEADS_FILE)
            console.print("Texts and heads are written.")
        if only_build:
            return
        settings = replace(FULL_TRAINING if full else LORA_TRAINING, seed=seed)
        folder = out or (FULL_FOLDER if full else EXPERTS_FOLDER)
        train_experts(keys, corpus, settings, folder, full)
        if keys == TASK_KEYS:
            finish(measure_gates(folder, full), settings, folder, full)
    except AwdError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error


def chosen_tasks(only: str) -> tuple[str, ...]:
    """The task keys named in a comma-separated list, in fixed order; all of them if it is empty."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in TASK_KEYS:
            raise AwdError("No such task", received=name, remedy=nearest(name, TASK_KEYS))
    return tuple(key for key in TASK_KEYS if not names or key in names)


def build_texts() -> Corpus:
    """All splits of all tasks, read from the installed sources."""
    n_parts = 1 + len(DISTRIBUTIONS) + len(RULES)
    with progress_bar("texts", n_parts) as bar:

        def report(name: str) -> None:
            bar.advance(name)

        return build_corpus(report)


def train_experts(
    keys: tuple[str, ...], corpus: Corpus, settings: TrainingSettings, folder: Path, full: bool
) -> None:
    """Trains and writes one expert per task."""
    with progress_bar("experts", len(keys) * settings.steps) as bar:
        for task in tasks():
            if task.key in keys:
                train_expert(task, corpus, settings, folder, full, bar)


def train_expert(
    task: Task, corpus: Corpus, settings: TrainingSettings, folder: Path, full: bool, bar: "Bar"
) -> None:
    """Trains one expert and writes its folder, whole or not at all."""
    examples = training_examples(task, corpus)
    encoder = Encoder.from_folder(base_folder())
    adapted = None if full else with_adapter(encoder, LORA, settings.seed)
    fit(encoder, task, examples, settings, lambda: bar.advance(task.title))
    beside = folder / f".{task.key}"
    shutil.rmtree(beside, ignore_errors=True)
    if adapted is None:
        save_full(encoder, base_folder(), beside)
    else:
        save_adapter(adapted, beside)
    shutil.rmtree(folder / task.key, ignore_errors=True)
    beside.rename(folder / task.key)


def measure_gates(folder: Path, full: bool) -> Gates:
    """The gates of the experts in a folder, measured on the stored weights."""
    experts = [
        Encoder.from_folder(folder / key) if full else load_adapter(base_folder(), folder / key)
        for key in TASK_KEYS
    ]
    n_evaluations = len(COEFFICIENTS) + len(TASK_KEYS) + 3
    with progress_bar("gates", n_evaluations) as bar:
        return measure(base_folder(), experts, tasks(), progress=lambda: bar.advance("evaluation"))


def finish(
    gates: Gates,
    settings: TrainingSettings,
    folder: Path,
    full: bool,
) -> None:
    """Writes the cards and the figures, prints them, and leaves with 1 when a gate fails."""
    for task, row in zip(tasks(), gates.rows, strict=True):
        lora = None if full else LORA
        write_card(folder / task.key, task, row, settings, lora)
    path = GATES_FILE if folder == EXPERTS_FOLDER else folder / GATES_FILE.name
    path.write_text(json.dumps(gates.as_dict(), indent=2) + "\n", encoding="utf-8")
    console.print(as_table(gates))
    for failure in gates.failures:
        console.print(f"[red]Gate not held: {failure}.[/red]")
    if gates.failures:
        raise typer.Exit(1)
    console.print("All gates hold.")


def as_table(gates: Gates) -> Table:
    """Test accuracies per task and on the mean."""
    best = f"{gates.coefficient:g}"
    table = Table(title=f"Test accuracy; task arithmetic recovers {gates.recovered:.2f} of the gap")
    for column in ("task", "n", "base", "expert", f"merge at {best}", "merge at 1"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for row in gates.rows:
        figures = (row.base, row.expert, row.merge, row.merge_at_one)
        table.add_row(row.task, str(row.n), *(f"{figure:.3f}" for figure in figures))
    means = (gates.base, gates.experts, gates.merge, gates.merge_at_one)
    table.add_section()
    table.add_row("mean", "", *(f"{mean:.3f}" for mean in means))
    return table


class Bar:
    """One progress bar whose text names what is being done."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress = progress
        self._title = title
        self._task = progress.add_task(title, total=total)

    def advance(self, name: str) -> None:
        """One step further, in the part of this name."""
        self._progress.update(self._task, advance=1, description=f"{self._title}: {name}")


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Bar]:
    """A progress bar with a count and the time remaining."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, title, total)


if __name__ == "__main__":
    app()
