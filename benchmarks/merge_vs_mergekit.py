"""Merges of eight Llama-shaped experts of 316M parameters, beside mergekit 0.1.5.

    python -m benchmarks merge_vs_mergekit
    python -m benchmarks.merge_vs_mergekit [--cases task_arithmetic ties dare lora] [--runs 3]
    python -m benchmarks.merge_vs_mergekit --cases all       every method that mergekit has, once

Base and experts are drawn from a seed in bfloat16 (5.7 GB, deleted afterwards). Both programs merge
the same files in turn, each in a process of its own, the page cache warm for both. mergekit has a
virtual environment of its own, kept between runs. We note the SHA-256 of every input: "first time"
is a merge that has to compute them all, "again" one that finds them remembered.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

MERGEKIT = "mergekit==0.1.5"
N_EXPERTS, COEFFICIENT, DENSITY = 8, 0.3, 0.2
LAYERS, WIDTH, INNER, VOCABULARY = 20, 1024, 2816, 32_000


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def shapes() -> dict[str, tuple[int, ...]]:
    """A Llama of 316M parameters with an output layer of its own."""
    found = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    found["lm_head.weight"] = (VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part in "qkvo":
            found[f"{name}.self_attn.{part}_proj.weight"] = (WIDTH, WIDTH)
        for part in ("gate", "up"):
            found[f"{name}.mlp.{part}_proj.weight"] = (INNER, WIDTH)
        found[f"{name}.mlp.down_proj.weight"] = (WIDTH, INNER)
        for part in ("input", "post_attention"):
            found[f"{name}.{part}_layernorm.weight"] = (WIDTH,)
    return found


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def draw(folder: Path) -> tuple[Path, list[Path]]:
    """Base and experts; task vectors share a third of their variance."""
    folders = [folder / "base", *(folder / f"expert-{k}" for k in range(N_EXPERTS))]
    generator = torch.Generator().manual_seed(0)
    # Numbers are drawn once and shifted: drawing 2.8 thousand million takes longer than merging.
    pool = torch.randn(1 << 24, generator=generator).to(torch.bfloat16)

    def numbers(shape: tuple[int, ...], shift: int) -> torch.Tensor:
        n = int(np.prod(shape))
        start = (shift * 7_919_993) % (1 << 24)
        again = -(-(start + n) // len(pool)) - 1
        return torch.cat([pool[start:], *[pool] * again])[:n].view(shape)

    for k, place in enumerate(folders):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(CONFIG))
        state = {}
        for position, (name, shape) in enumerate(sorted(shapes().items())):
            base = numbers(shape, position) * 0.02
            if k:
                common = numbers(shape, 1000 + position)
                base = base + (common * 0.6 + numbers(shape, 2000 + 300 * k + position)) * 0.001
            state[name] = base
        save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    return folders[0], folders[1:]


def installed() -> Path:
    """mergekit in a virtual environment of its own; its command."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "awd-benchmarks"
    venv = home / MERGEKIT.replace("==", "-")
    command = venv / "bin" / "mergekit-yaml"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [venv / "bin" / "pip", "install", "--quiet", MERGEKIT, f"torch=={torch.__version__}"]
        subprocess.run(pip, check=True)
    return command


