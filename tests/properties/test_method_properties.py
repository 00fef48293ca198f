"""What every method of METHODS must hold, whatever the task vectors and the knobs are."""

from collections.abc import Iterator
from dataclasses import Field, dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

import awd_core as awd
from awd_core.errors import RecipeError
from awd_core.magnitude import kth_largest_magnitudes
from awd_core.method import GramMethod, LinearMethod, MergeMethod, build
from awd_core.order_statistics import kth_largest_values
from awd_core.vectors import Piece, TensorVectors, Vectors

# Some methods count into 2^16 bins for each piece, however small: few examples, few pieces.
FEW = settings(max_examples=6)
METHODS = pytest.mark.parametrize("kind", awd.METHODS, ids=[method.key for method in awd.METHODS])

# Multiples of 1/64 below 16: their sums are exact in float64, and they tie often.
exact = st.integers(-1023, 1023).map(lambda n: n / 64)
rough = st.floats(-1e6, 1e6, width=32)


@dataclass(frozen=True)
class Sample:
    """One tensor of a model: theta_0 and task vectors, (rows, columns) and (K, rows, columns)."""

    name: str
    base: np.ndarray
    tau: np.ndarray

    @property
    def coefficients(self) -> np.ndarray:
        return np.linspace(-1, 2, len(self.tau) + 1)[1:]

    def vectors(self, chunk: int) -> TensorVectors:
        """The tensor, given `chunk` rows at a time."""
        base, tau = torch.from_numpy(self.base), torch.from_numpy(self.tau)

        def pieces() -> Iterator[Piece]:
            for start in range(0, len(base), chunk):
                rows = slice(start, start + chunk)
                yield Piece(self.name, start, base[rows].clone(), tau[:, rows].clone())

        return TensorVectors(
            self.name, self.base.shape, len(self.tau), pieces, lambda index: tau[index], pieces
        )


@st.composite
def samples(
    draw: st.DrawFn, kind: type[MergeMethod], numbers: st.SearchStrategy[float] = rough
) -> Sample:
    n_experts = draw(st.integers(kind.least_experts, min(8, kind.most_experts or 8)))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    n = n_experts * rows * columns
    values = draw(st.lists(numbers, min_size=n, max_size=n))
    base = np.random.default_rng(0).standard_normal((rows, columns))
    name = draw(st.sampled_from(["layer.weight", "embed_tokens.weight"]))
    return Sample(name, base, np.array(values).reshape(n_experts, rows, columns))


@st.composite
def methods(draw: st.DrawFn, kind: type[MergeMethod]) -> MergeMethod:
    try:
        return build(kind, {knob.name: draw(values(knob)) for knob in kind.knobs()})
    except RecipeError:  # knobs that contradict each other
        reject()


def values(knob: Field[Any]) -> st.SearchStrategy[Any]:
    if "choices" in knob.metadata:
        return st.sampled_from(knob.metadata["choices"])
    low, high = knob.metadata["low"], knob.metadata["high"]
    if knob.name == "task":
        return st.just(0)
    if isinstance(knob.default, int):
        return st.integers(low, min(high, 20))
    return st.floats(low, high)


def run(
    method: MergeMethod,
    sample: Sample,
    coefficients: np.ndarray | None = None,
    chunk: int | None = None,
) -> np.ndarray:
    """The merged task vector, with the rows given in one piece or in many."""
    tensor = sample.vectors(chunk or len(sample.base))
    coefficients = lambdas(method, sample) if coefficients is None else coefficients
    survey = method.survey(Vectors(len(sample.tau), sample.base.size, lambda: iter([tensor])))
    prepared = method.prepare(survey, tensor)
    pieces = tensor.sweep() if method.reads_pieces(tensor) else tensor.bases()
    return torch.cat(
        [torch.as_tensor(method.combine(prepared, p, coefficients)) for p in pieces]
    ).numpy()


