"""Spectral merge methods: their formulas, their limits, and the traps of published code."""

import numpy as np
import pytest
import torch

from awd_core.linear_algebra import polar, singular_triplets
from awd_core.method import MergeMethod
from awd_core.methods.iso_c import IsoC
from awd_core.methods.iso_cts import IsoCts
from awd_core.methods.knots import Knots
from awd_core.methods.opcm import Opcm
from awd_core.methods.rtsvm_style import RtsvmStyle
from awd_core.methods.tsv_c import TsvC
from awd_core.methods.tsv_m import TsvM
from tests.method_runs import run, run_matrix
from tests.reference import spectral_methods as reference

SHAPES = [(12, 12), (9, 30), (31, 8)]
EXPERTS = [1, 2, 3, 8]


def task_vectors(shape: tuple[int, ...], n_experts: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(shape)
    sizes = 1e-3 * (1 + 0.3 * np.arange(n_experts)).reshape(-1, *[1] * len(shape))
    return sizes * (0.5 * common + rng.standard_normal((n_experts, *shape)))


def low_rank(shape: tuple[int, int], n_experts: int, rank: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((n_experts, shape[0], rank))
    return 1e-3 * left @ rng.standard_normal((n_experts, rank, shape[1]))


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-9) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# Linear algebra


@pytest.mark.parametrize("shape", [(7, 7), (5, 20), (20, 5), (1, 6), (6, 1)])
@pytest.mark.parametrize("rank", [None, 3])
def test_triplets_are_those_of_a_singular_value_decomposition(shape, rank) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    found = singular_triplets(torch.from_numpy(matrix), rank)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    kept = min(rank or len(s), len(s))
    np.testing.assert_allclose(found.s, s[:kept], rtol=1e-12)
    close(found.matrix().numpy(), (u[:, :kept] * s[:kept]) @ vh[:kept], 1e-12)
    for basis in (found.u, found.v):
        np.testing.assert_allclose(basis.T @ basis, np.eye(kept), atol=1e-12)


@pytest.mark.parametrize("power", [-400, -60, 0, 60, 400])
def test_triplets_do_not_depend_on_the_unit(power: int) -> None:
    matrix = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 9)))
    one, other = singular_triplets(matrix), singular_triplets(matrix * 2.0**power)
    assert torch.equal(other.s, one.s * 2.0**power)
    assert torch.equal(one.u, other.u)
    assert torch.equal(one.v, other.v)


def test_triplets_leave_out_what_rounding_has_made() -> None:
    exact = torch.from_numpy(low_rank((30, 40), 1, 4)[0])
    noisy = exact.float().double()
    assert len(singular_triplets(exact).s) == len(singular_triplets(noisy).s) == 4
    assert len(singular_triplets(torch.zeros(3, 4).double()).s) == 0


@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-5])
def test_polar_factor_is_accurate_for_small_singular_values(smallest: float) -> None:
    rng = np.random.default_rng(2)
    left = np.linalg.qr(rng.standard_normal((40, 20)))[0]
    right = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    matrix = (left * np.geomspace(1, smallest, 20)) @ right.T
    found = polar(torch.from_numpy(matrix)).numpy()
    np.testing.assert_allclose(found, left @ right.T, atol=1e-8)


def test_threads_never_change_a_bit_of_an_eigendecomposition() -> None:
    matrix = torch.from_numpy(np.random.default_rng(3).standard_normal((200, 300)))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(singular_triplets(matrix, 40).u)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Formulas


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", EXPERTS)
def test_tsv_m_is_its_formula(shape, n_experts: int) -> None:
    taus = task_vectors(shape, n_experts)
    coefficients = np.linspace(0.5, 1.5, n_experts)
    close(run_matrix(TsvM(), taus, coefficients), reference.tsv_m(taus, coefficients))
    close(run_matrix(TsvM(share=0.7), taus, coefficients), reference.tsv_m(taus, coefficients, 0.7))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", [1, 2, 3])
def test_rtsvm_style_is_its_formula(shape, n_experts: int) -> None:
    taus = task_vectors(shape, n_experts)
    taus[-1, 0, 0] = 20 * np.abs(taus).max()
    found = run_matrix(RtsvmStyle(deviations=2.5, floor=0.02), taus)
    close(found, reference.rtsvm_style(taus, 2.5, 0.02))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", EXPERTS)
def test_iso_c_is_its_formula(shape, n_experts: int) -> None:
    taus = task_vectors(shape, n_experts)
    close(run_matrix(IsoC(), taus, 0.7), 0.7 * reference.iso_c(taus))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", EXPERTS)
