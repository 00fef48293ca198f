"""The report: one HTML file that opens anywhere, with everything that a review needs.

No server, no network: Plotly is embedded once, every figure in light and dark. On paper it is
light. `python -m analysis.report STUDY -o review.html [--recipe R]`, or `awd report`.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import awd_core as awd
from analysis import tables
from analysis.clustering import clusters, expert_map
from analysis.exhibits import Exhibit, exhibits
from analysis.measures import MEASURES
from analysis.measures import measure as find_measure
from analysis.narrative import Finding, findings
from analysis.theme import DARK, LIGHT, Theme
from analysis.view import View, factors_by_tensor
from analysis.words import counted
from awd_core import AwdError, Recipe, Study, files
from awd_core.errors import RecipeError
from awd_core.method import LinearMethod

# Rows of a table shown under its figure; the whole is in the files that the app offers.
MOST_ROWS = 400

# Empty where AWD is off.
_OF_AWD = ("redundant", "shares", "loss")

_MAP = Exhibit(
    "expert_map",
    "Which experts are alike?",
    lambda view: f"Side by side in order of likeness: {', '.join(clusters(view).ordered)}.",
    lambda view: clusters(view).table,
    lambda view, theme: expert_map(clusters(view), theme=theme),
    pairs=True,
)


@dataclass(frozen=True)
class Reviewed:
    """What a report is about.

    Attributes:
        study: The study.
        recipe: The merge that is reviewed.
        view: The study seen through it.
    """

    study: Study
    recipe: Recipe
    view: View


def reviewed(study: Study, recipe: Recipe | None = None) -> Reviewed:
    """A study seen through a recipe; through plain task arithmetic without one.

    Raises:
        RecipeError: The recipe is of other experts than the study.
    """
    sources = [source.source for source in study.sources]
    if recipe is None:
        recipe = Recipe(base=study.base.source, experts=sources, exclude=study.exclude)
    if len(recipe.experts) != study.n_experts or list(recipe.experts) != sources:
        raise RecipeError(
            "The recipe merges other experts than the study holds",
            where="experts",
            received=", ".join(recipe.experts),
            expected=", ".join(sources),
            remedy="Collect the recipe's base and experts, or leave the recipe out.",
        )
    seen = awd.equalise_norms(study) if recipe.equalise_norms else study
    settings = recipe.disentangle
    solved = awd.no_redundancy(seen) if settings is None else awd.solve(seen, settings)
    method, coefficients = recipe.build_method(), recipe.lambdas()
    if isinstance(method, LinearMethod):
        coefficients = method.multipliers(coefficients)
    multipliers = np.asarray(coefficients, dtype=np.float64)
    by_tensor = factors_by_tensor(seen, recipe.block_factors)
    return Reviewed(study, recipe, View(seen, solved, multipliers, by_tensor, type(method)))


def write_report(study: Study, out: str | Path, recipe: Recipe | None = None) -> Path:
    """Write the report as one file, in one step.

    Raises:
        RecipeError: The recipe is of other experts than the study.
        OutputError: `out` exists, or cannot be written.
    """
    out = Path(out).expanduser().absolute()
    files.require_new(out)
    text = html(reviewed(study, recipe))
    with files.whole_file(out) as file:
        file.write_text(text, encoding="utf-8")
    return out


def html(about: Reviewed) -> str:
    """The whole report."""
    view = about.view
    awd_acts = view.disentangled.redundant_norm > 0
    shown = [one for one in exhibits(view) if awd_acts or one.key not in _OF_AWD]
    if view.n_experts > 2:
        shown.append(_MAP)
    found = findings(view)
    parts = [
        _head(about),
        _findings(found),
        _summary(view),
        *(_exhibit(one, view) for one in shown),
        _spectral(view),
        _recipe(about),
        _inputs(about.study),
        _definitions(),
    ]
    figures = {
        one.key: {name: _figure(drawn) for name, drawn in _both(one, view)}
        for one in shown
        if isinstance(one.draw(view, LIGHT), go.Figure)
    }
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be fetched, whatever a name in this file tries.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">"
        f"<title>{escape(_title(about))}</title><style>{_STYLE}</style></head><body><main>"
        f"{''.join(parts)}</main><script>{get_plotlyjs()}</script>"
        f'<script type="application/json" id="figures">{_script_safe(json.dumps(figures))}</script>'
        f"<script>{_SCRIPT}</script></body></html>"
    )


# --- sections ------------------------------------------------------------------------------------


def _title(about: Reviewed) -> str:
    return (
        f"Merge review: {counted(len(about.recipe.experts), 'expert')} of {about.study.base.label}"
    )


def _head(about: Reviewed) -> str:
    study = about.study
    n_parameters = sum(tensor.n_elements for tensor in study.tensors)
    return (
        f"<header><h1>{escape(_title(about))}</h1><p>{escape(', '.join(study.experts))}.</p>"
        f"<p class=quiet>{n_parameters:,} parameters in {len(study.tensors)} tensors · method"
        f" {escape(about.recipe.method)} · study {study.collected_digest[:16]} · recipe"
        f" {about.recipe.digest[:16]} · {datetime.date.today():%d %B %Y}</p></header>"
    )


def _findings(found: Sequence[Finding]) -> str:
    items = "".join(
        f"<li><p><strong>{escape(one.text)}</strong></p><p>{escape(one.why)} {escape(one.advice)}"
        f'</p><p class=quiet><a href="#{one.measure}">{escape(find_measure(one.measure).title)}</a>'
        f" {one.value:.4g}, threshold {one.threshold:.4g}. {escape(one.source)}.</p></li>"
        for one in found
    )
    return f"<section id=findings><h2>Findings</h2><ol>{items}</ol></section>"


def _summary(view: View) -> str:
    shown = pd.DataFrame(tables.summary(view)[["title", "unit", "before", "after", "better"]])
    return (
        "<section id=summary><h2>The whole model in numbers</h2><p class=quiet>Before is the same"
        f" merge without AWD.</p>{_table(shown)}</section>"
    )


def _exhibit(one: Exhibit, view: View) -> str:
    drawn = one.draw(view, LIGHT)
    if isinstance(drawn, go.Figure):
        height = drawn.to_dict()["layout"]["height"]
        picture = (
            f'<div class=figure id="figure-{one.key}" data-key="{one.key}" role=img'
            f' aria-label="{escape(one.sentence(view))}" style="min-height:{height}px"></div>'
        )
    else:
        picture = "".join(
            f'<div class="only-{name}">{other}</div>' for name, other in _both(one, view)
        )
    return (
        f'<section id="{one.key}"><h2>{escape(one.title)}</h2><p>{escape(one.sentence(view))}</p>'
        f"{picture}<details><summary>Numbers</summary>{_table(one.table(view))}</details></section>"
    )


def _spectral(view: View) -> str:
    rows = [
        (one.title, expert, value)
        for one in MEASURES
        if one.needs == "spectra" and one.per == "expert" and one.available(view.study)
        for expert, value in zip(view.experts, one.of(view, "model")[0], strict=True)
    ]
    if not rows:
        return ""
    found = pd.DataFrame(rows, columns=["measure", "expert", "value"])
    wide = found.pivot_table(index="measure", columns="expert", values="value", sort=False)
    return (
        "<section id=spectra><h2>Directions</h2><p>Means over the matrices of the model.</p>"
        f"{_table(wide.reset_index())}</section>"
    )


def _recipe(about: Reviewed) -> str:
    solved = about.view.disentangled
    return (
        f"<section id=recipe><h2>Recipe</h2><p>{escape(str(solved.outcome))}</p>"
        f"<pre>{escape(about.recipe.to_yaml())}</pre>"
        "<p>Save it as <code>recipe.yaml</code>, then <code>awd merge recipe.yaml merged/</code>"
        " and <code>awd verify merged/</code>.</p></section>"
    )


def _inputs(study: Study) -> str:
    sources = [("base", study.base), *(("expert", source) for source in study.sources)]
    rows = [(role, one.label, one.source, one.kind, one.fingerprint) for role, one in sources]
    columns = ["role", "label", "source", "kind", "fingerprint"]
    excluded = ", ".join(study.exclude) or "nothing"
    return (
        "<section id=inputs><h2>Inputs</h2>"
        f"{_table(pd.DataFrame(rows, columns=columns))}<p class=quiet>Study"
        f" <code>{study.collected_digest}</code>; left out: {escape(excluded)}.</p></section>"
    )


def _definitions() -> str:
    items = "".join(
        f'<dt id="{one.key}">{escape(one.title)}</dt><dd><code>{escape(one.formula)}</code>'
        f"<p>{escape(one.reading)}</p><p class=quiet>Unit {escape(one.unit)};"
        f" {escape(one.better or 'neither')} is better; by chance"
        f" {'-' if one.baseline is None else f'{one.baseline:g}'}. {escape(one.source)}.</p></dd>"
        for one in MEASURES
    )
    return (
        "<section id=definitions><h2>Definitions</h2><p>θ₀ is the base, θₖ an expert, τₖ = θₖ − θ₀"
        " its task vector, δ the redundant vector, vₖ = τₖ − δ, λₖ its coefficient, τ_M = Σ λₖ vₖ"
        " the merged task vector. Formulas are in LaTeX. A number that does not exist is blank."
        f"</p><dl>{items}</dl></section>"
    )


# --- pieces --------------------------------------------------------------------------------------


def _both(one: Exhibit, view: View) -> Iterator[tuple[str, go.Figure | str]]:
    themes: tuple[tuple[str, Theme], ...] = (("light", LIGHT), ("dark", DARK))
    for name, theme in themes:
        yield name, one.draw(view, theme)


def _figure(drawn: go.Figure | str) -> object:
    assert isinstance(drawn, go.Figure)
    return json.loads(drawn.to_json() or "{}")


def _script_safe(text: str) -> str:
    """JSON that cannot end the script it stands in, whatever an expert is called."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _table(found: pd.DataFrame) -> str:
    head = "".join(f"<th>{escape(str(name).replace('_', ' '))}</th>" for name in found.columns)
    rows = "".join(
        f"<tr>{''.join(_cell(value) for value in row)}</tr>"
        for row in found.head(MOST_ROWS).itertuples(index=False)
    )
    more = len(found) - MOST_ROWS
    rest = f"<p class=quiet>{more} more rows are in the study.</p>" if more > 0 else ""
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{rest}"
    )