def lambdas(method: MergeMethod, sample: Sample) -> np.ndarray:
    """Coefficients that mean something to the method: weights are positive."""
    scales = method.coefficients_are == "scales"
    return sample.coefficients if scales else np.linspace(0.5, 2, len(sample.tau))


def scaled(sample: Sample, factor: float) -> Sample:
    return Sample(sample.name, sample.base, sample.tau * factor)


@METHODS
@FEW
@given(data=st.data())
def test_lambda_zero_adds_nothing(kind: type[MergeMethod], data: st.DataObject) -> None:
    if kind.takes_coefficients and kind.coefficients_are == "scales":
        method, sample = data.draw(methods(kind)), data.draw(samples(kind))
        assert not run(method, sample, np.zeros(len(sample.tau))).any()


@METHODS
@FEW
@given(data=st.data())
def test_experts_that_are_all_the_base_add_nothing(
    kind: type[MergeMethod], data: st.DataObject
) -> None:
    method, sample = data.draw(methods(kind)), scaled(data.draw(samples(kind)), 0.0)
    added = run(method, sample)
    # What works on whole weights multiplies theta_0 by shares that sum to 1.
    assert (np.abs(added) <= (0 if kind.takes_task_vectors else 1e-14)).all()


@METHODS
@FEW
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_order_of_experts_does_not_matter_where_declared(
    kind: type[MergeMethod], data: st.DataObject, seed: int
) -> None:
    if not kind.permutation_equivariant:
        return
    method, sample = data.draw(methods(kind)), data.draw(samples(kind, exact))
    rng = np.random.default_rng(seed)
    if kind.executor == "matrix":  # equal singular values leave the choice among them to rounding
        sample = Sample(sample.name, sample.base, rng.standard_normal(sample.tau.shape))
    order = rng.permutation(len(sample.tau))
    if kind.needs_task:
        order = np.array([0, *order[order != 0]])
    coefficients = np.round(lambdas(method, sample) * 64) / 64
    other = Sample(sample.name, sample.base, sample.tau[order])
    one, two = run(method, sample, coefficients), run(method, other, coefficients[order])
    # Where a gradient is rounding, Adam steps by its learning rate all the same.
    steps = getattr(method, "steps", 0) * getattr(method, "lr", 0.0)
    np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-9 + 4 * steps)


@METHODS
@FEW
@given(
    size=st.tuples(st.sampled_from([2, 5, 8, 9]), st.integers(8, 12), st.integers(1, 600)),
    seed=st.integers(0, 2**32 - 1),
    chunk=st.integers(3, 7),
    data=st.data(),
)
def test_chunks_never_change_a_bit(
    kind: type[MergeMethod],
    size: tuple[int, int, int],
    seed: int,
    chunk: int,
    data: st.DataObject,
) -> None:
    # Numbers whose every bit is drawn: any other order of summing shows.
    rng = np.random.default_rng(seed)
    n_experts = min(size[0], kind.most_experts or size[0])
    tau, base = rng.standard_normal((n_experts, *size[1:])), rng.standard_normal(size[1:])
    sample = Sample(data.draw(st.sampled_from(["w.weight", "embed.weight"])), base, tau)
    method = data.draw(methods(kind))
    assert run(method, sample).tobytes() == run(method, sample, chunk=chunk).tobytes()


@METHODS
@FEW
@given(data=st.data())
def test_finite_vectors_give_finite_merges(kind: type[MergeMethod], data: st.DataObject) -> None:
    method, sample = data.draw(methods(kind)), data.draw(samples(kind, st.floats(-1e30, 1e30)))
    assert np.isfinite(run(method, sample)).all()


@METHODS
@FEW
@given(data=st.data())
def test_the_same_expert_many_times_gives_a_finite_merge(
    kind: type[MergeMethod], data: st.DataObject
) -> None:
    method, sample = data.draw(methods(kind)), data.draw(samples(kind))
    same = np.repeat(sample.tau[:1], len(sample.tau), axis=0)
    assert np.isfinite(run(method, Sample(sample.name, sample.base, same))).all()


