"""The command line: the same verbs as the Python interface.

Exit codes: 0 done, 1 the inputs are wrong, 2 usage, 130 cancelled.
"""

import re
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

import awd_core as awd
from awd_core import closer, compiled
from awd_core.archive import export_study as pack_study
from awd_core.archive import open_study_or_file
from awd_core.checkpoints import BaseFit, Estimate, Problem
from awd_core.checkpoints.estimate import in_words
from awd_core.disentangle import GRANULARITIES, PRESETS, Settings
from awd_core.events import Watcher
from awd_core.method_docs import description
from awd_core.naming import matching
from awd_core.parallel import Engine
from awd_core.recipe import Recipe
from awd_core.terminal import (
    AllowPickle,
    AsJson,
    BaseArg,
    Device,
    Events,
    ExpertArgs,
    err,
    open_sources,
    out,
    print_json,
    print_line,
    print_result,
    print_table,
)

app = typer.Typer(
    help="AWD Studio: see where experts interfere, disentangle them, merge, ship.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
OnEngine = Annotated[
    str, typer.Option("--engine", help="threads of this machine, or ray: a Ray cluster.")
]
Address = Annotated[
    str | None, typer.Option(help="Of a running Ray cluster; RAY_ADDRESS if left out.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Pattern of tensors kept from the base; repeatable.")
]

Vocabulary = Annotated[
    str,
    typer.Option(
        help="same, or common_rows: merge embeddings of other sizes where rows are shared."
    ),
]


@app.command("app")
def start_app(
    study: Annotated[
        Path | None, typer.Argument(help="Study to open; the zoo if left out.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8501,
) -> None:
    """Start the dashboard in the browser."""
    from awd_core.launch import run_dashboard

    raise typer.Exit(run_dashboard(study, port))


@app.command()
def methods(
    key: Annotated[str | None, typer.Argument(help="One method, with all it declares.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the merge methods, their knobs and presets."""
    chosen = awd.METHODS if key is None else (awd.find_method(key),)
    described = [description(method) for method in chosen]
    if as_json:
        print_json({"methods": described})
    elif key is None:
        rows = [
            {
                "method": one["key"],
                "title": one["title"],
                "executor": one["executor"],
                "knobs": ", ".join(f"{knob['name']}={knob['default']}" for knob in one["knobs"]),
                "presets": ", ".join(one["presets"]),
            }
            for one in described
        ]
        print_table("Methods", rows)
    else:
        (one,) = described
        knobs, presets = one.pop("knobs"), one.pop("presets")
        print_table(one["title"], [{"": name, " ": value} for name, value in one.items()])
        print_table("Knobs", [_knob_row(knob) for knob in knobs], "It has no knobs.")
        rows = [{"preset": name, **preset} for name, preset in presets.items()]
        print_table("Presets", rows, "It has no presets.")


def _knob_row(knob: dict[str, Any]) -> dict[str, str]:
    values = knob.get("choices") or f"{knob['low']} to {knob['high']}"
    default = str(knob["default"])
    return {"knob": knob["name"], "default": default, "values": str(values), "help": knob["help"]}


@app.command()
def inspect(
    base: BaseArg,
    experts: ExpertArgs = None,
    exclude: Exclude = None,
    candidate_base: Annotated[
        list[str] | None,
        typer.Option(help="Another base that the experts may come from; repeatable."),
    ] = None,
    vocabulary: Vocabulary = "same",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the merge shall go.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Check from headers alone whether base and experts merge, and what it will cost.

    Exit code 0 when they merge and the result fits on this machine, else 1.
    """
    opened, opened_experts = open_sources(base, experts, allow_pickle, vocabulary)
    excluded = matching(tuple(opened.stored), exclude or ())
    report = awd.preflight(opened, opened_experts, tuple(excluded), output)
    candidates = [
        awd.open_checkpoint(one, allow_pickle=allow_pickle) for one in candidate_base or ()
    ]
    fits = [awd.base_fit(one, opened_experts) for one in (opened, *candidates)]
    problems = [*report.problems, *awd.base_problems(fits)]
    refused = any(problem.severity == "error" for problem in problems)
    good = not refused and report.estimate.verdict != "will not fit"
    if as_json:
        print_json(
            {
                "ok": good,
                "problems": [vars(problem) for problem in problems],
                "estimate": {**asdict(report.estimate), "verdict": report.estimate.verdict},
                "base_fit": [asdict(fit) for fit in fits],
                "licences": dict(report.licences),
            }
        )
    else:
        _print_preflight(problems, report.estimate, fits)
    raise typer.Exit(0 if good and not (strict and problems) else 1)


@app.command()
def collect(
    base: BaseArg,
    experts: ExpertArgs = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Study folder to write.")
    ] = None,
    exclude: Exclude = None,
    rows: Annotated[bool, typer.Option(help="Keep row Grams; granularity row needs them.")] = True,
    spectral: Annotated[
        bool, typer.Option("--spectral", help="Keep Grams of rotated rows, for spectral.")
    ] = False,
    spectra: Annotated[
        bool, typer.Option("--spectra", help="Decompose every matrix too, for spectral measures.")
    ] = False,
    vocabulary: Vocabulary = "same",
    allow_pickle: AllowPickle = False,
    device: Device = "auto",
    engine: OnEngine = "threads",
    address: Address = None,
    events: Events = None,
    as_json: AsJson = False,
) -> None:
    """Read base and experts once and write the study."""
    opened, opened_experts = open_sources(base, experts, allow_pickle, vocabulary)
    compiled.make_ready()
    with Watcher(events, quiet=as_json) as watch, _engine(engine, address) as spread:
        study = awd.collect(
            opened,
            opened_experts,
            output,
            device=device,
            rows=rows,
            spectral=spectral,
            exclude=tuple(exclude or ()),
            progress=watch.progress,
            cancel=watch.cancelled,
            engine=spread,
        )
        if spectra:
            study = awd.collect_spectra(
                study,
                opened,
                opened_experts,
                device=device,
                progress=watch.progress,
                cancel=watch.cancelled,
            )
    result = {"study": str(study.path), "experts": study.experts, "tensors": len(study.tensors)}
    print_result(result, as_json)


@app.command()
def tune(
    study: Annotated[Path, typer.Argument(help="Study folder or .awdstudy file.")],
    preset: Annotated[
        str | None, typer.Option(help=f"{' | '.join(PRESETS)}; other options change its fields.")
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help=f"{' | '.join(GRANULARITIES)}; model if left out.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Norm constraint, paper's units.")] = None,
    alpha_relative: Annotated[
        float | None, typer.Option(help="Norm constraint as a fraction of alpha_crit.")
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(help="Hard bound of ||delta|| over the mean ||tau||; with penalty none."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Step size, paper's units.")] = None,
    lr_relative: Annotated[float | None, typer.Option(help="Step size over s^2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Descent steps; 300 if left out.")] = None,
    until: Annotated[str | None, typer.Option(help="steps | converged; steps if left out.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum; 0 if left out.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay of delta; 0 if left out.")
    ] = None,
    penalty: Annotated[
        str | None, typer.Option(help="l2 | l2_squared | none; l2 if left out.")
    ] = None,
    coefficient: Annotated[float, typer.Option(help="lambda of every expert.")] = 0.3,
    recipe: Annotated[
        Path | None, typer.Option(help="Write the merge with these settings as a recipe.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Solve AWD on a study; no weights needed."""
    opened = open_study_or_file(study)
    options = {
        "granularity": granularity,
        "alpha": alpha,
        "alpha_relative": alpha_relative,
        "radius": radius,
        "lr": lr,
        "lr_relative": lr_relative,
        "steps": steps,
        "until": until,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "penalty": penalty,
    }
    given = {name: value for name, value in options.items() if value is not None}
    chosen = Recipe(
        base=opened.base.source,
        experts=[source.source for source in opened.sources],
        coefficient=coefficient,
        exclude=opened.exclude,
        vocabulary=opened.vocabulary,
        disentangle=given if preset is None else Settings.preset(preset, **given),
    )
    assert chosen.disentangle is not None
    solved = awd.solve(opened, chosen.disentangle)
    if recipe is not None:
        with awd.files.whole_file(recipe) as file:
            file.write_text(chosen.to_yaml(), encoding="utf-8")
    before, after = solved.mean_absolute_cosine
    result: dict[str, Any] = {
        "outcome": solved.outcome,
        "groups": len(solved.groups.labels),
        "mean_absolute_cosine_of_groups_before": solved.objective[0],
        "mean_absolute_cosine_of_groups_after": solved.objective[1],
        "mean_absolute_cosine_of_model_before": before,
        "mean_absolute_cosine_of_model_after": after,
        "redundant_norm": solved.redundant_norm,
        "redundant_norm_relative": solved.relative_redundant_norm,
    }
    if chosen.disentangle.granularity == "model":
        shares = 1 - solved.n_experts * solved.span_coefficients[0]
        result["alpha_critical"] = float(solved.critical_alpha[0])
        result["weight_over_lambda"] = dict(zip(opened.experts, shares.tolist(), strict=True))
    print_result(result, as_json)


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    allow_pickle: AllowPickle = False,
    shard_size: Annotated[
        str | None,
        typer.Option(help="Largest weight file, as 5GB or 500MB; the base's files if left out."),
    ] = None,
    device: Device = "auto",
    engine: OnEngine = "threads",
    address: Address = None,
    events: Events = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe and write an ordinary Hugging Face folder."""
    chosen = Recipe.load(recipe)
    compiled.make_ready()
    with Watcher(events, quiet=as_json) as watch, _engine(engine, address) as spread:
        folder = awd.merge(
            chosen,
            output,
            checkpoints=open_sources(chosen.base, chosen.experts, allow_pickle),
            device=device,
            shard_bytes=None if shard_size is None else _bytes(shard_size),
            progress=watch.progress,
            cancel=watch.cancelled,
            engine=spread,
        )
    print_result({"merged": str(folder)}, as_json)


@app.command("export-study")
def export_study(
    study: Annotated[Path, typer.Argument(help="Study folder or .awdstudy file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: x.awdstudy.")],
    as_json: AsJson = False,
) -> None:
    """Pack a study into one file that opens anywhere, without the weights."""
    written = pack_study(open_study_or_file(study), output)
    print_result({"written": str(written), "bytes": written.stat().st_size}, as_json)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="Study folder or .awdstudy file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: review.html.")],
    recipe: Annotated[
        Path | None, typer.Option(help="The merge to review; task arithmetic if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write findings, figures, recipe and definitions as one HTML file."""
    from awd_core.launch import run_report

    raise typer.Exit(run_report(study, output, recipe, as_json))


@app.command()
def convert(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    to: Annotated[str, typer.Option(help="mergekit")] = "mergekit",
    study: Annotated[
        Path | None, typer.Option(help="Study of its base and experts; collected if left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; printed if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a recipe in the words of another tool."""
    from awd_core.mergekit import to_mergekit

    if to != "mergekit":
        raise typer.BadParameter(f"{to!r}: only mergekit is known", param_hint="--to")
    chosen = Recipe.load(recipe)
    with Watcher(None, quiet=True) as watch:
        opened = open_study_or_file(study) if study else _study_of(chosen, watch)
    text = to_mergekit(chosen, opened)
    if output is not None:
        with awd.files.whole_file(output) as file:
            file.write_text(text, encoding="utf-8")
        print_result({"written": str(output)}, as_json)
    elif as_json:
        print_json({"mergekit": text})
    else:
        print(text, end="")


app.command()(closer.evaluate)


@app.command()
def verify(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A merged folder.")],
    load: Annotated[bool, typer.Option(help="Load it with transformers.")] = True,
    allow_pickle: AllowPickle = False,
    events: Events = None,
    as_json: AsJson = False,
) -> None:
    """Hash, derive and load a merged folder again."""
    with Watcher(events, quiet=as_json) as watch:
        found = awd.verify(
            output,
            load=load,
            allow_pickle=allow_pickle,
            progress=watch.progress,
            cancel=watch.cancelled,
        )
    rows = [vars(check) for check in found.checks]
    if as_json:
        print_json({"ok": found.ok, "checks": rows})
    else:
        print_table(f"Verification of {output}", rows)
    raise typer.Exit(0 if found.ok else 1)


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", size.strip(), re.IGNORECASE)
    n_bytes = float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ") if match else 0
    if n_bytes < 1:
        raise typer.BadParameter(f"{size!r}: expected a size such as 5GB or 500MB")
    return int(n_bytes)


def _engine(name: str, address: str | None) -> AbstractContextManager[Engine | None]:
    from awd_core.cluster import ray_cluster

    if name not in ("threads", "ray"):
        raise typer.BadParameter(f"{name!r}: threads or ray", param_hint="--engine")
    return ray_cluster(address) if name == "ray" else nullcontext()


def _study_of(recipe: Recipe, watch: Watcher) -> awd.Study:
    base, experts = open_sources(recipe.base, recipe.experts)
    return awd.collect(base, experts, progress=watch.progress, cancel=watch.cancelled)


app.command()(closer.spectra)
app.command()(closer.locks)


# Rows of one kind and checkpoint that a person wants to read; a machine gets all of them.
ROWS_OF_A_KIND = 5


def _print_preflight(
    problems: Sequence[Problem], estimate: Estimate, fits: Sequence[BaseFit]
) -> None:
    if not problems:
        out.print("Nothing stands in the way of a merge.")
    for (severity, kind), group in groupby(
        sorted(problems, key=_severity_and_kind), _severity_and_kind
    ):
        colour = "red" if severity == "error" else "yellow"
        rows = list(group)
        for one in rows[:ROWS_OF_A_KIND]:
            said = f"{kind}: {one.where}: {one.received}; expected {one.expected}. {one.remedy}"
            print_line(f"[bold {colour}]{severity}[/] {escape(said)}")
        if left := len(rows[ROWS_OF_A_KIND:]):
            print_line(f"[bold {colour}]{severity}[/] {left} more of kind {kind}; see --json.")
    for fit in fits:
        norms = ", ".join(f"{name} {value:.3g}" for name, value in fit.relative_norms.items())
        if norms:
            cosine = "" if fit.mean_cosine is None else f"; mean cosine {fit.mean_cosine:.3f}"
            print_line(f"From {escape(fit.base)}, ||tau|| / ||theta_0||: {escape(norms)}{cosine}.")
    out.print(
        f"{estimate.parameters:,} parameters; {estimate.bytes_to_read / 1e6:,.0f} MB to read,"
        f" {estimate.bytes_to_write / 1e6:,.0f} MB to write; {in_words(estimate.seconds)}."
    )
    for name, one in (("memory", estimate.memory), ("disk", estimate.disk)):
        free = "" if one.free is None else f" of {one.free / 1e9:.1f} GB free"
        out.print(f"{name}: {one.needed / 1e9:.1f} GB{free}: {one.verdict}")


def _severity_and_kind(problem: Problem) -> tuple[str, str]:
    return problem.severity, problem.kind


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise awd.Cancelled()


def main() -> NoReturn:
    """Run the command line."""
    as_json = "--json" in sys.argv
    # The app cancels a job by SIGTERM; it then cleans up as it does for Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app(standalone_mode=True)
    except awd.Cancelled:
        err.print("Cancelled; nothing half-written was left behind.")
        sys.exit(130)
    except awd.AwdError as error:
        if as_json:
            print_json(error.as_dict())
        err.print(
            f"[bold red]{type(error).__name__}[/bold red] {escape(str(error))}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
