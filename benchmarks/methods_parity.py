"""Our data-free methods against mergekit's own, on the same float32 checkpoints.

    python -m benchmarks methods_parity [--mergekit PATH/TO/mergekit-yaml]

mergekit 0.1.5 is installed into a virtual environment of its own and merges a small Llama-shaped
model with each of its methods that has no random numbers in it. Compared is the change to the base,
relative to the largest change in the tensor. Where a definition differs on purpose the reason is
printed, and the difference has to be there.
"""

import argparse
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

import awd_core as awd
from benchmarks.mergekit_parity import draw, installed


@dataclass(frozen=True)
class Case:
    """The same merge in both languages.

    Attributes:
        ours: Method, preset, knobs and coefficients of our recipe.
        theirs: mergekit's method.
        parameters: Its parameters for the whole merge.
        weights: Its weight of every expert; None for no such parameter.
        of_expert: Further parameters of every expert.
        n_experts: How many take part.
        size: Task vectors are multiplied with this first.
        ties: Whether equal magnitudes stay, of which bfloat16 leaves many.
        tolerance: Largest difference, relative to the largest change of a tensor.
        differs: Why the two do not agree, where they are not meant to.
    """

    ours: dict[str, Any]
    theirs: str
    parameters: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] | None = None
    of_expert: dict[str, Any] = field(default_factory=dict)
    n_experts: int = 3
    size: float = 1.0
    ties: bool = False
    tolerance: float = 1e-4
    differs: str = ""


CASES = (
    Case({"method": "average"}, "linear", weights=(1.0, 1.0, 1.0)),
    Case(
        {"method": "weighted_average", "coefficients": (0.5, 1.0, 2.0)},
        "linear",
        weights=(0.5, 1.0, 2.0),
    ),
    Case(
        {"method": "task_arithmetic", "coefficients": (0.3, 0.5, 0.2)},
        "task_arithmetic",
        {"normalize": False},
        (0.3, 0.5, 0.2),
    ),
    Case(
        {"method": "model_stock", "preset": "mergekit"},
        "model_stock",
        differs="where the mean cosine is below 0 mergekit goes away from the experts",
    ),
    Case(
        {"method": "model_stock", "preset": "mergekit"},
        "model_stock",
        size=1e-3,
        differs="mergekit floors the product of two norms at 1e-6: short vectors lose their cosine",
    ),
    Case({"method": "slerp", "knobs": {"t": 0.3}}, "slerp", {"t": 0.3}, n_experts=2),
    Case(
        {"method": "nuslerp", "coefficients": (0.4, 0.8)},
        "nuslerp",
        weights=(0.4, 0.8),
        n_experts=2,
    ),
    Case(
        {"method": "multi_slerp", "coefficients": (0.5, 1.0, 2.0)},
        "multislerp",
        weights=(0.5, 1.0, 2.0),
    ),
    Case({"method": "karcher"}, "karcher", tolerance=1e-2),
    Case(
        {"method": "ties_mergekit", "coefficients": (0.5, 1.0, 0.8), "knobs": {"density": 0.4}},
        "ties",
        {"normalize": True},
        (0.5, 1.0, 0.8),
        {"density": 0.4},
    ),
    Case(
        {"method": "ties_mergekit", "knobs": {"density": 0.4}},
        "ties",
        {"normalize": True},
        (1.0, 1.0, 1.0),
        {"density": 0.4},
        ties=True,
        differs="of equal magnitudes at the threshold mergekit keeps some, we keep all",
    ),
    Case(
        {
            "method": "breadcrumbs_tensor",
            "coefficients": (0.3, 0.5, 0.2),
            "knobs": {"density": 0.8, "outliers": 0.05},
        },
        "breadcrumbs",
        {"normalize": False},
        (0.3, 0.5, 0.2),
        {"density": 0.8, "gamma": 0.05},
    ),
    Case({"method": "sce", "preset": "mergekit"}, "sce", {"select_topk": 1.0}),
    Case(
        {"method": "sce", "preset": "mergekit", "knobs": {"select": 0.3}},
        "sce",
        {"select_topk": 0.3},
    ),
    Case(
        {"method": "sce", "preset": "mergekit"},
        "sce",
        {"select_topk": 1.0},
        size=1e-2,
        differs="mergekit weighs experts equally where their mean squares sum to less than 1e-6",
    ),
)


