"""Commands that look closer than the one pass: singular values, signs of locks."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import awd_core as awd
from awd_core.events import Watcher
from awd_core.locks import SOURCE, lock_signs
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
)


def spectra(
    study: Annotated[Path, typer.Argument(help="Study folder; its weights have to be here.")],
    allow_pickle: AllowPickle = False,
    device: Device = "auto",
    events: Events = None,
    as_json: AsJson = False,
) -> None:
    """Decompose every matrix of a study, for spectral measures and granularity spectral."""
    opened = awd.open_study(study)
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
