"""Peak memory of every merge method on eight experts of 316M parameters, beside what it declares.

    python -m benchmarks method_memory                          every method
    python -m benchmarks.method_memory --methods ties della     some

The experts are those of `merge_vs_mergekit`, bfloat16. Each merge is a process of its own. Methods
that are weighted sums merge the whole model; the others, which take minutes, merge the embedding, a
matrix and a norm (with `--whole` everything) and copy the rest: what they declare depends on the
number of experts and on the largest tensor alone, which is the embedding. Descents take few steps,
which changes time and not memory. Methods for two experts get two, and methods for LoRA experts
adapters of all attention. The bound is the declared formula for the largest tensor that the method
merges, and a fifth.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import awd_core as awd
from awd_core import layout
from awd_core.method import LinearMethod, MatrixMethod, MergeMethod
from benchmarks.merge_vs_mergekit import N_EXPERTS, WIDTH, Run, adapters, draw, shapes, timed

# What needs factors: without them it decomposes all experts' embeddings side by side.
FOR_ADAPTERS = ("knots",)
SLACK = 1.2
STEPS = 2
SOME = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.input_layernorm.weight",
)


@dataclass(frozen=True)
class Line:
    """One method.

    Attributes:
        key: Its key.
        n_experts: How many it merged.
        merged: `all` tensors, or how many.
        run: What the process took.
        declared: Bytes by its formula.
    """

    key: str
    n_experts: int
    merged: str
    run: Run
    declared: int

    @property
    def inside(self) -> bool:
        """Whether the peak is under the formula and a fifth."""
        return self.run.peak_mb * 1e6 <= SLACK * self.declared

    def __str__(self) -> str:
        return (
            f"| {self.key} | {awd.find_method(self.key).executor} | {self.n_experts} |"
            f" {self.merged} | {self.run.seconds:.0f} | {self.run.cpu_seconds:.0f} |"
            f" {self.run.peak_mb:,.0f} | {self.declared / 1e6:,.0f} |"
            f" {'yes' if self.inside else '**no**'} |"
        )


HEAD = (
    "| method | executor | experts | tensors | s | CPU s | peak MB | declared MB | inside |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def largest(method: MergeMethod) -> tuple[int, int]:
    """Rows and columns of the largest tensor, of the largest that is solved for a MatrixMethod."""
    if method.key in FOR_ADAPTERS:
        return WIDTH, WIDTH
    found = [(name, shape) for name, shape in shapes().items() if len(shape) == 2]
    if isinstance(method, MatrixMethod) and method.embeddings != "solve":
        found = [one for one in found if layout.place(one[0]).kind not in ("embedding", "head")]
    rows, columns = max((shape for _, shape in found), key=np.prod)
    return rows, columns


def measured(kind: type[MergeMethod], base: Path, experts: list[Path], whole: bool) -> Line:
    """Merge once."""
    n_experts = min(len(experts), kind.most_experts or len(experts))
    steps = any(knob.name == "steps" for knob in kind.knobs())
    fields: dict[str, Any] = {
        "base": str(base),
        "experts": [str(expert) for expert in experts[:n_experts]],
        "method": kind.key,
        "knobs": ({"steps": STEPS} if steps else {}) | ({"task": 0} if kind.needs_task else {}),
    }
    if not whole:
        fields["include"] = list(SOME)
    with tempfile.TemporaryDirectory(dir=base.parent) as name:
        recipe, out = Path(name) / "recipe.yaml", Path(name) / "out"
        recipe.write_text(yaml.safe_dump(fields, sort_keys=False))
        run = timed([sys.executable, "-m", "awd_core", "merge", recipe, out, "--json"])
    method = awd.Recipe(**fields).build_method()
    declared = kind.memory.n_bytes(n_experts, *largest(method))
    return Line(kind.key, n_experts, "all" if whole else str(len(SOME)), run, declared)


def main() -> None:
    """Draw, merge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", help="keys; all by default")
    parser.add_argument("--whole", action="store_true", help="merge all tensors with every method")
    parser.add_argument("--folder", type=Path, help="where the inputs are or will be, and stay")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "inputs"
        if not folder.exists():
            # What a process begins with counts among its peaks: this one has to stay small.
            with ProcessPoolExecutor(1) as drawer:
                drawer.submit(draw, folder).result()
        base, experts = (
            folder / "base",
            [folder / f"expert-{k}" for k in range(N_EXPERTS)],
        )
        print(HEAD)
        lines = []
        for kind in awd.METHODS:
            if arguments.methods is None or kind.key in arguments.methods:
                lora = kind.key in FOR_ADAPTERS
                whole = arguments.whole or issubclass(kind, LinearMethod) or lora
                taken = adapters(base, Path(scratch) / kind.key) if lora else experts
                lines.append(measured(kind, base, taken, whole))
                print(lines[-1], flush=True)
    outside = [line.key for line in lines if not line.inside]
    if outside:
        sys.exit(f"above what they declare: {', '.join(outside)}")


if __name__ == "__main__":
    main()