@METHODS
@FEW
@given(data=st.data(), power=st.integers(-20, 20))
def test_scaled_vectors_give_the_scaled_merge_where_declared(
    kind: type[MergeMethod], data: st.DataObject, power: int
) -> None:
    if not kind.scale_equivariant:
        return
    method, sample = data.draw(methods(kind)), data.draw(samples(kind))
    tau = np.where(np.abs(sample.tau) < 2.0**-90, 0.0, sample.tau)  # underflow in float32
    sample = Sample(sample.name, sample.base, tau)
    one, other = run(method, sample), run(method, scaled(sample, 2.0**power))
    assume(not ((one != 0) & (np.abs(one) < 2.0**-900)).any())  # a knob near the smallest number
    assert (2.0**power * one).tobytes() == other.tobytes()


@METHODS
@FEW
@given(data=st.data(), factor=exact)
def test_one_lambda_for_all_only_scales(
    kind: type[MergeMethod], data: st.DataObject, factor: float
) -> None:
    if not kind.takes_coefficients or kind.coefficients_are != "scales":
        return
    method, sample = data.draw(methods(kind)), data.draw(samples(kind))
    one = run(method, sample, np.ones(len(sample.tau)))
    other = run(method, sample, np.full(len(sample.tau), factor))
    # Sums may cancel: their rounding is of the size of what was summed.
    size = np.abs(sample.tau).sum() * abs(factor) * 1e4
    assert (np.abs(other - factor * one) <= 1e-13 * size).all()


@METHODS
@FEW
@given(data=st.data())
def test_one_factor_on_all_weights_changes_nothing(
    kind: type[MergeMethod], data: st.DataObject
) -> None:
    if kind.coefficients_are != "weights":
        return
    method, sample = data.draw(methods(kind)), data.draw(samples(kind))
    if not getattr(method, "normalize", True):
        return
    weights = lambdas(method, sample)
    one, other = run(method, sample, weights), run(method, sample, 4 * weights)
    np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12 * np.abs(sample.tau).sum())


@METHODS
@FEW
@given(data=st.data())
def test_a_linear_method_is_the_sum_of_its_multipliers(
    kind: type[MergeMethod], data: st.DataObject
) -> None:
    if not issubclass(kind, LinearMethod | GramMethod):
        return
    method, sample = data.draw(methods(kind)), data.draw(samples(kind))
    coefficients = lambdas(method, sample)
    if isinstance(method, LinearMethod):
        multipliers = np.concatenate([[0.0], method.multipliers(coefficients)])
    else:
        assert isinstance(method, GramMethod)
        multipliers = method.multipliers(sample.vectors(len(sample.base)).gram, coefficients)
    every = np.concatenate([sample.base[None], sample.tau])
    size = np.tensordot(np.abs(multipliers), np.abs(every), 1)
    found = run(method, sample, coefficients)
    assert (np.abs(found - np.tensordot(multipliers, every, 1)) <= 1e-14 * size).all()
    assert not kind.takes_task_vectors or multipliers[0] == 0


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


@given(
    values=st.lists(st.floats(width=32, allow_nan=False) | exact, min_size=1, max_size=60),
    n_zeros=st.integers(0, 9),
    chunk=st.integers(5, 20),
    data=st.data(),
)
@settings(max_examples=40)
def test_kth_largest_value_is_the_sorted_one(
    values: list[float], n_zeros: int, chunk: int, data: st.DataObject
) -> None:
    vectors = torch.tensor([values, [-value for value in values]], dtype=torch.float64)
    assume(torch.isfinite(vectors.float()).all())
    every = np.sort(np.concatenate([vectors.numpy(), np.zeros((2, n_zeros))], axis=1), axis=1)
    ranks = [data.draw(st.integers(1, every.shape[1])) for _ in range(2)]
    found = kth_largest_values(lambda: vectors.split(chunk, dim=1), ranks, n_zeros)
    expected = [row[len(row) - rank] for row, rank in zip(every, ranks, strict=True)]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))
