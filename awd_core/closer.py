"""Commands that look closer than the one pass: singular values, signs of locks, accuracy."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import awd_core as awd
from awd_core import zoo
from awd_core.archive import open_study_or_file
from awd_core.events import Watcher
from awd_core.locks import SOURCE, lock_signs
from awd_core.recipe import Recipe
from awd_core.terminal import (
    AllowPickle,
    AsJson,
    BaseArg,
    Device,
    Events,
    ExpertArgs,
    open_sources,
    out,
    print_json,
    print_line,
    print_result,
    print_table,
)


def spectra(
    study: Annotated[Path, typer.Argument(help="Study folder; its weights have to be here.")],
    allow_pickle: AllowPickle = False,
    device: Device = "auto",
    events: Events = None,
    as_json: AsJson = False,
) -> None:
    """Decompose every matrix of a study, for spectral measures and granularity spectral."""
    opened = open_study_or_file(study)
    with Watcher(events, quiet=as_json) as watch:
        experts = [source.source for source in opened.sources]
        base, checkpoints = open_sources(
            opened.base.source, experts, allow_pickle, opened.vocabulary
        )
        found = awd.collect_spectra(
            opened,
            base,
            checkpoints,
            device=device,
            progress=watch.progress,
            cancel=watch.cancelled,
        )
    print_result({"study": str(found.path), "matrices": len(found.spectra[0])}, as_json)


def locks(
    base: BaseArg,
    experts: ExpertArgs = None,
    allow_pickle: AllowPickle = False,
    events: Events = None,
    as_json: AsJson = False,
) -> None:
    """Look for attention weights that were locked against merging; exit code 1 where some are."""
    with Watcher(events, quiet=as_json) as watch:
        opened, opened_experts = open_sources(base, experts, allow_pickle)
        signs = lock_signs(opened, opened_experts, progress=watch.progress, cancel=watch.cancelled)
    locked = [sign for sign in signs if sign.looks_locked]
    if as_json:
        rows = [{**vars(sign), "looks_locked": sign.looks_locked} for sign in signs]
        print_json({"ok": not locked, "signs": rows, "source": SOURCE})
    else:
        for sign in locked:
            print_line(f"[bold red]locked[/] {escape(sign.verdict)}")
        out.print(
            f"{len(signs)} pairs of attention weights looked at: {len(locked)} look locked."
            if signs
            else "No expert has attention weights that can be looked at by pairs."
        )
    raise typer.Exit(1 if locked else 0)


def evaluate(
    recipe_or_folder: Annotated[str, typer.Argument(help="Recipe, or a model folder.")],
    split: Annotated[str, typer.Option(help="validation or test, of the zoo's tasks.")] = "test",
    sample: Annotated[
        int | None, typer.Option(help="Examples per task; all when left out.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="Texts of your own: .jsonl or .csv with text, label, task; or .txt."),
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="Study of the recipe; AWD then needs no pass.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file to write; with --texts.")
    ] = None,
    allow_pickle: AllowPickle = False,
    device: Device = "auto",
    events: Events = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy on the tasks of the zoo; with --texts base, experts and merge on your own."""
    with Watcher(events, quiet=as_json) as watch:
        if texts is not None:
            opened = None if study is None else open_study_or_file(study)
            recipe = Recipe.load(recipe_or_folder)
            _evaluate_own(recipe, texts, opened, output, allow_pickle, device, watch, as_json)
        else:
            _evaluate_on_zoo(recipe_or_folder, split, sample, watch, as_json)


def _evaluate_on_zoo(
    recipe_or_folder: str, split: str, sample: int | None, watch: Watcher, as_json: bool
) -> None:
    from awd_core.evaluation import Encoder, evaluate, evaluate_recipe, mean_accuracy

    tasks, path = zoo.tasks(), Path(recipe_or_folder)
    if path.is_file():
        found = evaluate_recipe(Recipe.load(path), tasks, split, sample, cancel=watch.cancelled)
    else:
        folder = awd.open_checkpoint(recipe_or_folder).path
        found = evaluate(Encoder.from_folder(folder), tasks, split, sample, watch.cancelled)
    rows = [
        {
            "task": one.task,
            "split": one.split,
            "n": one.n,
            "accuracy": one.accuracy,
            "standard_error": one.standard_error,
        }
        for one in found
    ]
    if as_json:
        print_json({"tasks": rows, "mean_accuracy": mean_accuracy(found)})
    else:
        print_table("Accuracy", rows)
        out.print(f"mean accuracy {mean_accuracy(found):.4f}")


def _evaluate_own(
    recipe: Recipe,
    texts: Path,
    study: awd.Study | None,
    output: Path | None,
    allow_pickle: bool,
    device: str,
    watch: Watcher,
    as_json: bool,
) -> None:
    from awd_core.evaluation import own_results
    from awd_core.evaluation.own import evaluate_own
    from awd_core.evaluation.own_texts import read_texts

    if output is not None:
        awd.files.require_new(output)
    scores = evaluate_own(
        recipe,
        read_texts(texts),
        study=study,
        checkpoints=open_sources(recipe.base, recipe.experts, allow_pickle),
        device=device,
        progress=watch.progress,
        cancel=watch.cancelled,
    )
    found = own_results.evaluated(recipe, texts, scores)
    if output is not None:
        own_results.write_evaluated(found, output)
    if as_json:
        print_json(own_results.as_fields(found))
        return
    rows = [
        {
            "model": one.model,
            "task": one.task,
            one.metric: one.value,
            "standard error": one.standard_error,
            "texts": one.n,
        }
        for one in scores
    ]
    print_table(f"{scores[0].metric.capitalize()} on {texts.name}", rows)
