"""What every method of METHODS must hold, whatever the task vectors are."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import awd_core as awd
from awd_core.magnitude import kth_largest_magnitudes
from awd_core.method import LinearMethod, MergeMethod
from awd_core.vectors import Piece, TensorVectors, Vectors

# TIES counts into 2^16 bins for each piece, however small: few examples, few pieces.
FEW = settings(max_examples=12)
METHODS = pytest.mark.parametrize("kind", awd.METHODS, ids=[method.key for method in awd.METHODS])

# Multiples of 1/64 below 16: their sums are exact in float64, and they tie often.
exact = st.integers(-1023, 1023).map(lambda n: n / 64)
rough = st.floats(-1e6, 1e6, width=32)
densities = st.floats(0, 1)


@st.composite
def task_vectors(draw: st.DrawFn, numbers: st.SearchStrategy[float]) -> np.ndarray:
    n_experts, n = draw(st.integers(1, 8)), draw(st.integers(1, 24))
    values = draw(st.lists(numbers, min_size=n_experts * n, max_size=n_experts * n))
    return np.array(values).reshape(n_experts, n)


def build(kind: type[MergeMethod], density: float) -> MergeMethod:
    return kind(**{knob.name: density for knob in kind.knobs()})


def run(
    method: MergeMethod, tau: np.ndarray, coefficients: np.ndarray, chunk: int | None = None
) -> np.ndarray:
    """The merged task vector of a column, with its rows given in one piece or in many."""
    n_experts, n = tau.shape
    vectors = torch.from_numpy(tau.copy())[:, :, None]
    base = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]

    def pieces() -> Iterator[Piece]:
        for start in range(0, n, chunk or n):
            stop = start + (chunk or n)
            yield Piece("weight", start, base[start:stop], vectors[:, start:stop])

    tensor = TensorVectors("weight", (n, 1), n_experts, pieces, lambda index: vectors[index])
    survey = method.survey(Vectors(n_experts, n, lambda: iter([tensor])))
    prepared = method.prepare(survey, tensor)
    return torch.cat([method.combine(prepared, p, coefficients)[:, 0] for p in pieces()]).numpy()


def lambdas(method: MergeMethod, n_experts: int) -> np.ndarray:
    return np.linspace(-1, 2, n_experts + 1)[1:]


@METHODS
@FEW
@given(tau=task_vectors(rough), density=densities)
def test_lambda_zero_adds_nothing(kind: type[MergeMethod], tau: np.ndarray, density: float) -> None:
    if kind.takes_coefficients:
        assert not run(build(kind, density), tau, np.zeros(len(tau))).any()


@METHODS
@FEW
@given(tau=task_vectors(rough), density=densities, n=st.integers(2, 9))
def test_experts_that_are_all_the_base_add_nothing(
    kind: type[MergeMethod], tau: np.ndarray, density: float, n: int
) -> None:
    method = build(kind, density)
    assert not run(method, 0 * tau, lambdas(method, len(tau))).any()


@METHODS
@FEW
@given(tau=task_vectors(exact), density=densities, seed=st.integers(0, 99))
def test_the_order_of_experts_does_not_matter(
    kind: type[MergeMethod], tau: np.ndarray, density: float, seed: int
) -> None:
    method, order = build(kind, density), np.random.default_rng(seed).permutation(len(tau))
    coefficients = np.round(lambdas(method, len(tau)) * 64) / 64
    one, other = run(method, tau, coefficients), run(method, tau[order], coefficients[order])
    np.testing.assert_allclose(other, one, rtol=1e-14, atol=1e-14)


@METHODS
@FEW
@given(
    size=st.tuples(st.sampled_from([2, 5, 8, 9]), st.integers(10, 24)),
    seed=st.integers(0, 2**32 - 1),
    density=densities,
    chunk=st.integers(4, 9),
)
def test_chunks_never_change_a_bit(
    kind: type[MergeMethod], size: tuple[int, int], seed: int, density: float, chunk: int
) -> None:
    # Numbers whose every bit is drawn: any other order of summing shows.
    method, tau = build(kind, density), np.random.default_rng(seed).standard_normal(size)
    coefficients = lambdas(method, len(tau))
    whole, cut = run(method, tau, coefficients), run(method, tau, coefficients, chunk)
    assert whole.tobytes() == cut.tobytes()


@METHODS
@FEW
@given(tau=task_vectors(st.floats(-1e30, 1e30)), density=densities)
def test_finite_vectors_give_finite_merges(
    kind: type[MergeMethod], tau: np.ndarray, density: float
) -> None:
    method = build(kind, density)
    assert np.isfinite(run(method, tau, lambdas(method, len(tau)))).all()


@METHODS
@FEW
@given(tau=task_vectors(rough), density=densities, power=st.integers(-20, 20))
def test_scaled_vectors_give_the_scaled_merge(
    kind: type[MergeMethod], tau: np.ndarray, density: float, power: int
) -> None:
    method = build(kind, density)
    tau = np.where(np.abs(tau) < 2.0**-90, 0.0, tau)  # smaller ones underflow in float32
    one = run(method, tau, lambdas(method, len(tau)))
    other = run(method, 2.0**power * tau, lambdas(method, len(tau)))
    assert (2.0**power * one).tobytes() == other.tobytes()


@METHODS
@FEW
@given(tau=task_vectors(rough), density=densities, factor=exact)
def test_one_lambda_for_all_only_scales(
    kind: type[MergeMethod], tau: np.ndarray, density: float, factor: float
) -> None:
    method = build(kind, density)
    if method.takes_coefficients:
        one = run(method, tau, np.ones(len(tau)))
        other = run(method, tau, np.full(len(tau), factor))
        size = np.abs(tau).sum(0) * abs(factor)  # sums may cancel: their rounding is of this size
        assert (np.abs(other - factor * one) <= 1e-14 * size).all()


@METHODS
@FEW
@given(tau=task_vectors(rough), density=densities)
def test_a_linear_method_is_the_sum_of_its_multipliers(
    kind: type[MergeMethod], tau: np.ndarray, density: float
) -> None:
    method = build(kind, density)
    if isinstance(method, LinearMethod):
        coefficients = lambdas(method, len(tau))
        multipliers = method.multipliers(coefficients)
        size = np.abs(multipliers) @ np.abs(tau)
        found = run(method, tau, coefficients)
        assert (np.abs(found - multipliers @ tau) <= 1e-14 * size).all()


@given(
    values=st.lists(st.floats(width=32, allow_nan=False) | exact, min_size=1, max_size=60),
    n_experts=st.integers(1, 3),
    chunk=st.integers(5, 20),
    data=st.data(),
)
@settings(max_examples=40)
def test_kth_largest_magnitude_is_kthvalue_bit_for_bit(
    values: list[float], n_experts: int, chunk: int, data: st.DataObject
) -> None:
    vectors = torch.tensor(values, dtype=torch.float64).repeat(n_experts, 1)
    vectors *= torch.arange(1, n_experts + 1)[:, None]
    assume(torch.isfinite(vectors.float()).all())
    n = vectors.shape[1]
    rank = data.draw(st.integers(1, n))
    found = kth_largest_magnitudes(lambda: vectors.split(chunk, dim=1), rank, n_experts)
    expected = vectors.float().abs().kthvalue(n - rank + 1, dim=1).values.numpy()
    assert found.tobytes() == expected.tobytes()
