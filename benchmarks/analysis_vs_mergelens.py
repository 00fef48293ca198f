"""Every measure on fully fine-tuned experts, beside MergeLens 2.0.3 on the same files.

    python -m benchmarks.analysis_vs_mergelens [FOLDER] [--patience SECONDS] [--mergelens COMMAND]

FOLDER holds one model folder for each expert of `zoo:base`, as `make zoo-full` trains them. We read
base and experts, collect the study and the spectra, and work out all measures in all scopes.
MergeLens comes from the registry into a virtual environment of its own. Time on the clock and
processor time of the whole processes are compared: other work on the machine changes the first.
A rival that is not done after `--patience` seconds is stopped; its time so far is a lower bound.

Below stands how far the randomised singular value decomposition is from the full one.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import awd_core as awd
from awd_core.checkpoints import Checkpoint
from awd_core.spectra import leading_triplets
from awd_core.spectral import matrices

MERGELENS = "mergelens==2.0.3"
# Matrices whose randomised decomposition is checked; square ones and both ways of oblong ones.
CHECKED = 12

OURS = """
import sys
import numpy as np
import awd_core as awd
from analysis.measures import MEASURES
from analysis.view import View
from awd_core import compiled
compiled.make_ready()
out, *folders = sys.argv[1:]
base, experts = awd.open_checkpoint("zoo:base"), [awd.open_checkpoint(one) for one in folders]
study = awd.collect(base, experts, out, device="cpu")
study = awd.collect_spectra(study, base, experts, device="cpu")
view = View(study, awd.disentangle(study, "row"), np.full(study.n_experts, 0.3))
print(sum(np.size(one.of(view, scope)) for one in MEASURES for scope in one.scopes), len(MEASURES))
"""


@dataclass(frozen=True)
class Run:
    """One process, from start to end.

    Attributes:
        wall: Seconds on the clock.
        processor: Seconds of all its threads.
        done: Whether it came to its end by itself, without an error.
        said: The end of its output.
    """

    wall: float
    processor: float
    done: bool
    said: str


def run(command: Sequence[str], patience: float) -> Run:
    """Run a command and take its times; stop it after `patience` seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, text=True
        )
        try:
            done = process.wait(patience) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done = False
        output.seek(0)
        said = output.read()[-1500:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(time.perf_counter() - start, used, done, said)


def installed(folder: Path) -> Path:
    """MergeLens in a virtual environment of its own; its command."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "pip", "install", "--quiet", MERGELENS, f"torch=={torch.__version__}"]
    subprocess.run(pip, check=True)
    return folder / "bin" / "mergelens"


def accuracy(base: Checkpoint, experts: Sequence[Checkpoint]) -> str:
    """Randomised against full, over matrices of the experts."""
    names = [tensor for tensor in base.stored.values() if len(tensor.shape) == 2]
    chosen = [tensor for tensor in names if min(tensor.shape) >= 128][2 : 2 + CHECKED]
    value_errors, angles = [], []
    for tensor in chosen:
        tau = next(matrices(tensor, experts[:1], "cpu"))
        count = min(tau.shape) // len(experts)
        full, found = (leading_triplets(tau, count, 0, exact) for exact in (True, False))
        value_errors.append(np.abs(found.strengths / full.strengths - 1).max())
        half = full.left[:, : count // 2]
        angles.append(np.linalg.svdvals(found.left.T @ half).min())
    return (
        f"Randomised against full decomposition, {len(chosen)} matrices, floor(r/K) triplets:"
        f" largest relative error of a singular value {max(value_errors):.1e}, median"
        f" {np.median(value_errors):.1e}; the leading half of the full directions lies in the"
        f" randomised subspace with a cosine of at least {min(angles):.6f}."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("zoo-full"))
    parser.add_argument("--patience", type=float, default=1800.0)
    parser.add_argument("--mergelens", type=Path, help="its command, if it is installed already")
    given = parser.parse_args()
    folders = sorted(one.parent for one in given.folder.glob("*/model.safetensors"))
    if not folders:
        sys.exit(f"no experts in {given.folder}: train them with `make zoo-full`")
    base = awd.open_checkpoint("zoo:base")
    experts = [awd.open_checkpoint(one) for one in folders]
    with tempfile.TemporaryDirectory() as scratch:
        ours_command = [sys.executable, "-c", OURS]
        # Compiled once per installation, not once per study.
        run([*ours_command, f"{scratch}/warm", str(folders[0])], given.patience)
        ours = run([*ours_command, f"{scratch}/study", *map(str, folders)], given.patience)
        if not ours.done:
            sys.exit(ours.said)
        command = given.mergelens or installed(Path(scratch) / "mergelens")
        report = ["--base", str(base.path), "--json", f"{scratch}/mergelens.json"]
        theirs = run([str(command), "compare", *map(str, folders), *report], given.patience)
    numbers, measures = ours.said.split()[-2:]
    ended = "done" if theirs.done else "stopped or failed: a lower bound"
    n_parameters = sum(tensor.n_elements for tensor in base.stored.values())
    print(f"{len(folders)} experts of {n_parameters:,} parameters.\n")
    print("| | wall-clock s | processor s | |\n|---|---|---|---|")
    print(
        f"| AWD Studio: study, spectra, {measures} measures in every scope ({numbers} numbers) |"
        f" {ours.wall:.1f} | {ours.processor:.1f} | done |"
    )
    print(f"| {MERGELENS}, compare | {theirs.wall:.1f} | {theirs.processor:.1f} | {ended} |")
    print(
        f"| times | {theirs.wall / ours.wall:.1f} x | {theirs.processor / ours.processor:.1f} x |"
        f" {'' if theirs.done else 'at least'} |\n"
    )
    print(accuracy(base, experts))


if __name__ == "__main__":
    main()
