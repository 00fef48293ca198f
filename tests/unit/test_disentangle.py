"""What AWD must do whatever the experts are: scale laws, closed forms, edge cases, identities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core.disentangle import Moments
from tests.helpers import (
    QUERY,
    Family,
    base_state,
    expert_states,
    family,
    redundant_vectors,
    vector_study,
)
from tests.reference import merging

GRANULARITIES = ("model", "block", "tensor", "row")


def random_vectors(n_experts: int = 4, n: int = 50, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n) * 0.6 + rng.normal(size=(n_experts, n))


def norm_of_redundant(task_vectors: np.ndarray, solved: awd.Disentangled) -> float:
    return float(np.linalg.norm(solved.span_coefficients[0] @ task_vectors))


@pytest.mark.parametrize("s", [1e-3, 3.0, 250.0])
def test_scaled_vectors_with_scaled_settings_have_the_same_coefficients(
    tmp_path: Path, s: float
) -> None:
    tau = random_vectors()
    one = awd.disentangle(vector_study(tmp_path / "one", tau), alpha=0.02, lr=0.5, steps=50)
    other = awd.disentangle(
        vector_study(tmp_path / "other", s * tau), alpha=0.02 / s, lr=0.5 * s**2, steps=50
    )
    assert np.abs(one.span_coefficients).min() > 1e-3
    np.testing.assert_allclose(other.span_coefficients, one.span_coefficients, rtol=1e-10)


def test_relative_units_do_not_depend_on_the_scale(tmp_path: Path) -> None:
    tau = random_vectors()
    settings: dict[str, Any] = {"alpha_relative": 0.2, "lr_relative": 0.02, "steps": 100}
    one = awd.disentangle(vector_study(tmp_path / "one", tau), **settings)
    other = awd.disentangle(vector_study(tmp_path / "other", 1e-4 * tau), **settings)
    np.testing.assert_allclose(other.span_coefficients, one.span_coefficients, rtol=1e-10)


def equicorrelated(n_experts: int, r: float, length: float) -> np.ndarray:
    """K vectors of one length whose cosines are all r."""
    axes = np.eye(n_experts + 1)
    return length * (np.sqrt(r) * axes[0] + np.sqrt(1 - r) * axes[1:])


@pytest.mark.parametrize(("n_experts", "r"), [(2, 0.5), (3, 0.3), (4, 0.3), (8, 0.1)])
def test_equal_norms_and_cosines_have_the_closed_form(
    tmp_path: Path, n_experts: int, r: float
) -> None:
    tau = equicorrelated(n_experts, r, length=2.5)
    solved = awd.disentangle(vector_study(tmp_path, tau), alpha=0.0, lr_relative=1e-4, steps=20_000)
    t = 1 - np.sqrt((1 - r) / (1 + (n_experts - 1) * r))
    # A fixed step walks back and forth over the minimum: within one step of it, about 1e-4 s.
    np.testing.assert_allclose(solved.span_coefficients[0], t / n_experts, atol=3e-4)
    assert solved.mean_absolute_cosine[0] == pytest.approx(r)
    assert solved.mean_absolute_cosine[1] < 1e-3
    np.testing.assert_allclose(solved.weight_shares[0], 1 - t, atol=3e-3)


@pytest.mark.parametrize(("n_experts", "r", "length"), [(8, 0.1, 2.5), (8, 0.1, 30.0), (4, 0.3, 1)])
def test_critical_alpha_of_equal_experts_has_the_closed_form(
    tmp_path: Path, n_experts: int, r: float, length: float
) -> None:
    study = vector_study(tmp_path, equicorrelated(n_experts, r, length))
    expected = 2 * (1 - r) / length * np.sqrt((1 + (n_experts - 1) * r) / n_experts)
    assert awd.no_redundancy(study).critical_alpha == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize("fraction", [1.0, 1.5, 20.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 300])
def test_above_critical_alpha_delta_only_flickers(
    tmp_path: Path, fraction: float, steps: int
) -> None:
    tau = random_vectors()
    solved = awd.disentangle(vector_study(tmp_path, tau), alpha_relative=fraction, steps=steps)
    bound = 2 * solved.alpha[0] * solved.lr[0]
    assert norm_of_redundant(tau, solved) <= bound
    assert "alpha is at or above alpha_crit" in solved.outcome


def test_below_critical_alpha_delta_leaves_zero(tmp_path: Path) -> None:
    tau = random_vectors()
    solved = awd.disentangle(vector_study(tmp_path, tau), alpha_relative=0.9, lr_relative=1e-3)
    assert norm_of_redundant(tau, solved) > 10 * solved.alpha[0] * solved.lr[0]
    assert solved.losses[-1] < solved.losses[0]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_order_of_experts_only_orders_the_coefficients(tmp_path: Path, granularity: Any) -> None:
    order = [3, 0, 4, 1, 2]
    base = base_state()
    experts = expert_states(base, 5)
    plain = Family(tmp_path / "plain", base, experts)
    turned = Family(tmp_path / "turned", base, [experts[k] for k in order])
    one = awd.disentangle(plain.study(out=tmp_path / "one"), granularity, steps=40)
    other = awd.disentangle(turned.study(out=tmp_path / "other"), granularity, steps=40)
    assert np.abs(one.span_coefficients).max() > 1e-2
    np.testing.assert_allclose(
        other.span_coefficients, one.span_coefficients[:, order], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_orthogonal_vectors_need_no_redundant_vector(tmp_path: Path, granularity: Any) -> None:
    base = {"a.weight": torch.zeros(6, 8), "a.bias": torch.zeros(6)}
    experts = []
    for k in range(3):  # each expert has columns and biases of its own, in every row
        expert = {name: tensor.clone() for name, tensor in base.items()}
        expert["a.weight"][:, 2 * k : 2 * k + 2] = 1.0 + k
        expert["a.bias"][2 * k : 2 * k + 2] = 1.0
        experts.append(expert)
    study = Family(tmp_path, base, experts).study(out=tmp_path / "study")
    solved = awd.disentangle(study, granularity, alpha=0.0, steps=50)
    assert not solved.span_coefficients.any()
    assert solved.mean_absolute_cosine == (0.0, 0.0)


def test_one_expert_has_nothing_to_be_separated_from(tmp_path: Path) -> None:
    solved = awd.disentangle(vector_study(tmp_path, random_vectors(1)))
    assert not solved.span_coefficients.any()
    assert "One expert" in solved.outcome


@pytest.mark.parametrize("n_others", [0, 2])
def test_duplicate_experts_stay_finite_and_alike(tmp_path: Path, n_others: int) -> None:
    tau = random_vectors(1 + n_others)
    study = vector_study(tmp_path, np.concatenate([tau[:1], tau]))
    solved = awd.disentangle(study, lr_relative=0.01)
    assert np.isfinite(solved.span_coefficients).all()
    assert np.isfinite(solved.losses).all()
    assert solved.span_coefficients[0, 0] == pytest.approx(solved.span_coefficients[0, 1])
    assert solved.cosine_after[0, 1] == pytest.approx(1.0)


def test_a_zero_task_vector_takes_no_part(tmp_path: Path) -> None:
    tau = random_vectors(3)
    with_zero = np.insert(tau, 1, 0.0, axis=0)
    settings: dict[str, Any] = {"alpha": 0.02, "lr": 0.5, "steps": 50}
    three = awd.disentangle(vector_study(tmp_path / "three", tau), **settings)
    four = awd.disentangle(vector_study(tmp_path / "four", with_zero), **settings)
    c = four.span_coefficients[0]
    assert c[1] == 0
    np.testing.assert_allclose(np.delete(c, 1), three.span_coefficients[0], rtol=1e-10)
    np.testing.assert_allclose(four.losses, three.losses, rtol=1e-10)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_single_numbers_have_no_direction(tmp_path: Path, granularity: Any) -> None:
    # cos of two numbers is +-1 wherever delta is: the gradient is 0 but for rounding.
    one = family(tmp_path, 4)
    study = one.study(out=tmp_path / "study")
    solved = awd.disentangle(study, granularity)
    by_tensor = dict(zip(study.index, solved.by_tensor.squares, strict=True))
    assert by_tensor["logit_scale"] < 1e-24
    assert granularity == "tensor" or by_tensor["column.weight"] < 1e-24
    assert by_tensor[QUERY] > 1e-6


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_moments_equal_sums_over_explicit_vectors(tmp_path: Path, granularity: Any) -> None:
    one = family(tmp_path, 4)
    study = one.study(out=tmp_path / "study")
    solved = awd.disentangle(study, granularity)
    delta = redundant_vectors(one, study, solved)
    assert np.linalg.norm(delta) > 1e-2
    tau_of = one.task_vectors()
    tau = np.concatenate([tau_of[t.name].reshape(4, -1) for t in study.tensors], axis=1)
    coefficients = np.array([0.3, -0.2, 0.5, 1.0])

    def agrees(moments: Moments, columns: slice) -> None:
        vectors, redundant = tau[:, columns], delta[columns]
        v = vectors - redundant
        merged = coefficients @ v
        close: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-13}
        np.testing.assert_allclose(moments.grams, merging.gram(vectors), **close)
        np.testing.assert_allclose(moments.products, vectors @ redundant, **close)
        np.testing.assert_allclose(moments.squares, redundant @ redundant, **close)
        np.testing.assert_allclose(moments.disentangled, merging.gram(v), **close)
        np.testing.assert_allclose(moments.merged_square(coefficients), merged @ merged, **close)
        np.testing.assert_allclose(moments.merged_products(coefficients), vectors @ merged, **close)

    agrees(solved.model, slice(None))
    ends = np.cumsum([0, *(tensor.n_elements for tensor in study.tensors)])
    for position in range(len(study.tensors)):
        of_all = solved.by_tensor
        of_one = Moments(
            of_all.grams[position], of_all.products[position], of_all.squares[position]
        )
        agrees(of_one, slice(ends[position], ends[position + 1]))
    v = tau - delta
    np.testing.assert_allclose(solved.cosine_before, merging.cosines(tau), rtol=1e-10)
    np.testing.assert_allclose(solved.cosine_after, merging.cosines(v), rtol=1e-10)
    assert solved.redundant_norm == pytest.approx(np.linalg.norm(delta), rel=1e-10)


def test_no_redundancy_leaves_every_vector_as_it_is(tmp_path: Path) -> None:
    study = family(tmp_path, 3).study(out=tmp_path / "study")
    solved = awd.no_redundancy(study)
    np.testing.assert_array_equal(solved.by_tensor.disentangled, study.grams)
    assert solved.redundant_norm == 0


def test_awd_with_task_arithmetic_is_a_weighted_task_arithmetic(tmp_path: Path) -> None:
    base = base_state(dtype=torch.float64)
    one = Family(tmp_path, base, expert_states(base, 4))
    coefficients: list[float] = [0.3, -0.1, 0.4, 0.8]
    settings: dict[str, Any] = {"granularity": "model", "steps": 100}
    solved = awd.disentangle(one.study(out=tmp_path / "study"), **settings)
    weights = np.array(coefficients) - sum(coefficients) * solved.span_coefficients[0]
    assert np.abs(weights - coefficients).max() > 1e-2
    by_subtraction = one.state(coefficients=coefficients, disentangle=settings)
    by_weights = one.state(coefficients=list(weights))
    for name, tensor in by_subtraction.items():
        torch.testing.assert_close(tensor, by_weights[name], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(solved.weights(np.array(coefficients))[0], weights, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "layer"}, r"'granularity' cannot be used.*'model', 'block', 'tensor'"),
        ({"alfa": 0.1}, r"Unknown field 'alfa'.*Did you mean 'alpha'"),
        ({"alpha": -0.1}, r"'alpha' cannot be used.*greater than or equal to 0"),
        ({"alpha": float("nan")}, r"'alpha' cannot be used"),
        ({"lr": 0.0}, r"'lr' cannot be used.*greater than 0"),
        ({"steps": -1}, r"'steps' cannot be used.*greater than or equal to 0"),
        ({"momentum": 1.0}, r"'momentum' cannot be used.*less than 1"),
        ({"penalty": "l3"}, r"'penalty' cannot be used.*'l2', 'l2_squared'"),
        ({"alpha": 0.1, "alpha_relative": 0.1}, r"either alpha .* or alpha_relative, not both"),
        ({"lr": 0.1, "lr_relative": 0.1}, r"either lr .* or lr_relative, not both"),
    ],
)
def test_settings_without_meaning_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    study = vector_study(tmp_path, random_vectors(2))
    with pytest.raises(awd.AwdError, match=message):
        awd.disentangle(study, **settings)


def test_rows_must_have_been_collected(tmp_path: Path) -> None:
    study = family(tmp_path, 2).study(out=tmp_path / "study", rows=False)
    assert not study.has_rows
    with pytest.raises(awd.AwdError, match=r"holds no row Grams.*Collect it again with rows"):
        awd.disentangle(study, "row")