@pytest.mark.parametrize("common", [0.8, 0.4])
def test_iso_cts_is_its_formula(shape, n_experts: int, common: float) -> None:
    taus = task_vectors(shape, n_experts)
    close(run_matrix(IsoCts(common=common), taus, 1.5), 1.5 * reference.iso_cts(taus, common))


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_knots_is_its_formula(n_experts: int, density: float) -> None:
    matrices = [low_rank((20, 30), n_experts, 3), low_rank((25, 12), n_experts, 2, seed=1)]
    coefficients = np.linspace(0.5, 1.5, n_experts)
    expected = reference.knots(matrices, coefficients, density)
    found = run(Knots(density=density), {"a": matrices[0], "b": matrices[1]}, coefficients)
    close(found["a"], expected[0])
    close(found["b"], expected[1])


@pytest.mark.parametrize("projection", ["paper", "fusionbench"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_opcm_is_its_formula_scaled_after_every_expert(projection, alpha, n_experts) -> None:
    matrices = [task_vectors((9, 14), n_experts), task_vectors((11, 6), n_experts, seed=1)]
    bias = task_vectors((13,), n_experts, seed=2)
    expected, others = reference.opcm(matrices, [bias], alpha, projection)
    found = run(
        Opcm(alpha=alpha, projection=projection),
        {"a.weight": matrices[0], "b.weight": matrices[1], "a.bias": bias},
    )
    close(found["a.weight"], expected[0])
    close(found["b.weight"], expected[1])
    close(found["a.bias"], others[0])


# Limits


def test_one_expert_comes_back_whole_from_methods_that_only_compress() -> None:
    taus = task_vectors((9, 14), 1)
    for method in (TsvM(), Knots(density=1.0), Opcm(), TsvC()):
        close(run_matrix(method, taus), taus[0], 1e-12)


def test_one_expert_is_flattened_by_iso() -> None:
    taus = task_vectors((9, 14), 1)
    for method in (IsoC(), IsoCts()):
        found = np.linalg.svd(run_matrix(method, taus), compute_uv=False)
        np.testing.assert_allclose(found, np.linalg.svd(taus[0])[1].mean(), rtol=1e-10)


def test_one_expert_at_a_share_is_its_rank_truncated_self() -> None:
    taus = task_vectors((10, 14), 1)
    close(run_matrix(TsvM(share=0.5), taus), reference.truncated(taus[0], 5))
    close(run_matrix(TsvC(share=0.5), taus), reference.truncated(taus[0], 5))


def test_experts_in_orthogonal_spaces_are_summed_as_they_are() -> None:
    taus = np.zeros((2, 8, 10))
    taus[0, :4, :5], taus[1, 4:, 5:] = task_vectors((4, 5), 2)[0], task_vectors((4, 5), 2)[1]
    close(run_matrix(TsvM(), taus), taus.sum(0), 1e-12)
    close(run_matrix(Knots(density=1.0), taus), taus.sum(0), 1e-12)


def test_iso_cts_without_own_directions_is_iso_c() -> None:
    taus = task_vectors((9, 14), 3)
    close(run_matrix(IsoCts(common=1.0), taus), run_matrix(IsoC(), taus), 1e-12)


def test_iso_cts_never_gives_tasks_more_room_than_there_is() -> None:
    # round(5 / 8) = 1 direction for each of 8 tasks would leave -3 in common.
    assert IsoCts(common=0.0).split(5, 8) == (5, 0)
    # Python rounds a half to even: (10 - 8) / 4 = 0.5 gives none, (14 - 8) / 4 = 1.5 gives two.
    assert IsoCts(common=0.8).split(10, 4) == (10, 0)
    assert IsoCts(common=0.6).split(14, 4) == (6, 2)


def test_an_expert_that_brings_nothing_new_leaves_opcm_with_the_first() -> None:
    taus = np.stack([task_vectors((9, 14), 1)[0]] * 2)
    # All of the second lies on the diagonal of the first's own basis.
    close(run_matrix(Opcm(), taus), taus[0], 1e-12)


def test_opcm_depends_on_the_order_of_experts() -> None:
    taus = task_vectors((9, 14), 3)
    assert np.abs(run_matrix(Opcm(), taus) - run_matrix(Opcm(), taus[::-1])).max() > 1e-4
    assert not Opcm.permutation_equivariant


# Traps of published code


SOLVERS = [TsvM(), RtsvmStyle(), IsoC(), IsoCts(), Knots(density=1.0), Opcm()]
NAMES = [type(method).key for method in SOLVERS]


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_tsv_gives_matrices_without_room_for_every_task_the_mean(rows: int) -> None:
    # int(min(m, n) / K) = 0 would merge them to zero.
    taus = task_vectors((rows, 20), 8)
    close(run_matrix(TsvM(), taus), taus.mean(0), 1e-12)
    close(run_matrix(RtsvmStyle(), taus), taus.mean(0), 1e-12)


@pytest.mark.parametrize("method", [TsvM(), RtsvmStyle(), IsoC(), IsoCts()], ids=NAMES[:4])
def test_duplicate_experts_do_not_make_the_merge_jump(method: MergeMethod) -> None:
    first, second = task_vectors((12, 16), 2)
    taus = np.stack([first, first, second])
    nudged = taus + 1e-10 * np.abs(first).max() * np.random.default_rng(4).standard_normal(
        taus.shape
    )
    one, other = run_matrix(method, taus), run_matrix(method, nudged)
    assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(one)


def test_duplicates_share_their_directions_in_tsv_m() -> None:
    expert = task_vectors((12, 16), 1)[0]
    merged = run_matrix(TsvM(), np.stack([expert, expert]))
    # Not sqrt(2) times or more: both halves lie on the same 6 directions, each worth s / 2 + s / 2.
    close(merged, reference.truncated(expert, 6))


@pytest.mark.parametrize("method", SOLVERS, ids=NAMES)
def test_a_zero_task_vector_changes_no_direction(method: MergeMethod) -> None:
    taus = low_rank((16, 20), 2, 3)
    merged = run_matrix(method, np.concatenate([taus, np.zeros((1, 16, 20))]))
    assert np.isfinite(merged).all()
    outside = merged - _on_columns(taus, merged)
    assert np.linalg.norm(outside) <= 1e-9 * np.linalg.norm(merged)


@pytest.mark.parametrize("method", SOLVERS, ids=NAMES)
def test_low_rank_experts_never_reach_outside_their_span(method: MergeMethod) -> None:
    # Published code fills the null space: 93 % of Iso-C's energy for LoRA experts.
    taus = low_rank((40, 50), 3, 2)
    merged = run_matrix(method, taus)
    outside = merged - _on_columns(taus, merged)
    assert np.linalg.norm(outside) <= 1e-9 * np.linalg.norm(merged)


def _on_columns(taus: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    basis = np.linalg.svd(np.concatenate(list(taus), axis=1), full_matrices=False)
    kept = basis[0][:, basis[1] > 1e-9 * basis[1][0]]
    return kept @ kept.T @ matrix


def test_iso_c_takes_its_mean_over_directions_that_are_there() -> None:
    taus = low_rank((40, 50), 3, 2)
    sizes = np.linalg.svd(taus.sum(0), compute_uv=False)
    found = np.linalg.svd(run_matrix(IsoC(), taus), compute_uv=False)
    np.testing.assert_allclose(found[:6], sizes[:6].mean(), rtol=1e-9)
    assert found[6] <= 1e-12 * found[0]
    assert sizes.mean() < 0.2 * sizes[:6].mean()  # what the mean over all 40 would be


@pytest.mark.parametrize("method", SOLVERS, ids=NAMES)
@pytest.mark.parametrize("power", [-40, -8, 30])
def test_spectral_methods_have_no_absolute_guard(method: MergeMethod, power: int) -> None:
    taus = task_vectors((9, 14), 3)
    one, other = run_matrix(method, taus), run_matrix(method, 2.0**power * taus)
    assert np.array_equal(2.0**power * one, other)


def test_knots_that_sums_is_task_arithmetic() -> None:
    # Experts that agree in every rotated sign: density 1 then gives their mean.
    tau = low_rank((20, 30), 1, 3)[0]
    close(run_matrix(Knots(density=1.0), np.stack([tau, 2 * tau])), 1.5 * tau)


def test_the_sign_of_a_singular_vector_never_matters_in_knots() -> None:
    taus = low_rank((20, 30), 3, 2)
    turned = np.diag(np.where(np.arange(20) % 2, -1.0, 1.0))
    one = run_matrix(Knots(density=0.4), taus)
    close(turned @ run_matrix(Knots(density=0.4), turned @ taus), one)


# Where nothing is solved


@pytest.mark.parametrize("method", [TsvM(), IsoC(), Knots(), RtsvmStyle(), IsoCts()])
def test_vectors_and_higher_tensors_get_the_mean(method: MergeMethod) -> None:
    vectors = {
        "scale": task_vectors((), 3),
        "bias": task_vectors((7,), 3),
        "conv.weight": task_vectors((4, 3, 2, 2), 3),
    }
    merged = run(method, vectors, 0.5)
    for name, taus in vectors.items():
        np.testing.assert_allclose(merged[name], 0.5 * taus.mean(0), rtol=1e-12)


def test_one_coefficient_for_all_scales_a_merge_that_is_not_linear_in_them() -> None:
    taus = task_vectors((9, 14), 3)
    for method in (IsoC(), IsoCts(), Opcm()):
        assert not run_matrix(method, taus, 0.0).any()
        close(run_matrix(method, taus, 3.0), 3 * run_matrix(method, taus), 1e-14)
