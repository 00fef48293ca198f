"""What all commands share: their common options, how checkpoints are opened, how results look."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import awd_core as awd
from awd_core import zoo
from awd_core.checkpoints import Checkpoint, common_rows

out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Events = Annotated[
    Path | None, typer.Option(help="Append progress to this file as JSON lines.", hidden=True)
]
BaseArg = Annotated[
    str, typer.Argument(help="Folder, weight file, hub id, zoo:base, or `zoo` for all of it.")
]
ExpertArgs = Annotated[
    list[str] | None,
    typer.Argument(help="Model or LoRA folders, weight files, hub ids, or zoo:NAME."),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Open pytorch_model.bin where there is nothing else; no code is run."
    ),
]


def open_sources(
    base: str,
    experts: Sequence[str] | None,
    allow_pickle: bool = False,
    vocabulary: str = "same",
) -> tuple[Checkpoint, list[Checkpoint]]:
    """Base and experts; `zoo` alone is all of the zoo.

    Raises:
        AwdError: One of them cannot be opened.
    """
    if base == "zoo" and not experts:
        base, experts = "zoo:base", [f"zoo:{key}" for key in zoo.TASK_KEYS]
    opened = [
        awd.open_checkpoint(source, allow_pickle=allow_pickle)
        for source in (base, *(experts or ()))
    ]
    if vocabulary not in ("same", "common_rows"):
        raise typer.BadParameter(f"{vocabulary!r}: same or common_rows", param_hint="--vocabulary")
    if vocabulary == "common_rows":
        opened[1:] = map(common_rows, opened[1:])
    return opened[0], opened[1:]


def print_line(text: str) -> None:
    """One line, as wide as it is."""
    out.print(text, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """A value as JSON on standard output; null where a number is not finite."""
    sys.stdout.write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """A result as lines for people, or as JSON."""
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        shown = f"{value:.6g}" if isinstance(value, float) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {number:.3f}" for key, number in value.items())
        elif isinstance(value, tuple):
            shown = ", ".join(value)
        out.print(f"[bold]{name.replace('_', ' ')}[/bold]: {shown}", highlight=False)


def print_table(title: str, rows: Sequence[dict[str, Any]], empty: str = "") -> None:
    """Rows as a table; `empty` where there are none."""
    if not rows:
        out.print(empty)
        return
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        cells = (f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row.values())
        table.add_row(*map(escape, cells))
    out.print(table)