# Memory of a process that forks counts as that of its children, so a small one starts them.
_LAUNCH = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
code, cpu = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
print(json.dumps([code, time.perf_counter() - begun, cpu, usage.ru_maxrss / 1e3]))
"""


def timed(command: list[str | Path], **environment: str) -> Run:
    """One process to its end.

    Raises:
        CalledProcessError: It failed.
    """
    launched = [sys.executable, "-S", "-c", _LAUNCH, *map(str, command)]
    # Both keep their compiled modules, as Python does by itself.
    inherited = {key: own for key, own in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        launched, env=inherited | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    code, seconds, cpu, peak = json.loads(run.stdout)
    if code:
        raise subprocess.CalledProcessError(code, command[0])
    return Run(seconds, cpu, peak)


def warm(folders: list[Path]) -> None:
    """Read every input once."""
    buffer = bytearray(1 << 22)
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


@dataclass(frozen=True)
class Case:
    """One merge, as both programs are asked for it.

    Attributes:
        title: For the table.
        ours: Fields of our recipe, besides base and experts.
        theirs: The method, and its parameters for every expert.
        budget: How many times faster it has to be; 0 for no such budget, and one run.
        lora: Whether the experts are LoRA adapters.
        random: Whether the method draws at random, so that outputs are compared as statistics.
        n_experts: How many take part.
        base_model: Whether mergekit is told the base; of two models it may want the first.
    """

    title: str
    ours: dict[str, Any]
    theirs: tuple[str, dict[str, Any]]
    budget: float = 0
    lora: bool = False
    random: bool = False
    n_experts: int = N_EXPERTS
    base_model: bool = True


_TASK_ARITHMETIC = {"method": "task_arithmetic", "coefficient": COEFFICIENT}
_WEIGHT = {"weight": COEFFICIENT, "normalize": False}
CASES = {
    "task_arithmetic": Case(
        "Task arithmetic", _TASK_ARITHMETIC, ("task_arithmetic", _WEIGHT), budget=5
    ),
    "ties": Case(
        "TIES, every tensor trimmed by itself, density 0.2",
        {"method": "ties_mergekit", "coefficient": 1.0, "knobs": {"density": DENSITY}},
        ("ties", {"weight": 1.0, "density": DENSITY, "normalize": True}),
        budget=15,
    ),
    "dare": Case(
        "DARE, linear, rescaled to the L1 norm, density 0.2",
        {
            "method": "dare",
            "coefficient": COEFFICIENT,
            "knobs": {"drop": 1 - DENSITY, "rescale": "l1"},
        },
        ("dare_linear", _WEIGHT | {"density": DENSITY}),
        budget=8,
        random=True,
    ),
    "lora": Case(
        "Task arithmetic on LoRA adapters of rank 16",
        _TASK_ARITHMETIC,
        ("task_arithmetic", _WEIGHT),
        budget=5,
        lora=True,
    ),
    "average": Case(
        "Average", {"method": "average"}, ("linear", {"weight": 1.0}), base_model=False
    ),
    "model_stock": Case(
        "Model Stock", {"method": "model_stock", "preset": "mergekit"}, ("model_stock", {})
    ),
    "karcher": Case("Karcher mean", {"method": "karcher"}, ("karcher", {}), base_model=False),
    "multi_slerp": Case("Multi-SLERP", {"method": "multi_slerp"}, ("multislerp", {"weight": 1.0})),
    "nuslerp": Case(
        "NuSLERP, two experts", {"method": "nuslerp"}, ("nuslerp", {"weight": 1.0}), n_experts=2
    ),
    "slerp": Case(
        "SLERP, two experts",
        {"method": "slerp", "knobs": {"t": 0.5}},
        ("slerp", {"t": 0.5}),
        n_experts=2,
        base_model=False,
    ),
    "sce": Case(
        "SCE, a fifth selected",
        {"method": "sce", "preset": "mergekit", "knobs": {"select": DENSITY}},
        ("sce", {"select_topk": DENSITY}),
    ),
    "breadcrumbs": Case(
        "Breadcrumbs, by tensor",
        {
            "method": "breadcrumbs_tensor",
            "coefficient": COEFFICIENT,
            "knobs": {"density": 0.9, "outliers": 0.01},
        },
        ("breadcrumbs", _WEIGHT | {"density": 0.9, "gamma": 0.01}),
    ),
    "dare_ties": Case(
        "DARE, TIES, density 0.2",
        {"method": "dare_ties", "preset": "mergekit", "knobs": {"drop": 1 - DENSITY}},
        ("dare_ties", {"weight": 1.0, "density": DENSITY, "normalize": True}),
        random=True,
    ),
    "della": Case(
        "DELLA, density 0.7",
        {"method": "della", "preset": "mergekit", "knobs": {"density": 0.7, "epsilon": 0.1}},
        ("della", {"weight": 1.0, "density": 0.7, "epsilon": 0.1, "normalize": True}),
        random=True,
    ),
}

BUDGETED = [key for key, case in CASES.items() if case.budget]


def ours(case: Case, base: Path, experts: list[Path], file: Path) -> Path:
    """Our recipe, as a file."""
    inputs = {"base": str(base), "experts": list(map(str, experts))}
    file.write_text(yaml.safe_dump(inputs | case.ours, sort_keys=False))
    return file


def theirs(case: Case, base: Path, experts: list[Path], file: Path) -> Path:
    """mergekit's recipe, as a file, in bfloat16, in which it is fastest."""
    method, parameters = case.theirs
    names = [f"{base}+{expert}" if case.lora else str(expert) for expert in experts]
    fields = {
        "merge_method": method,
        "models": [{"model": name, "parameters": parameters} for name in names],
        "parameters": parameters,
        "dtype": "bfloat16",
    }
    if case.base_model or method == "slerp":
        fields["base_model"] = str(base) if case.base_model else names[0]
    file.write_text(yaml.safe_dump(fields, sort_keys=False))
    return file


