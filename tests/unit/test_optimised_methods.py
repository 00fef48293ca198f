"""Optimised merge methods: their losses and descents, and the traps of published code."""

import numpy as np
import pytest
import torch

from awd_core.method import MergeMethod, build
from awd_core.methods.aswudi import Aswudi
from awd_core.methods.doge import Doge
from awd_core.methods.optmerge import OptMerge
from awd_core.methods.swudi import Swudi
from awd_core.methods.wudi import Wudi
from awd_core.own_rows import momentum_share, of_task_vectors
from tests.method_runs import run, run_matrix
from tests.reference import optimised_methods as reference
from tests.unit.test_spectral_methods import close, low_rank, task_vectors

SHAPES = [(9, 9), (6, 20), (17, 7)]
ALL = [Wudi(), Swudi(), Aswudi(), OptMerge(), OptMerge(optimiser="momentum"), Doge()]
IDS = ["wudi", "swudi", "aswudi", "optmerge", "optmerge-momentum", "doge"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", [1, 2, 5])
def test_gradient_from_sums_over_experts_is_that_of_the_loss(shape, n_experts: int) -> None:
    taus = task_vectors(shape, n_experts)
    problem = of_task_vectors(torch.from_numpy(taus))
    assert problem is not None
    m = np.random.default_rng(0).standard_normal(shape)
    found = problem.gradient(torch.from_numpy(m)).numpy()
    close(found, reference.wudi_gradient(m, taus), 1e-12)
    step = 1e-6 * np.random.default_rng(1).standard_normal(shape)
    rise = reference.wudi_loss(m + step, taus) - reference.wudi_loss(m - step, taus)
    np.testing.assert_allclose(2 * (found * step).sum(), rise, rtol=1e-6)
    np.testing.assert_allclose(problem.c.trace(), n_experts, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_experts", [1, 3])
def test_wudi_is_adam_on_its_loss(shape, n_experts: int) -> None:
    taus = task_vectors(shape, n_experts)
    found = run_matrix(Wudi(lr=1e-5, steps=80), taus)
    close(found, reference.wudi(taus, 1e-5, 80), 1e-8)


def test_wudi_lessens_its_loss() -> None:
    taus = task_vectors((16, 20), 4)
    losses = [reference.wudi_loss(run_matrix(Wudi(steps=n), taus), taus) for n in (0, 100, 300)]
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("start", ["sum", "mean", "zero"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("time", [0.5, 30.0])
def test_swudi_without_a_cut_is_the_gradient_flow(shape, start: str, time: float) -> None:
    taus = task_vectors(shape, 3)
    first = {"sum": taus.sum(0), "mean": taus.mean(0), "zero": 0 * taus[0]}[start]
    found = run_matrix(Swudi(time=time, rank=1.0, start=start), taus)
    close(found, reference.flow(taus, first, time), 1e-8)


@pytest.mark.parametrize("shape", [(9, 9), (6, 12), (17, 7)])
def test_swudi_for_ever_is_the_minimum_in_its_directions(shape) -> None:
    taus = task_vectors(shape, 3)
    n_directions = int(np.ceil(0.65 * shape[1]))
    found = run_matrix(Swudi(time=1e9, rank=0.65), taus)
    close(found, reference.minimum_on(taus, taus.sum(0), n_directions), 1e-7)


def test_swudi_at_time_zero_is_task_arithmetic() -> None:
    taus = task_vectors((9, 14), 3)
    assert np.array_equal(run_matrix(Swudi(time=0.0), taus), taus.sum(0))
    assert np.array_equal(run_matrix(Swudi(rank=0.0), taus), taus.sum(0))


@pytest.mark.parametrize("rule", ["participation_sqrt", "participation", "entropy"])
@pytest.mark.parametrize("shape", [(9, 9), (6, 12), (17, 7)])
def test_aswudi_is_the_minimum_in_as_many_directions_as_its_rule_says(shape, rule: str) -> None:
    taus = task_vectors(shape, 3)
    e = np.linalg.eigvalsh(reference.curvature(taus))
    e = e[e > 1e-12 * e.max()]
    p = e / e.sum()
    effective = {
        "participation_sqrt": np.sqrt(e).sum() ** 2 / e.sum(),
        "participation": e.sum() ** 2 / (e**2).sum(),
        "entropy": np.exp(-(p * np.log(p)).sum()),
    }[rule]
    expected = reference.minimum_on(taus, taus.sum(0), int(np.ceil(effective)))
    close(run_matrix(Aswudi(rule=rule), taus), expected, 1e-7)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_equal_eigenvalues_count_all_in_every_rule(n: int) -> None:
    for rule in ("participation_sqrt", "participation", "entropy"):
        assert Aswudi(rule=rule).n_directions(np.full(n, 0.1)) == n


@pytest.mark.parametrize("preset", ["full", "lora"])
@pytest.mark.parametrize("shape", SHAPES)
def test_optmerge_is_the_descent_of_each_code(shape, preset: str) -> None:
    taus = task_vectors(shape, 3)
    method = build(OptMerge, {"steps": 60}, preset)
    lr = 1e-5 if preset == "full" else 1e-4
    close(run_matrix(method, taus), reference.optmerge(taus, preset, lr, 60), 1e-8)


def test_momentum_in_closed_form_is_momentum() -> None:
    values = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    x = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimiser = torch.optim.SGD([x], lr=0.05, momentum=0.9)
    for _ in range(40):
        optimiser.zero_grad()
        (values * x * x).sum().backward()
        optimiser.step()
    found = momentum_share(values, lr=0.05, momentum=0.9, steps=40)
    np.testing.assert_allclose(found, 1 - x.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_doge_is_projected_adam_and_a_mask_over_all_matrices(n_experts: int) -> None:
    matrices = [task_vectors((8, 14), n_experts), task_vectors((12, 7), n_experts, seed=1)]
    coefficients = np.linspace(0.5, 1.5, n_experts)
    expected = reference.doge(matrices, coefficients, 0.3, steps=50)
    found = run(Doge(steps=50), {"a": matrices[0], "b": matrices[1]}, coefficients)
    close(found["a"], expected[0], 1e-7)
    close(found["b"], expected[1], 1e-7)


def test_doge_lessens_its_loss_outside_the_shared_subspace() -> None:
    taus = 30 * task_vectors((12, 16), 3)
    method = Doge(steps=400, density=1.0)
    scales = np.array([0.07 / np.linalg.norm(tau) for tau in taus])
    # Nothing masked: the merge is sum l tau + (sum l) delta.
    delta = (run_matrix(method, taus) - np.tensordot(scales, taus, 1)) / scales.sum()
    before, after = (reference.doge_loss(d, taus, scales) for d in (0 * delta, delta))
    assert after < 0.9 * before
    firsts = [np.linalg.svd(tau)[0][:, :4] for tau in taus]
    shared = np.linalg.svd(np.concatenate(firsts, axis=1))[0][:, :2]
    assert np.abs(shared.T @ delta).max() > 0  # Adam rescales entries, so it leaks in ...
    assert np.linalg.norm(shared.T @ delta) < np.linalg.norm(delta)  # ... but not all of it


# Traps of published code


@pytest.mark.parametrize("method", ALL, ids=IDS)
def test_zero_task_vectors_ask_for_nothing(method: MergeMethod) -> None:
    taus = task_vectors((8, 10), 2)
    found = run_matrix(method, np.concatenate([taus, np.zeros((1, 8, 10))]))
    assert np.isfinite(found).all()
    assert not run_matrix(method, 0 * taus).any()


@pytest.mark.parametrize("method", [Swudi(), Aswudi()], ids=["swudi", "aswudi"])
@pytest.mark.parametrize("power", [-60, -20, 20])
def test_closed_forms_have_no_absolute_guard(method: MergeMethod, power: int) -> None:
    # Published code takes the mean where max ||tau||^2 < 1e-12.
    taus = task_vectors((9, 14), 3)
    one, other = run_matrix(method, taus), run_matrix(method, 2.0**power * taus)
    close(other, 2.0**power * one, 1e-12)


def test_wudi_depends_on_the_size_of_task_vectors_unless_its_unit_is_theirs() -> None:
    taus = task_vectors((9, 14), 3)
    small = run_matrix(Wudi(), 2.0**-10 * taus) * 2.0**10
    assert np.linalg.norm(small - run_matrix(Wudi(), taus)) > 0.1 * np.linalg.norm(small)
    free = build(Wudi, {}, "scale-free")
    close(run_matrix(free, 2.0**-10 * taus) * 2.0**10, run_matrix(free, taus), 1e-9)


@pytest.mark.parametrize("method", [Swudi(rank=1.0), Aswudi()], ids=["swudi", "aswudi"])
def test_a_rank_deficient_curvature_is_not_divided_by(method: MergeMethod) -> None:
    # 2 x 3 directions in 50 columns; a floor of 1e-8 under a hard filter divides by it.
    taus = low_rank((20, 50), 2, 3)
    found = run_matrix(method, taus)
    rows = np.linalg.svd(np.concatenate(list(taus), axis=0))[2][:6]
    assert np.linalg.norm(found - found @ rows.T @ rows) <= 1e-9 * np.linalg.norm(found)
    assert np.linalg.norm(found) <= 2 * np.linalg.norm(taus.sum(0))


def test_optmerge_keeps_the_sum_where_there_is_no_direction_for_each_task() -> None:
    taus = task_vectors((2, 20), 8)
    close(run_matrix(OptMerge(), taus), taus.sum(0), 1e-12)


def test_doge_keeps_exactly_the_share_it_names() -> None:
    # Published code compares with the next smaller one and so keeps one entry more.
    taus = task_vectors((10, 10), 2)
    found = run_matrix(Doge(steps=0, density=0.3), taus, np.array([1.0, 0.0]))
    assert np.count_nonzero(found) == 30


@pytest.mark.parametrize(
    ("method", "factor"),
    [(Wudi(), 1 / 3), (build(Wudi, {}, "paper"), 0.0), (Swudi(), 1 / 3), (Doge(), 0.0)],
)
def test_what_is_no_matrix_goes_by_the_policy(method: MergeMethod, factor: float) -> None:
    bias, matrix = task_vectors((9,), 3), task_vectors((4, 5), 3)
    found = run(method, {"a.bias": bias, "a.weight": matrix}, 0.5)
    np.testing.assert_allclose(found["a.bias"], 0.5 * factor * bias.sum(0), rtol=1e-12)


def test_embeddings_can_be_left_out() -> None:
    taus = task_vectors((12, 5), 3)
    found = run(Wudi(embeddings="keep-base"), {"embed_tokens.weight": taus})
    assert not found["embed_tokens.weight"].any()
