"""Granularity `spectral`: row AWD in the left singular basis of the summed task vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import awd_core as awd
from awd_core.disentangle import granularities
from awd_core.errors import RecipeError, StudyError
from awd_core.spectral import NEGLIGIBLE, left_basis, spectral_grams
from tests.helpers import Family, base_state, expert_states
from tests.reference import full_space


def is_numpy(library: dict[str, Any]) -> bool:
    return library["user_api"] == "blas" and "numpy" in library["filepath"]


SETTINGS: dict[str, Any] = {"alpha_relative": 0.1, "lr_relative": 0.01, "steps": 60}
MATRICES = ("encoder.layer.0.attention.self.query.weight", "tall.weight", "patch.conv.weight")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Family:
    base = base_state()
    base["tall.weight"] = torch.randn(9, 4, generator=torch.Generator().manual_seed(8))
    return Family(tmp_path_factory.mktemp("spectral"), base, expert_states(base, 4))


@pytest.fixture(scope="module")
def study(experts: Family) -> awd.Study:
    return experts.study(out=experts.root / "study", spectral=True)


def explicit_redundant(tau: np.ndarray) -> np.ndarray:
    """delta of one matrix by SVD and descent in the space of the weights, (K, m, n) -> (m, n)."""
    basis = np.linalg.svd(tau.sum(0), full_matrices=False)[0]
    rotated = np.einsum("mr,kmn->rkn", basis, tau)
    critical, scale = full_space.scales(rotated)
    found = full_space.descend(rotated, 0.1 * critical, 0.01 * scale**2, 60)
    return basis @ found.delta


@pytest.mark.parametrize("name", MATRICES)
def test_merge_equals_explicit_rotation(experts: Family, name: str) -> None:
    merged = experts.state(disentangle={"granularity": "spectral"} | SETTINGS, coefficient=0.3)
    tau = experts.task_vectors()[name]
    tau = tau.reshape(*tau.shape[:2], -1)
    expected = experts.base_state[name].double().numpy().reshape(tau.shape[1:])
    expected = expected + 0.3 * (tau - explicit_redundant(tau)).sum(0)
    ours = merged[name].double().numpy().reshape(tau.shape[1:])
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_moments_equal_those_of_the_explicit_delta(experts: Family, study: awd.Study) -> None:
    solved = awd.disentangle(study, "spectral", **SETTINGS)
    for name in MATRICES:
        tau = experts.task_vectors()[name]
        tau = tau.reshape(*tau.shape[:2], -1)
        delta = explicit_redundant(tau)
        position = study.index[name]
        products = np.einsum("mn,kmn->k", delta, tau)
        np.testing.assert_allclose(solved.by_tensor.products[position], products, rtol=1e-8)
        squares = solved.by_tensor.squares[position]
        assert squares == pytest.approx(np.square(delta).sum(), rel=1e-8)


def test_grams_add_up_to_what_lies_in_the_span(experts: Family, study: awd.Study) -> None:
    wide, tall = MATRICES[0], MATRICES[1]
    np.testing.assert_allclose(study.spectral_gram(wide).sum(0), study.gram(wide), rtol=1e-10)
    rest = study.gram(tall) - study.spectral_gram(tall).sum(0)
    assert np.linalg.eigvalsh(rest).min() > -1e-12
    # What lies outside of the span of the sum adds up to nothing.
    assert rest.sum() == pytest.approx(0, abs=1e-10)


def test_equals_row_where_the_rows_of_the_sum_are_orthogonal(tmp_path: Path) -> None:
    """U is then a permutation of the rows: the same groups in another order."""
    generator = torch.Generator().manual_seed(1)
    base = {"dense.weight": torch.zeros(4, 6)}
    own = torch.randn(3, 4, 6, generator=generator)
    own -= own.mean(0)
    own += torch.eye(4, 6) * torch.tensor([1.0, 4.0, 2.0, 3.0])[:, None]
    family = Family(tmp_path, base, [{"dense.weight": tau} for tau in own])
    states = {
        granularity: family.state(disentangle={"granularity": granularity} | SETTINGS)
        for granularity in ("row", "spectral")
    }
    apart = states["row"]["dense.weight"] - states["spectral"]["dense.weight"]
    assert apart.abs().max() < 1e-5


@pytest.mark.parametrize("kind", [np.asarray, torch.asarray])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_left_basis_is_the_left_singular_basis(
    shape: tuple[int, int], kind: Callable[[np.ndarray], Any]
) -> None:
    total = np.random.default_rng(0).standard_normal(shape)
    basis = np.asarray(left_basis(kind(total)))
    theirs = np.linalg.svd(total, full_matrices=False)[0]
    np.testing.assert_allclose(np.abs((basis * theirs).sum(0)), 1.0, rtol=1e-9)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_left_basis_is_orthonormal_down_to_what_is_negligible(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.standard_normal((size, 30)))[0] for size in shape)
    values = np.concatenate([np.geomspace(1, 2 * NEGLIGIBLE, 25), [1e-8] * 3, [0.0] * 2])
    basis = left_basis(left * values @ right.T)
    expected = np.diag((values > NEGLIGIBLE).astype(float))
    np.testing.assert_allclose(basis.T @ basis, expected, atol=1e-12)
    # All of the sum but what is negligible lies in its span.
    total = left * values @ right.T
    assert np.linalg.norm(total - basis @ (basis.T @ total)) < 3e-8


@pytest.mark.parametrize("spectra", [False, True])
def test_threads_of_matrix_products_never_change_a_bit(tmp_path: Path, spectra: bool) -> None:
    """Sizes at which NumPy's products and decompositions do depend on them."""
    rng = np.random.default_rng(4)
    shapes = {"wide.weight": (385, 405), "tall.weight": (462, 171)}
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    own = [
        {name: torch.from_numpy(rng.standard_normal(s)).float() for name, s in shapes.items()}
        for _ in range(3)
    ]
    family, levels = Family(tmp_path, base, own), []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            study = family.study(out=tmp_path / f"study {threads}", spectral=not spectra)
            levels.append(awd.collect_spectra(study) if spectra else study)
            settings = {one["num_threads"] for one in threadpool_info() if is_numpy(one)}
            assert settings == {threads}, "what was set before is set again"
    one, two = levels
    for name in shapes:
        assert np.array_equal(one.spectral_gram(name), two.spectral_gram(name))
    if spectra:
        for name, array in vars(one.spectra[1]).items():
            assert np.array_equal(array, vars(two.spectra[1])[name], equal_nan=True), name


