"""`docs/methods.md`, made from the declarations: `python -m awd_core.method_docs`."""

import inspect
from dataclasses import Field
from pathlib import Path
from typing import Any

from awd_core.method import MergeMethod
from awd_core.methods import METHODS

FILE = Path(__file__).parent.parent / "docs" / "methods.md"

_HEAD = r"""# Methods

Every merge method of AWD Studio. This file is made from the declarations in `awd_core/methods/` by
`python -m awd_core.method_docs`; change those, not this. `awd methods` prints the same.

With base $\theta_0$, experts $\theta_k$, $k = 1..K$, task vectors
$\tau_k = \theta_k - \theta_0$ and coefficients $\lambda_k$. With `disentangle` in the recipe
every $\tau_k$ below is
$v_k = \tau_k - \delta$. A recipe names a method, and a preset or knobs:

    method: ties
    preset: fusionbench
    knobs:
      density: 0.3

LiNeS (Wang et al., arXiv 2410.17146) goes behind any method: with `lines: {slope: 0.5}` what is
merged in block $l$ of $L$ is multiplied with $a + b\, l / (L - 1)$, $b$ the slope and
$a = \|\sum_k \tau_k\|_1 / (K \|\tau_{\text{merged}}\|_1)$ unless `first` says otherwise.

Executors: **gram** takes multipliers from inner products, **stream** statistics of the whole model,
**tensor** of one tensor; all three then go through the weights piece by piece. **matrix** sees one
whole matrix at a time. Passes count readings of the weights, the one that writes included, for the
knobs that need most; readings of one tensor after another come from the file cache. Memory is for
K experts, with c = 131,072 elements of a piece, or one row where that is longer, and t threads, one
more than there are cores; m, n are the rows and columns of the largest matrix that is solved.
`python -m benchmarks method_memory` holds every method to it.

| method | executor | passes | AWD in front | result |
|---|---|---|---|---|
"""


def markdown() -> str:
    """The whole file."""
    rows = "".join(_row(method) for method in METHODS)
    return _HEAD + rows + "\n" + "\n".join(_section(method) for method in METHODS)


def description(method: type[MergeMethod]) -> dict[str, Any]:
    """Everything that a method declares, as plain data."""
    return {
        "key": method.key,
        "title": method.title,
        "source": method.source,
        "year": method.year,
        "formula": method.formula,
        "executor": method.executor,
        "passes": method.passes,
        "memory": method.memory.formula,
        "policy": method.policy,
        "coefficients": method.coefficients_are if method.takes_coefficients else None,
        "default_coefficient": method.default_coefficient if method.takes_coefficients else None,
        "experts": _experts(method),
        "permutation_equivariant": method.permutation_equivariant,
        "scale_equivariant": method.scale_equivariant,
        "takes_task_vectors": method.takes_task_vectors,
        "needs_task": method.needs_task,
        "knobs": [_knob(knob) for knob in method.knobs()],
        "presets": {
            key: {
                "knobs": dict(preset.knobs),
                "coefficient": preset.coefficient,
                "note": preset.note,
            }
            for key, preset in method.presets.items()
        },
    }


def _knob(knob: Field[Any]) -> dict[str, Any]:
    return {"name": knob.name, "default": knob.default, **knob.metadata}


def _experts(method: type[MergeMethod]) -> str:
    least, most = method.least_experts, method.most_experts
    return f"exactly {least}" if least == most else f"{least} or more"


def _row(method: type[MergeMethod]) -> str:
    awd = "yes" if method.takes_task_vectors else "no"
    result = "one model for each task" if method.needs_task else "one model"
    link = f"[{method.title}](#{method.key})"
    return f"| {link} | {method.executor} | {method.passes} | {awd} | {result} |\n"


def _section(method: type[MergeMethod]) -> str:
    coefficients = "takes none"
    if method.takes_coefficients:
        coefficients = f"{method.coefficients_are}, {method.default_coefficient:g} by default"
    yes = {True: "yes", False: "no"}
    facts = {
        "Key": f"`{method.key}`",
        "Source": f"{method.source} ({method.year})",
        "Coefficients": coefficients,
        "Experts": _experts(method),
        "Memory": f"`{method.memory.formula}` bytes",
        "Vectors, embeddings": method.policy,
        "Same in any order of experts": yes[method.permutation_equivariant],
        "Scales with the task vectors": yes[method.scale_equivariant],
    }
    rows = "".join(f"| {name} | {fact} |\n" for name, fact in facts.items())
    text = (
        f'<a id="{method.key}"></a>\n\n## {method.title}\n\n```math\n{method.formula}\n```\n\n'
        f"{inspect.getdoc(method)}\n\n| | |\n|---|---|\n{rows}"
    )
    if method.knobs():
        knobs = "".join(_knob_row(knob) for knob in method.knobs())
        text += f"\n| knob | default | values | |\n|---|---|---|---|\n{knobs}"
    if method.presets:
        text += f"\n| preset | knobs | coefficient | |\n|---|---|---|---|\n{_preset_rows(method)}"
    return text


def _knob_row(knob: Field[Any]) -> str:
    bounds = knob.metadata
    if "choices" in bounds:
        values = ", ".join(f"`{choice}`" for choice in bounds["choices"])
    else:
        values = f"{bounds['low']:g} to {bounds['high']:g}"
    return f"| `{knob.name}` | `{knob.default}` | {values} | {bounds['help']} |\n"


def _preset_rows(method: type[MergeMethod]) -> str:
    rows = ""
    for key, preset in method.presets.items():
        knobs = ", ".join(f"{name} {value}" for name, value in preset.knobs.items()) or "-"
        coefficient = "-" if preset.coefficient is None else f"{preset.coefficient:g}"
        rows += f"| `{key}` | {knobs} | {coefficient} | {preset.note} |\n"
    return rows


def write(file: Path = FILE) -> None:
    """Write the file anew."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    write()
