"""`docs/measures.md`, made from the declarations: `python -m analysis.measure_docs`."""

from pathlib import Path

from analysis.measure import Measure
from analysis.measures import MEASURES

FILE = Path(__file__).parent.parent / "docs" / "measures.md"

_HEAD = r"""# Measures

Every number of AWD Studio that is called a measure. This file is made from the declarations in
`analysis/measures/` by `python -m analysis.measure_docs`; change those, not this.

With base $\theta_0$, experts $\theta_k$, $k = 1..K$, task vectors $\tau_k = \theta_k - \theta_0$,
redundant vector $\delta$, disentangled vectors $v_k = \tau_k - \delta$, coefficients $\lambda_k$
and merged task vector $\tau_M = \sum_k \lambda_k v_k$. Every vector is restricted to the part
that is looked at: the whole model, a block, a kind or a tensor. What needs only Gram matrices
follows from $\langle \tau_i, \tau_j \rangle$, $\langle \delta, \tau_k \rangle$ and
$\|\delta\|^2$, summed over the tensors of the part, and is exact for every linear merge at every
granularity of AWD.

A number that does not exist is NaN, and blank in figures: the cosine of a zero vector, the sign
conflict of two experts that move no weight in common. An expert without a task vector in a part
takes no part there in any cosine, neither before AWD nor after.
"""

_PER = {"part": "one number", "expert": "one number an expert", "pair": "one number a pair"}
_NEEDS = {
    "gram": "Gram matrices",
    "elements": "counts over elements, of the task vectors before AWD",
    "spectra": "the spectra level (`awd collect --spectra`), of the task vectors before AWD",
}


def markdown() -> str:
    """The whole file."""
    return "\n".join([_HEAD, *(_section(measure) for measure in MEASURES)])


def _section(measure: Measure) -> str:
    better = f"{measure.better} is better" if measure.better else "neither as such is better"
    facts = {
        "Key": f"`{measure.key}`",
        "Value": f"{_PER[measure.per]}, unit {measure.unit}",
        "Scopes": ", ".join(measure.scopes),
        "Direction": better,
        "Needs": _NEEDS[measure.needs],
        "By chance": "-" if measure.baseline is None else f"{measure.baseline:g}",
        "Source": measure.source,
    }
    rows = "\n".join(f"| {name} | {fact} |" for name, fact in facts.items())
    return (
        f"## {measure.title}\n\n```math\n{measure.formula}\n```\n\n{measure.reading}\n\n"
        f"| | |\n|---|---|\n{rows}\n"
    )


def write(file: Path = FILE) -> None:
    """Write the file anew."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    write()