def test_directions_that_the_sum_lacks_are_left_alone(tmp_path: Path) -> None:
    base = {"dense.weight": torch.zeros(4, 6)}
    own = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    own[1, 2:] = -own[0, 2:]
    family = Family(tmp_path, base, [{"dense.weight": tau} for tau in own])
    tensor = family.base.stored["dense.weight"]
    grams = spectral_grams(tensor, family.experts, "cpu")
    assert (np.abs(grams).sum((1, 2)) > 0).tolist() == [True, True, False, False]


def test_level_is_asked_for_and_serves_every_granularity(
    experts: Family, study: awd.Study, tmp_path: Path
) -> None:
    assert granularities(study) == ("model", "block", "tensor", "row", "spectral")
    plain = experts.study(out=tmp_path / "plain")
    assert granularities(plain) == ("model", "block", "tensor", "row")
    assert plain.digest != study.digest
    with pytest.raises(StudyError, match="no spectral Grams"):
        awd.disentangle(plain, "spectral")
    recipe = experts.recipe(disentangle={"granularity": "row", "steps": 3})
    plan = awd.plan_merge(recipe, study=study, device="cpu")
    assert plan.disentangled is not None
    again = awd.disentangle(study, "row", steps=3)
    assert np.array_equal(plan.disentangled.span_coefficients, again.span_coefficients)


def test_dense_settings_are_refused(experts: Family) -> None:
    with pytest.raises(RecipeError):
        experts.recipe(disentangle={"granularity": "spectral", "optimizer": "adam"})