def as_float32(folder: Path, base: Path, case: Case) -> Path:
    """A copy of a checkpoint in float32, its task vector multiplied with the case's size.

    In bfloat16 mergekit's own rounding would be all that is seen.
    """
    out = folder.with_name(f"{folder.name}-{case.size:g}-{case.ties}")
    if not out.exists():
        out.mkdir()
        for file in folder.iterdir():
            if file.suffix == ".json":
                text = file.read_text(encoding="utf-8").replace("bfloat16", "float32")
                (out / file.name).write_text(text, encoding="utf-8")
        start = load_file(base / "model.safetensors")
        generator = torch.Generator().manual_seed(sum(folder.name.encode()))
        state = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            tau = case.size * (tensor.float() - start[name].float())
            if not case.ties:
                tau *= 0.5 + torch.rand(tau.shape, generator=generator)
            state[name] = start[name].float() + tau
        save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return out


def theirs(case: Case, base: Path, experts: list[Path], command: Path, folder: Path) -> Path:
    """Merge with mergekit."""
    models = []
    for index, expert in enumerate(experts):
        parameters = dict(case.of_expert)
        if case.weights is not None:
            parameters["weight"] = case.weights[index]
        models.append({"model": str(expert), "parameters": parameters})
    config: dict[str, Any] = {
        "merge_method": case.theirs,
        "models": models,
        "parameters": case.parameters,
        "dtype": "float32",
    }
    if case.theirs == "slerp":
        config["base_model"] = str(experts[0])
    elif case.theirs not in ("linear", "karcher"):
        config["base_model"] = str(base)
    file, out = folder / "theirs.yaml", folder / "theirs"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run(
        [command, file, out, "--no-copy-tokenizer", "--quiet"], check=True, capture_output=True
    )
    return out


def differences(ours: Path, other: Path, base: Path) -> list[float]:
    """Largest difference of two merges in every tensor, relative to the largest change there."""
    start, left, right = (load_file(next(f.glob("*.safetensors"))) for f in (base, ours, other))
    assert left.keys() == right.keys()
    found = []
    for name, weights in start.items():
        changes = ((state[name].double() - weights.double()).abs().max() for state in (left, right))
        change = max(*changes, torch.tensor(1e-30))
        apart = (left[name].double() - right[name].double()).abs().max()
        rounding = 2**-23 * weights.double().abs().max()  # of float32 sums with the base
        found.append(float((apart - 2 * rounding).clamp(min=0) / change))
    return found


def compare(case: Case, drawn: list[Path], command: Path, folder: Path) -> list[float]:
    """The differences for one case."""
    base, *experts = (as_float32(path, drawn[0], case) for path in drawn)
    experts = experts[: case.n_experts]
    out = theirs(case, base, experts, command, folder)
    recipe = awd.Recipe(base=str(base), experts=[str(path) for path in experts], **case.ours)
    return differences(awd.merge(recipe, folder / "ours", device="cpu"), out, base)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml, where it is installed")
    parser.add_argument("--methods", nargs="+", help="keys of ours; all by default")
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    print("| method | mergekit | largest difference | tensors apart | why |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = options.mergekit or installed(folder / "mergekit")
        drawn = draw(folder, 3)
        for number, case in enumerate(CASES):
            if options.methods and case.ours["method"] not in options.methods:
                continue
            place = folder / f"case-{number}"
            place.mkdir()
            found = compare(case, drawn, command, place)
            ours = f"{case.ours['method']} {case.ours.get('knobs', '')}".strip()
            size = f", task vectors x {case.size:g}" if case.size != 1 else ""
            size += ", equal magnitudes" if case.ties else ""
            apart = sum(one > case.tolerance for one in found)
            print(
                f"| {ours}{size} | {case.theirs} | {max(found):.1e} | {apart} of {len(found)} |"
                f" {case.differs} |",
                flush=True,
            )
            assert bool(apart) == bool(case.differs)


if __name__ == "__main__":
    main()
