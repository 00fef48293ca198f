"""Merges of eight Llama-shaped experts of 316M parameters, beside mergekit 0.1.5.

    python -m benchmarks.merge_vs_mergekit [--methods task_arithmetic ...] [--runs 3]

Base and experts are drawn from a seed in bfloat16 (5.7 GB, deleted afterwards). Both programs merge
the same files in turn, each in a process of its own, the page cache warm for both. mergekit has a
virtual environment of its own, kept between runs. The memory of remembered hashes is emptied
before each of our runs, so that every input is hashed every time; a last run shows what it saves.
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
import time
from dataclasses import dataclass
from pathlib import Path

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
        index = torch.arange(start, start + n) % (1 << 24)
        return pool[index].view(shape)

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


def timed(command: list[str | Path], **environment: str) -> Run:
    """One process to its end."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), env=os.environ | environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0])
    cpu = usage.ru_utime + usage.ru_stime
    return Run(time.perf_counter() - begun, cpu, usage.ru_maxrss / 1e3)


def warm(folders: list[Path]) -> None:
    """Read every input once."""
    buffer = bytearray(1 << 22)
    for folder in folders:
        with (folder / "model.safetensors").open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def ours(base: Path, experts: list[Path], method: str, folder: Path) -> Path:
    """Our recipe of a method, as a file."""
    fields = {
        "base": str(base),
        "experts": [str(expert) for expert in experts],
        "method": method,
        "coefficient": COEFFICIENT,
    }
    file = folder / f"ours-{method}.yaml"
    file.write_text(yaml.safe_dump(fields, sort_keys=False))
    return file


def theirs(base: Path, experts: list[Path], method: str, folder: Path) -> Path:
    """mergekit's recipe of a method, as a file, in bfloat16, in which it is fastest."""
    own = {"weight": COEFFICIENT}
    fields = {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": str(expert), "parameters": own} for expert in experts],
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }
    file = folder / f"theirs-{method}.yaml"
    file.write_text(yaml.safe_dump(fields, sort_keys=False))
    return file


def difference(left: Path, right: Path, base: Path) -> tuple[float, float]:
    """Share of elements that differ, and the largest difference in ulp of base or result."""
    differ = total = 0
    largest = 0.0
    files = {}
    for file in sorted(right.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    with (
        safe_open(left / "model.safetensors", "pt") as ours_file,
        safe_open(base / "model.safetensors", "pt") as base_file,
    ):
        for name in shapes():
            with safe_open(files[name], "pt") as their_file:
                a, b = ours_file.get_tensor(name), their_file.get_tensor(name)
            unequal = a != b
            differ += int(unequal.sum())
            total += a.numel()
            if unequal.any():
                x, y = a[unequal].float(), b[unequal].float()
                scale = torch.maximum(x.abs(), base_file.get_tensor(name)[unequal].float().abs())
                unit = 2.0 ** (scale.clamp(min=1e-30).log2().floor() - 7)
                largest = max(largest, float(((x - y).abs() / unit).max()))
    return differ / total, largest


def row(name: str, runs: list[Run]) -> str:
    """One line of the table: medians."""
    median = [
        statistics.median(getattr(run, field) for run in runs)
        for field in ("seconds", "cpu_seconds", "peak_mb")
    ]
    return f"| {name} | {len(runs)} | {median[0]:.2f} | {median[1]:.2f} | {median[2]:,.0f} |"


def compare(folder: Path, method: str, runs: int, base: Path, experts: list[Path]) -> None:
    """Both programs in turn."""
    command = installed()
    own, other = ours(base, experts, method, folder), theirs(base, experts, method, folder)
    found: dict[str, list[Run]] = {"ours": [], "mergekit": [], "again": []}
    mine, their = folder / "ours", folder / "theirs"
    merge = [sys.executable, "-m", "awd_core", "merge", own, mine, "--json"]
    kit = [command, other, their, "--no-copy-tokenizer", "--quiet", "--lazy-unpickle"]
    home = folder / "home"
    for _ in range(runs):
        for place in (mine, their, home):
            shutil.rmtree(place, ignore_errors=True)
        warm([base, *experts])
        found["mergekit"].append(timed(kit))
        warm([base, *experts])
        found["ours"].append(timed(merge, AWD_HOME=str(home)))
    shares = difference(mine, their, base)
    shutil.rmtree(mine)
    found["again"].append(timed(merge, AWD_HOME=str(home)))
    print(f"\n{method}\n\n| | runs | seconds | CPU seconds | peak MB |\n|---|---|---|---|---|")
    print(row("mergekit 0.1.5", found["mergekit"]))
    print(row("ours", found["ours"]))
    print(row("ours, inputs hashed before", found["again"]))
    kit_seconds, our_seconds = (
        statistics.median(run.seconds for run in found[name]) for name in ("mergekit", "ours")
    )
    print(f"\n{kit_seconds / our_seconds:.1f} times faster;", end=" ")
    print(f"{shares[0]:.2e} of the elements differ, by at most {shares[1]:.2g} bfloat16 ulp")
    for place in (mine, their, home):
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    """Draw, merge in turn, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic"])
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
        print(f"{n:,} parameters, {N_EXPERTS} experts, bfloat16")
        for method in arguments.methods:
            compare(Path(scratch), method, arguments.runs, base, experts)


if __name__ == "__main__":
    main()
