"""Our methods beside FusionBench's functions, run by FusionBench in its own environment.

    AWD_RIVALS=DIR python -m pytest tests/unit/test_fusionbench_parity.py

The first run installs it under DIR from the registry, without its dependencies (of which it pins
some hundred) but with those that its methods import; torch and NumPy are the project's. That takes
about a minute and 300 MB, and importing all of its methods about 15 s a test.

Float32 there, float64 here: what agrees, agrees to a few 1e-6 of the largest entry. Where we differ
on purpose, the difference itself is what is tested.
"""

from pathlib import Path

import numpy as np
import pytest

import awd_core as awd
from awd_core.method import build
from tests.method_runs import run
from tests.rivals import SCRIPTS, Results, answers, fusionbench
from tests.unit.test_spectral_methods import task_vectors

# The first run installs, and their descents run on what the machine has left.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHAPES = {"a.weight": (24, 40), "b.weight": (33, 18), "a.bias": (24,), "conv.weight": (4, 3, 2, 2)}
N_EXPERTS = 3


def vectors() -> dict[str, np.ndarray]:
    return {
        name: task_vectors(shape, N_EXPERTS, seed).astype(np.float32)
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


def theirs(folder: Path, given: dict[str, np.ndarray]) -> Results:
    return answers([fusionbench(), SCRIPTS / "fusionbench.py"], given, folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return theirs(tmp_path_factory.mktemp("fusionbench"), vectors())


def ours(key: str, preset: str | None = None, **knobs: float | str) -> dict[str, np.ndarray]:
    given = {name: taus.astype(np.float64) for name, taus in vectors().items()}
    return run(build(awd.find_method(key), knobs, preset), given)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize(
    ("key", "preset", "knobs", "tolerance"),
    [
        ("tsv_m", None, {}, 1e-5),
        ("iso_c", None, {}, 1e-5),
        ("iso_cts", None, {}, 1e-5),
        ("opcm", "fusionbench", {}, 1e-5),
        ("wudi", "fusionbench", {"steps": 300}, 1e-4),
        ("emr", "code", {}, 1e-6),
    ],
    ids=["tsv_m", "iso_c", "iso_cts", "opcm", "wudi", "emr"],
)
def test_the_same_merge(found: Results, key, preset, knobs, tolerance: float) -> None:
    merged = ours(key, preset, **knobs)
    for name in SHAPES:
        assert apart(merged[name], found[key][name]) <= tolerance, name


def test_the_same_tall_mask(found: Results) -> None:
    merged = ours("tall_masks")
    flat = np.concatenate([merged[name].ravel() for name in SHAPES])
    assert apart(flat, found["tall_masks"]["flat"]) <= 1e-6


def test_the_same_common_basis_in_knots(found: Results) -> None:
    taus = vectors()["a.weight"].astype(np.float64)
    side_by_side = np.concatenate(list(taus), axis=1)
    sizes = np.linalg.svd(side_by_side, compute_uv=False)
    np.testing.assert_allclose(found["knots_spectrum"]["a.weight"], sizes, rtol=1e-5)
    assert apart(found["knots_sum"]["a.weight"], taus.sum(0)) <= 1e-5


def test_doge_differs_in_the_one_entry_too_many_that_they_keep(found: Results) -> None:
    merged = ours("doge", "fusionbench")
    differing = 0
    for name in found["doge"]:
        gap = np.abs(merged[name] - found["doge"][name])
        differing += int((gap > 1e-4 * np.abs(merged[name]).max()).sum())
    # kthvalue(d - int(d K)) is the next smaller entry, and >= keeps it: one more for each expert.
    assert 1 <= differing <= N_EXPERTS


# Where we differ on purpose


def lora(n_experts: int, rank: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    left = rng.standard_normal((n_experts, 24, rank))
    return (1e-3 * left @ rng.standard_normal((n_experts, rank, 40))).astype(np.float32)


def test_iso_of_lora_experts_stays_in_their_span_here_and_not_there(tmp_path: Path) -> None:
    # They take the mean over all 24 singular values, 20 of them rounding, and fill the null space.
    taus = lora(2, 2)
    other = theirs(tmp_path, {"a.weight": taus})["iso_c"]["a.weight"]
    own = run(build(awd.find_method("iso_c"), {}), {"a.weight": taus.astype(float)})["a.weight"]
    basis = np.linalg.svd(taus.sum(0).astype(float))[0][:, :4]

    def outside(matrix: np.ndarray) -> float:
        return float(np.linalg.norm(matrix - basis @ basis.T @ matrix) / np.linalg.norm(matrix))

    assert outside(own) < 1e-6
    assert outside(other) > 0.8


def test_duplicate_experts_double_there_and_not_here(tmp_path: Path) -> None:
    taus = np.stack([task_vectors((24, 40), 1)[0].astype(np.float32)] * 2)
    other = theirs(tmp_path, {"a.weight": taus})["tsv_m"]["a.weight"]
    own = run(build(awd.find_method("tsv_m"), {}), {"a.weight": taus.astype(float)})["a.weight"]
    assert np.linalg.norm(other) > 1.3 * np.linalg.norm(own)
    kept = np.linalg.svd(taus[0], compute_uv=False)[:12]
    np.testing.assert_allclose(np.linalg.norm(own), np.linalg.norm(kept), rtol=1e-5)


def test_a_matrix_with_fewer_rows_than_experts_is_zero_there_and_the_mean_here(
    tmp_path: Path,
) -> None:
    taus = task_vectors((2, 40), 3).astype(np.float32)
    other = theirs(tmp_path, {"a.weight": taus})["tsv_m"]["a.weight"]
    own = run(build(awd.find_method("tsv_m"), {}), {"a.weight": taus.astype(float)})["a.weight"]
    assert not other.any()
    np.testing.assert_allclose(own, taus.astype(float).mean(0))
