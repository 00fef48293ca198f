"""What needs no torch never loads it, and what loads it may do so from any thread."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import family

COMMAND = """
import sys
from awd_core.__main__ import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
sys.exit(3 if "torch" in sys.modules else 0)
"""

THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from awd_core.lazy import torch
assert "torch" not in sys.modules
ready = threading.Barrier(8)
def look(k):
    ready.wait()
    return torch.full((2,), k, dtype=torch.float64).sum().item()
with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(look, range(8))) == [2.0 * k for k in range(8)]
"""

APP = """
import sys
import analysis.report, awd_core.evaluation
import dashboard.evaluator, dashboard.own_texts, dashboard.latency
sys.exit(3 if {"torch", "transformers"} & set(sys.modules) else 0)
"""

READY = """
import numpy as np
from awd_core import compiled, gram_kernels
compiled.make_ready()
total = np.zeros(3)
gram_kernels.add_in_order(total, np.ones((5, 3)))
assert total.tolist() == [5.0, 5.0, 5.0]
import scipy.linalg
assert scipy.linalg.det(np.eye(2)) == 1.0
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "average", "dare", "dare_ties", "ties", "ties_mergekit"]
)
def test_merging_by_compiled_code_needs_no_torch(tmp_path: Path, method: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(family(tmp_path, 3).recipe(method=method).to_yaml())
    merged = run(COMMAND, "merge", str(recipe), str(tmp_path / "out"))
    assert merged.returncode == 0, merged.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_looking_and_the_pass_need_no_torch(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    sources = [str(one.recipe().base), *one.recipe().experts]
    study = ["--output", str(tmp_path / "study")]
    for arguments in (
        ["--help"],
        ["methods"],
        ["inspect", *sources],
        ["collect", *sources, *study],
        ["collect", *sources, *study, "--spectra"],
    ):
        found = run(COMMAND, *arguments)
        assert found.returncode == 0, (arguments, found.stderr)


def test_report_and_evaluation_are_imported_without_torch() -> None:
    found = run(APP)
    assert found.returncode == 0, found.stderr


def test_a_command_that_needs_torch_has_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(family(tmp_path, 3).recipe(method="tsv_m").to_yaml())
    merged = run(COMMAND, "merge", str(recipe), str(tmp_path / "out"))
    assert merged.returncode == 3, merged.stderr


def test_threads_that_look_at_once_all_see_torch() -> None:
    found = run(THREADS)
    assert found.returncode == 0, found.stderr


def test_kernels_made_ready_leave_scipy_as_it_is() -> None:
    found = run(READY)
    assert found.returncode == 0, found.stderr
