"""The pass over the weights, beside only reading the same files.

    python -m benchmarks.pass_vs_read [--megabytes 2000]

Each is a process of its own, in turn; from the disk, whose page cache is emptied before each, and
from a warm page cache. "read" is one thread that reads every file to its end into one buffer.
Statistics: Grams and norms alone, and all that a study holds. Sizes of the model and numbers of
experts grow to show what the cost grows with.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.merge_vs_mergekit import Run, timed

WIDTH = 1024
CODE = {
    "read": """
import sys
buffer = bytearray(1 << 22)
for file in sys.argv[1:]:
    with open(file + "/model.safetensors", "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
""",
    "Grams": """
import sys, tempfile
import awd_core as awd
from awd_core import collect
sys.modules["awd_core.collect"].STATISTICS = (sys.modules["awd_core.gram"].Grams,)
base, *experts = map(awd.open_checkpoint, sys.argv[1:])
with tempfile.TemporaryDirectory() as folder:
    try:
        awd.collect(base, experts, folder + "/study", device="cpu")
    except awd.AwdError as error:
        assert "damaged" in str(error)  # a study lacks the rest
""",
    "all": """
import sys, tempfile
import awd_core as awd
base, *experts = map(awd.open_checkpoint, sys.argv[1:])
with tempfile.TemporaryDirectory() as folder:
    awd.collect(base, experts, folder + "/study", device="cpu")
""",
    "nothing": "import awd_core as awd",
}


def draw(folder: Path, n_matrices: int, n_experts: int) -> list[Path]:
    """Base and experts of `n_matrices` matrices of 1024 x 1024 in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1 << 22, generator=generator)
    places = [folder / str(k) for k in range(n_experts + 1)]
    for k, place in enumerate(places):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"model_type": "llama"}))
        state = {}
        for layer in range(n_matrices):
            base = pool.roll(layer * 7919)[: WIDTH * WIDTH]
            change = 0.01 * pool.roll(k * 104_729 + layer)[: WIDTH * WIDTH] if k else 0.0
            state[f"layers.{layer}.weight"] = (base + change).to(torch.bfloat16).view(WIDTH, WIDTH)
        save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    return places


def forget(places: list[Path]) -> None:
    """Drop the files from the page cache, so that the disk is read."""
    for place in places:
        for file in place.glob("*.safetensors"):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(kind: str, places: list[Path]) -> Run:
    """One process."""
    return timed([sys.executable, "-c", CODE[kind], *places])


def rates(places: list[Path], kinds: tuple[str, ...], cold: bool = False) -> dict[str, Run]:
    """Each kind once, from the page cache or from the disk; what starting takes is left out."""
    measure("read", places)
    start = measure("nothing", [])
    found = {}
    for kind in kinds:
        if cold:
            forget(places)
        run = measure(kind, places)
        idle = start if kind != "read" else Run(0.0, 0.0, 0.0)
        seconds, cpu = run.seconds - idle.seconds, run.cpu_seconds - idle.cpu_seconds
        found[kind] = Run(seconds, cpu, run.peak_mb)
    return found


def main() -> None:
    """Speed, then growth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=2000, help="of base and 8 experts")
    megabytes = parser.parse_args().megabytes
    per_matrix = WIDTH * WIDTH * 2 / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        n_matrices = max(4, int(megabytes / per_matrix / 9))
        places = draw(folder / "eight", n_matrices, 8)
        n_bytes = sum((place / "model.safetensors").stat().st_size for place in places)
        print(f"base and 8 experts, {n_bytes / 1e9:.1f} GB, bfloat16\n")
        print("| from | | GB/s | GB per CPU second | share of reading | peak MB |")
        print("|---|---|---|---|---|---|")
        for source, cold in (("disk", True), ("page cache", False)):
            found = rates(places, ("read", "Grams", "all"), cold)
            for kind, run in found.items():
                share = found["read"].seconds / run.seconds
                print(
                    f"| {source} | {kind} | {n_bytes / 1e9 / run.seconds:.2f} |"
                    f" {n_bytes / 1e9 / run.cpu_seconds:.2f} | {share:.0%} | {run.peak_mb:,.0f} |",
                    flush=True,
                )
        print("\n| matrices | CPU seconds, all | peak MB |\n|---|---|---|")
        sizes, seconds = [max(1, n_matrices * part // 4) for part in (1, 2, 3, 4)], []
        for size in sizes:
            run = rates(draw(folder / f"size-{size}", size, 8), ("all",))["all"]
            seconds.append(run.cpu_seconds)
            print(f"| {size} | {run.cpu_seconds:.2f} | {run.peak_mb:,.0f} |", flush=True)
        print(f"\nlinear in parameters: R^2 = {np.corrcoef(sizes, seconds)[0, 1] ** 2:.4f}")
        print("\n| K | CPU seconds, Grams | all | peak MB |\n|---|---|---|---|")
        for k in (2, 4, 8, 16, 32):
            runs = rates(draw(folder / f"k-{k}", max(2, n_matrices // 4), k), ("Grams", "all"))
            grams, whole = runs["Grams"], runs["all"]
            print(
                f"| {k} | {grams.cpu_seconds:.2f} | {whole.cpu_seconds:.2f} |"
                f" {whole.peak_mb:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