@dataclass
class Weights:
    """Tensors of a folder, read when asked for."""

    folder: Path

    def __getitem__(self, name: str) -> torch.Tensor:
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                if name in opened.keys():  # noqa: SIM118
                    return opened.get_tensor(name)
        raise KeyError(name)


def difference(left: Path, right: Path, base: Path) -> str:
    """How far two merges are apart, in elements, in ulp and as task vectors."""
    differ = total = 0
    largest = apart = moved = 0.0
    mine, their, start = Weights(left), Weights(right), Weights(base)
    for name in shapes():
        a, b, origin = mine[name], their[name], start[name].float()
        unequal = a != b
        differ += int(unequal.sum())
        total += a.numel()
        apart += float((a.float() - b.float()).square().sum())
        moved += float((b.float() - origin).square().sum())
        if unequal.any():
            x, y = a[unequal].float(), b[unequal].float()
            scale = torch.maximum(x.abs(), origin[unequal].abs())
            unit = 2.0 ** (scale.clamp(min=1e-30).log2().floor() - 7)
            largest = max(largest, float(((x - y).abs() / unit).max()))
    return (
        f"{differ / total:.2e} of the elements differ, by at most {largest:.2g} bfloat16 ulp;"
        f" distance of the merged task vectors {(apart / moved) ** 0.5:.1e} of their norm"
    )


def statistics_of(merged: Path, base: Path, experts: list[Path]) -> str:
    """What dropping at random leaves unchanged in the mean, over all matrices of four layers.

    With u the merged task vector and t = lambda sum_k tau_k: the slope <u, t> / <t, t> and the
    ratio of norms ||u|| / ||t||.
    """
    products = squares = own = 0.0
    result, start, sources = Weights(merged), Weights(base), [Weights(one) for one in experts]
    for name in shapes():
        if not name.startswith(tuple(f"model.layers.{layer}." for layer in (0, 6, 12, 18))):
            continue
        origin = start[name].float()
        u = result[name].float() - origin
        t = COEFFICIENT * torch.stack([one[name].float() - origin for one in sources]).sum(0)
        products += float((u * t).sum())
        squares += float(t.square().sum())
        own += float(u.square().sum())
    return f"slope {products / squares:.4f}, norm {(own / squares) ** 0.5:.4f}"


def row(name: str, runs: list[Run]) -> str:
    """One line of the table: medians."""
    median = [
        statistics.median(getattr(run, field) for run in runs)
        for field in ("seconds", "cpu_seconds", "peak_mb")
    ]
    return f"| {name} | {len(runs)} | {median[0]:.2f} | {median[1]:.2f} | {median[2]:,.0f} |"


