"""Spectral statistics against full decompositions, and the identities that they must hold."""

from pathlib import Path

import numpy as np
import pytest
import torch

import awd_core as awd
from analysis.measures import measure, spectral_overcounting
from analysis.spectral import matrix_positions, rotated
from analysis.view import View
from awd_core import spectra as core
from awd_core.errors import Cancelled, MismatchError, StudyError
from awd_core.spectra import interference_blocks, leading_triplets, matrix_spectra
from tests.analysis_studies import collected, random_vectors
from tests.helpers import cancel_after, tree
from tests.reference import spectral

SHAPES = {"layer.0.up.weight": (12, 7), "layer.0.down.weight": (6, 16), "layer.0.bias": (5,)}
MATRICES = [name for name in SHAPES if name.endswith("weight")]
VECTORS = random_vectors(3, seed=3, shapes=SHAPES)
MULTIPLIERS = np.array([0.3, 0.3, 0.3])


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    study = awd.collect_spectra(collected(tmp_path_factory.mktemp("spectra"), VECTORS))
    return View(study, awd.no_redundancy(study), MULTIPLIERS)


def triplets(matrices: np.ndarray, exact: bool = True) -> list[core.Leading]:
    count = max(1, min(matrices.shape[1:]) // len(matrices))
    return [
        leading_triplets(torch.from_numpy(matrix), count, seed, exact)
        for seed, matrix in enumerate(matrices)
    ]


def of_model(view: View, key: str) -> np.ndarray:
    return measure(key).of(view, "model")[0]


def of_tensor(view: View, key: str, name: str) -> np.ndarray:
    return measure(key).of(view, "tensor")[view.study.index[name]]


@pytest.mark.parametrize("name", MATRICES)
def test_interference_is_that_of_the_formula(view: View, name: str) -> None:
    matrices = VECTORS[name]
    expected = np.abs(spectral.interference(matrices))
    kept = sum(s.sum() for _, s, _ in spectral.truncated(matrices))
    found = of_tensor(view, "singular_task_interference", name)
    np.testing.assert_allclose(found, expected.sum() / kept, rtol=1e-9)
    blocks = expected.reshape(3, len(expected) // 3, 3, -1).sum((1, 3))
    pairs = of_tensor(view, "singular_task_interference_of_pairs", name)
    np.testing.assert_allclose(pairs[0, 1], (blocks[0, 1] + blocks[1, 0]) / kept, rtol=1e-9)
    np.testing.assert_allclose(np.diag(pairs), np.diag(blocks) / kept, rtol=1e-9)
    np.testing.assert_allclose(np.triu(pairs).sum(), found, rtol=1e-9)


@pytest.mark.parametrize("name", MATRICES)
def test_blocks_are_the_sums_of_what_the_others_cause(name: str) -> None:
    """Block (i, j) = U_i^T (sum over m not in {i, j} of truncated Delta_m) V_j."""
    factors = spectral.truncated(VECTORS[name])
    blocks, caused = interference_blocks(triplets(VECTORS[name]))
    parts = [u @ np.diag(s) @ v.T for u, s, v in factors]
    for i, (left, _, _) in enumerate(factors):
        for j, (_, _, right) in enumerate(factors):
            others = [m for m in range(3) if m not in (i, j)]
            whole = left.T @ np.sum([parts[m] for m in others], axis=0) @ right
            np.testing.assert_allclose(blocks[i, j], np.abs(whole).sum(), rtol=1e-9)
            for m in range(3):
                alone = np.abs(left.T @ parts[m] @ right).sum() if m in others else 0.0
                np.testing.assert_allclose(caused[m, i, j], alone, rtol=1e-9, atol=1e-12)


def test_disjoint_supports_do_not_interfere() -> None:
    rng = np.random.default_rng(0)
    matrices = np.zeros((2, 8, 8))
    matrices[0, :4, :4], matrices[1, 4:, 4:] = rng.standard_normal((2, 4, 4))
    blocks, caused = interference_blocks(triplets(matrices))
    assert blocks.sum() < 1e-12
    assert caused.sum() < 1e-12


def test_two_identical_experts_interfere_by_all_they_have() -> None:
    matrix = np.random.default_rng(1).standard_normal((9, 6))
    found = triplets(np.stack([matrix, matrix]))
    blocks, _ = interference_blocks(found)
    kept = np.linalg.svd(matrix, compute_uv=False)[:3].sum()
    np.testing.assert_allclose(blocks.sum(), 2 * kept, rtol=1e-9)
    np.testing.assert_allclose([float(one.strengths.sum()) for one in found], kept, rtol=1e-12)


@pytest.mark.parametrize("name", MATRICES)
def test_alignment_with_the_merge_is_that_of_the_projector(view: View, name: str) -> None:
    merged = VECTORS[name].sum(0)
    expected = [spectral.alignment(matrix, merged) for matrix in VECTORS[name]]
    found = of_tensor(view, "subspace_alignment", name)
    np.testing.assert_allclose(found, [share for share, _ in expected], rtol=1e-9)
    chance = of_tensor(view, "subspace_alignment_by_chance", name)
    np.testing.assert_allclose(chance, np.sqrt(expected[0][1] / SHAPES[name][0]), rtol=1e-12)


@pytest.mark.parametrize("name", MATRICES)
def test_alignment_of_pairs_is_that_of_the_projector(view: View, name: str) -> None:
    factors = spectral.truncated(VECTORS[name])
    found = of_tensor(view, "subspace_alignment_of_pairs", name)
    for i, matrix in enumerate(VECTORS[name]):
        for j, (left, _, _) in enumerate(factors):
            expected = np.linalg.norm(left @ left.T @ matrix) / np.linalg.norm(matrix)
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-9)


@pytest.mark.parametrize("name", MATRICES)
def test_overcounting_is_that_along_singular_vectors(view: View, name: str) -> None:
    expected = spectral.overcounting(VECTORS[name], MULTIPLIERS)
    at = matrix_positions(view).tolist().index(view.study.index[name])
    one = rotated(view)[at]
    found = spectral_overcounting.directions(one, MULTIPLIERS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    left, _, _ = np.linalg.svd(VECTORS[name].sum(0), full_matrices=False)
    own = np.stack([((left.T @ matrix) ** 2).sum(1) for matrix in VECTORS[name]], axis=1)
    wrong = ((expected - 1) ** 2 * own).sum(0) / own.sum(0)
    np.testing.assert_allclose(of_tensor(view, "spectral_overcounting", name), wrong, rtol=1e-9)


@pytest.mark.parametrize("name", MATRICES)
def test_ranks_are_those_of_the_spectrum(view: View, name: str) -> None:
    matrices = VECTORS[name]
    largest = [np.linalg.norm(matrix, 2) for matrix in matrices]
    energies = (matrices**2).sum((1, 2))
    stable = of_tensor(view, "stable_rank", name)
    np.testing.assert_allclose(stable, energies / np.square(largest), rtol=1e-6)
    expected = [spectral.entropy_rank(matrix) for matrix in matrices]
    np.testing.assert_allclose(of_tensor(view, "entropy_rank", name), expected, rtol=1e-6)


def test_parts_are_means_over_their_matrices(view: View) -> None:
    for key in ("stable_rank", "entropy_rank", "subspace_alignment"):
        each = [of_tensor(view, key, name) for name in MATRICES]
        np.testing.assert_allclose(of_model(view, key), np.mean(each, axis=0), rtol=1e-12)
        assert np.isnan(of_tensor(view, key, "layer.0.bias")).all()


def test_an_expert_of_low_rank_has_no_directions_beyond_its_rank() -> None:
    rng = np.random.default_rng(2)
    low = rng.standard_normal((20, 2)) @ rng.standard_normal((2, 12))
    found = leading_triplets(torch.from_numpy(low), 6, 0, exact=True)
    assert int((found.strengths > 0).sum()) == 2
    assert not found.left[:, 2:].any()
    zero = leading_triplets(torch.zeros(5, 4, dtype=torch.float64), 2, 0, exact=True)
    assert not zero.left.any()


@pytest.mark.parametrize("shape", [(90, 700), (700, 90)])
def test_the_randomised_decomposition_is_near_the_full_one(shape: tuple[int, int]) -> None:
    """A spectrum that falls like 1 / r, as those of task vectors do or faster."""
    rng = np.random.default_rng(4)
    left, _ = np.linalg.qr(rng.standard_normal((shape[0], 90)))
    right, _ = np.linalg.qr(rng.standard_normal((shape[1], 90)))
    matrix = left @ np.diag(1 / np.arange(1, 91)) @ right.T
    found = leading_triplets(torch.from_numpy(matrix), 20, 5, exact=False)
    np.testing.assert_allclose(found.strengths, 1 / np.arange(1, 21), rtol=1e-4)
    projected = np.linalg.norm(found.left.numpy().T @ left[:, :20], axis=0)
    np.testing.assert_allclose(projected, 1.0, atol=1e-3)
    again = leading_triplets(torch.from_numpy(matrix), 20, 5, exact=False)
    assert torch.equal(again.left, found.left)


@pytest.mark.parametrize(
    ("side", "n_experts", "expected"),
    [(384, 5, True), (1024, 64, True), (2048, 4, True), (2048, 8, False), (4096, 2, True)],
)
def test_randomised_only_where_that_takes_less_time(
    side: int, n_experts: int, expected: bool
) -> None:
    assert core.in_full(side, side // n_experts) is expected


def test_large_matrices_count_what_was_not_found_as_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "EXACT_SIDE", 1)
    monkeypatch.setattr(core, "RANDOMISED_SHARE", 0.5)
    monkeypatch.setattr(core, "OVERSAMPLING", 4)
    rng = np.random.default_rng(6)
    held = [torch.from_numpy(rng.standard_normal((40, 60))) for _ in range(4)]
    found, grams = matrix_spectra("w", 4, 40, lambda: held)
    assert found.values.shape == (4, 14)
    assert grams.shape == (40, 4, 4)


@pytest.mark.parametrize("name", MATRICES)
def test_arrays_and_tensors_say_the_same(name: str) -> None:
    side = min(SHAPES[name])
    ours, theirs = (
        matrix_spectra(name, 3, side, lambda kind=kind: map(kind, VECTORS[name]))
        for kind in (np.asarray, torch.asarray)
    )
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-9, atol=1e-12)
    for field, array in vars(ours[0]).items():
        np.testing.assert_allclose(array, getattr(theirs[0], field), rtol=1e-6, err_msg=field)


def test_spectra_are_a_level_that_comes_later_and_stays(tmp_path: Path) -> None:
    study = collected(tmp_path, VECTORS)
    assert not study.has_spectra
    view = View(study, awd.no_redundancy(study), MULTIPLIERS)
    assert not measure("stable_rank").available(study)
    with pytest.raises(StudyError, match=r"holds no spectra.*--spectra"):
        measure("stable_rank").of(view, "model")
    before = tree(tmp_path / "study")
    with pytest.raises(Cancelled):
        awd.collect_spectra(study, cancel=cancel_after(2))
    assert tree(tmp_path / "study") == before
    assert awd.collect_spectra(study).has_spectra
    for folder in [*tmp_path.glob("expert-*"), tmp_path / "base"]:  # without weights from here
        (folder / "model.safetensors").unlink()
    again = awd.open_study(tmp_path / "study")
    assert awd.collect_spectra(again) is again
    found = measure("stable_rank").of(View(again, awd.no_redundancy(again), MULTIPLIERS), "model")
    assert np.isfinite(found).all()


def test_spectra_of_other_weights_are_refused(tmp_path: Path) -> None:
    study = collected(tmp_path / "one", VECTORS)
    collected(tmp_path / "two", random_vectors(3, seed=9, shapes=SHAPES))
    experts = [awd.open_checkpoint(tmp_path / "two" / f"expert-{k}") for k in range(3)]
    with pytest.raises(MismatchError, match="not the weights of the study"):
        awd.collect_spectra(study, awd.open_checkpoint(tmp_path / "one" / "base"), experts)
    with pytest.raises(StudyError, match="as they are"):
        awd.collect_spectra(awd.equalise_norms(study))


def test_rows_that_nobody_moves_change_nothing(tmp_path: Path) -> None:
    """Six of nine rows are moved; the shape of the whole matrix decides r and the chance level."""
    rng = np.random.default_rng(8)
    tau = np.zeros((3, 9, 7))
    tau[:, [0, 2, 3, 5, 7, 8]] = np.round(rng.standard_normal((3, 6, 7)) * 256) / 256
    tau[1, [0, 5]] = 0.0
    study = awd.collect_spectra(collected(tmp_path, {"embeddings.w.weight": tau}))
    view = View(study, awd.no_redundancy(study), MULTIPLIERS)
    expected = np.abs(spectral.interference(tau)).sum()
    kept = sum(s.sum() for _, s, _ in spectral.truncated(tau))
    found = of_model(view, "singular_task_interference")
    np.testing.assert_allclose(found, expected / kept, rtol=1e-9)
    assert study.spectral_gram("embeddings.w.weight").shape == (7, 3, 3)
    shares = [spectral.alignment(matrix, tau.sum(0)) for matrix in tau]
    np.testing.assert_allclose(
        of_model(view, "subspace_alignment"), [share for share, _ in shares], rtol=1e-9
    )
    chance = of_model(view, "subspace_alignment_by_chance")
    np.testing.assert_allclose(chance, np.sqrt(shares[0][1] / 9), rtol=1e-12)
    solved = awd.disentangle(study, "spectral", steps=20)
    assert np.isfinite(solved.redundant_norm)
