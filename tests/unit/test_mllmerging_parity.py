"""WUDI, OptMerge, SWUDI and ASWUDI beside their authors' functions, which are in no registry.

    git clone https://github.com/WalkerWorldPeace/MLLMerging DIR/MLLMerging
    AWD_RIVALS=DIR python -m pytest tests/unit/test_mllmerging_parity.py

Their repository has no licence, so nothing of it is here. Float32 there, float64 here. Their second
code of OptMerge, for LoRA, runs on a GPU only: its preset is held by the reference alone.
"""

import sys

import numpy as np
import pytest

import awd_core as awd
from awd_core.method import build
from tests.method_runs import run
from tests.rivals import SCRIPTS, Results, answers, mllmerging
from tests.unit.test_spectral_methods import task_vectors

pytestmark = pytest.mark.slow

SHAPES = {"a.weight": (24, 40), "b.weight": (33, 18), "a.bias": (24,), "conv.weight": (4, 3, 2, 2)}
N_EXPERTS = 3


def vectors() -> dict[str, np.ndarray]:
    return {
        name: task_vectors(shape, N_EXPERTS, seed).astype(np.float32)
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    command = [sys.executable, SCRIPTS / "mllmerging.py", mllmerging()]
    return answers(command, vectors(), tmp_path_factory.mktemp("mllmerging"))


@pytest.mark.parametrize(
    ("theirs", "key", "preset", "knobs", "tolerance"),
    [
        ("wudi", "wudi", None, {}, 1e-5),
        ("optmerge", "optmerge", "full", {}, 1e-5),
        ("swudi", "swudi", "code", {}, 1e-5),
        ("aswudi", "aswudi", None, {}, 1e-5),
        ("aswudi_entropy", "aswudi", None, {"rule": "entropy"}, 1e-5),
        ("aswudi_participation", "aswudi", None, {"rule": "participation"}, 1e-5),
    ],
    ids=["wudi", "optmerge", "swudi", "aswudi", "aswudi_entropy", "aswudi_participation"],
)
def test_the_same_merge(
    found: Results,
    theirs: str,
    key: str,
    preset: str | None,
    knobs: dict[str, str],
    tolerance: float,
) -> None:
    given = {name: taus.astype(np.float64) for name, taus in vectors().items()}
    merged = run(build(awd.find_method(key), knobs, preset), given)
    for name in SHAPES:
        gap = np.abs(merged[name] - found[theirs][name]).max()
        assert gap <= tolerance * np.abs(found[theirs][name]).max(), name
