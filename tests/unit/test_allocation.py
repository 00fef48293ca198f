"""What a merge takes is what its pieces take, not what they took one after the other."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import Family

MERGE = """
import sys
import awd_core as awd
from awd_core import parallel

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

parallel.WORKERS = 2
before = peak()
awd.merge(awd.Recipe.load(sys.argv[1]), sys.argv[2], device="cpu")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; the remedy is for glibc")
def test_pieces_give_their_memory_back(tmp_path: Path) -> None:
    name, n_experts, shape = "layer.weight", 8, (4096, 2048)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        {name: torch.randn(shape, generator=generator).bfloat16()} for _ in range(n_experts + 1)
    ]
    made = Family(tmp_path, drawn[0], drawn[1:])
    file = tmp_path / "recipe.yaml"
    file.write_text(made.recipe(method="sce").to_yaml(), encoding="utf-8")
    command = [sys.executable, "-c", MERGE, file, tmp_path / "out"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # All task vectors of the tensor in float64, which earlier pieces would have left behind.
    assert int(printed.splitlines()[-1]) < 8 * n_experts * shape[0] * shape[1] * 0.6