def compare(folder: Path, case: Case, runs: int, base: Path, experts: list[Path]) -> str:
    """Both programs in turn; the table, and how many times faster we are."""
    command = installed()
    own = ours(case, base, experts, folder / "ours.yaml")
    other = theirs(case, base, experts, folder / "theirs.yaml")
    found: dict[str, list[Run]] = {"mergekit": [], "first": [], "again": []}
    mine, their, home, cache = (folder / name for name in ("ours", "theirs", "home", "cache"))
    merge = [sys.executable, "-m", "awd_core", "merge", own, mine, "--json"]
    kit = [command, other, their, "--no-copy-tokenizer", "--quiet", "--lazy-unpickle"]
    kit += ["--lora-merge-cache", cache] if case.lora else []
    for _ in range(runs if case.budget else 1):
        for place in (mine, their, home, cache):
            shutil.rmtree(place, ignore_errors=True)
        warm([base, *experts])
        found["mergekit"].append(timed(kit))
        shutil.rmtree(cache, ignore_errors=True)
        warm([base, *experts])
        found["first"].append(timed(merge, AWD_HOME=str(home)))
        shutil.rmtree(mine)
        found["again"].append(timed(merge, AWD_HOME=str(home)))
    if case.random:
        agreement = "; ".join(
            f"{name}: {statistics_of(one, base, experts)}"
            for name, one in (("ours", mine), ("mergekit", their))
        )
    else:
        agreement = difference(mine, their, base)
    seconds = {
        name: statistics.median(run.seconds for run in taken) for name, taken in found.items()
    }
    first, again = (seconds["mergekit"] / seconds[name] for name in ("first", "again"))
    budget = f" (budget {case.budget:g})" if case.budget else ""
    lines = [
        f"**{case.title}**: {again:.1f} times faster{budget}, {first:.1f} times the first time.",
        agreement + ".",
        "",
        "| | runs | seconds | CPU seconds | peak MB |\n|---|---|---|---|---|",
        row("mergekit 0.1.5", found["mergekit"]),
        row("ours, first time", found["first"]),
        row("ours, again", found["again"]),
    ]
    for place in (mine, their, home):
        shutil.rmtree(place, ignore_errors=True)
    return "\n".join(lines)


def adapters(base: Path, folder: Path) -> list[Path]:
    """LoRA adapters of rank 16 on every matrix of attention, in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 16,
        "lora_alpha": 32,
        "target_modules": [f"{part}_proj" for part in "qkvo"],
        "task_type": "CAUSAL_LM",
    }
    found = []
    for k in range(N_EXPERTS):
        place = folder / f"adapter-{k}"
        place.mkdir(parents=True)
        (place / "adapter_config.json").write_text(json.dumps(config))
        state = {}
        for layer in range(LAYERS):
            for part in "qkvo":
                name = f"base_model.model.model.layers.{layer}.self_attn.{part}_proj"
                for side, shape in (("A", (16, WIDTH)), ("B", (WIDTH, 16))):
                    factor = torch.randn(shape, generator=generator) * 0.01
                    state[f"{name}.lora_{side}.weight"] = factor.to(torch.bfloat16)
        save_file(state, place / "adapter_model.safetensors", metadata={"format": "pt"})
        found.append(place)
    return found


def main() -> None:
    """Draw, merge in turn, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=BUDGETED, choices=[*CASES, "all"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the inputs are or will be, and stay")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "inputs"
        if folder.exists():
            base, experts = folder / "base", [folder / f"expert-{k}" for k in range(N_EXPERTS)]
        else:
            base, experts = draw(folder)
        n = sum(int(np.prod(shape)) for shape in shapes().values())
        print(f"{n:,} parameters, {N_EXPERTS} experts, bfloat16; medians of {arguments.runs} runs")
        for key in CASES if "all" in arguments.cases else arguments.cases:
            case, place = CASES[key], Path(scratch) / key
            place.mkdir()
            inputs = adapters(base, place) if case.lora else experts
            table = compare(place, case, arguments.runs, base, inputs[: case.n_experts])
            print(f"\n{table}", flush=True)


if __name__ == "__main__":
    main()