def _cell(value: object) -> str:
    if isinstance(value, float | np.floating):
        shown = "" if np.isnan(value) else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
        return f'<td class=number data-value="{float(value)!r}">{shown}</td>'
    if isinstance(value, int | np.integer):
        return f"<td class=number>{value:,}</td>"
    return f"<td>{'' if value is None else escape(str(value))}</td>"


_STYLE = """
:root {color-scheme: light dark; --text: #1F2933; --muted: #52606D; --line: #D3D9E0; --page: #fff}
@media (prefers-color-scheme: dark) {
  :root {--text: #E6EAEF; --muted: #A9B4C0; --line: #353E48; --page: #14181D}
  .only-light {display: none}
}
@media (prefers-color-scheme: light) {.only-dark {display: none}}
body {margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font-family: "Source Sans 3", "Source Sans Pro", system-ui, sans-serif; font-size: 16px}
main {max-width: 68rem; margin: 0 auto; padding: 1.5rem}
h1 {font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem}
h2 {font-size: 1.35rem; margin: 2.2rem 0 .5rem}
a {color: inherit} .quiet {color: var(--muted); font-size: .875rem} p {margin: .35rem 0}
ol {padding-left: 1.4rem} li {margin: .8rem 0} .wide {overflow-x: auto}
table {border-collapse: collapse; font-size: .8125rem} th {text-align: left; font-weight: 600}
td, th {padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top}
.awd-matrices td, .awd-matrices th {border-bottom: 0}
.number {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
pre, code {font-size: .8125rem; white-space: pre-wrap; overflow-wrap: anywhere}
pre {border: 1px solid var(--line); padding: .8rem} dt {font-weight: 600; margin-top: 1rem}
dd {margin: 0 0 0 1.2rem} summary {cursor: pointer; color: var(--muted)}
@media print {
  :root {color-scheme: light; --text: #000; --muted: #444; --line: #bbb; --page: #fff}
  body {font-size: 11pt} main {max-width: none; padding: 0} details {display: none}
  .only-light {display: block} .only-dark {display: none}
  section, li, .figure, dd {break-inside: avoid} #definitions, #findings {break-inside: auto}
  * {print-color-adjust: exact; -webkit-print-color-adjust: exact}
}
"""

_SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const options = {responsive: true, displaylogo: false};
function draw(theme) {
  for (const place of document.querySelectorAll(".figure")) {
    const figure = figures[place.dataset.key][theme];
    Plotly.react(place, figure.data, figure.layout, options);
  }
}
const now = () => draw(dark.matches ? "dark" : "light");
dark.addEventListener("change", now);
addEventListener("beforeprint", () => draw("light"));
addEventListener("afterprint", now);
now();
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a report from the command line; the exit code is that of `awd`."""
    parser = argparse.ArgumentParser(prog="awd report", description="Write a study's report.")
    parser.add_argument("study", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        recipe = Recipe.load(given.recipe) if given.recipe else None
        written = write_report(awd.open_study(given.study), given.output, recipe)
    except AwdError as error:
        if given.json:
            sys.stdout.write(json.dumps(error.as_dict(), indent=1) + "\n")
        sys.stderr.write(f"{type(error).__name__} {error}\n")
        return 1
    result = {"written": str(written), "bytes": written.stat().st_size}
    if given.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        sys.stdout.write(f"written: {written}\nbytes: {result['bytes']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
