"""Compiled elementwise methods against the same operations on whole tensors in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core import merge_kernels, parallel, planned_vectors
from awd_core.errors import AwdError
from awd_core.magnitude import exact_floors
from awd_core.stream import CODES
from tests.helpers import Family, State, expert_states, family, same_bits

METHODS: list[dict[str, Any]] = [
    {"method": "ties"},
    {"method": "ties", "preset": "fusionbench"},
    {"method": "ties", "knobs": {"density": 0.0}},
    {"method": "ties", "knobs": {"density": 1.0}, "coefficients": [0.3, -0.7, 1.1]},
    {"method": "ties_mergekit"},
    {"method": "ties_mergekit", "coefficients": [0.3, -0.7, 1.1], "knobs": {"density": 0.2}},
    {"method": "ties_mergekit", "knobs": {"normalize": False, "scale": 0.4}},
    {"method": "dare", "knobs": {"drop": 0.9}, "coefficients": [0.3, -0.7, 1.1]},
    {"method": "breadcrumbs_tensor"},
    {"method": "breadcrumbs_tensor", "knobs": {"density": 0.5, "outliers": 0.2}},
    {"method": "della"},
    {"method": "della", "coefficients": [0.3, -0.7, 1.1], "knobs": {"elect": False}},
    {"method": "dare_ties", "knobs": {"drop": 0.3}},
    {"method": "dare_ties", "preset": "mergekit", "coefficients": [0.3, -0.7, 1.1]},
    {"method": "dare_ties", "knobs": {"merge": "max"}},
    {"method": "pcb"},
    {"method": "sce", "knobs": {"select": 0.3}},
    {"method": "sce", "preset": "paper", "coefficients": [0.3, -0.7, 1.1]},
    {"method": "task_arithmetic", "lines": {"slope": 2.0}},
    {"method": "model_stock"},
    {"method": "multi_slerp", "coefficients": [0.3, 0.7, 1.1]},
    {"method": "delta_weighted"},
]
AWD: list[dict[str, Any]] = [
    {},
    {"disentangle": {"granularity": "row", "steps": 30}},
    {"disentangle": {"granularity": "tensor", "steps": 30}, "equalise_norms": True},
]


def as_tensors(one: Family, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> State:
    with monkeypatch.context() as patch:
        patch.setattr(planned_vectors._PlannedPiece, "stored", None)
        return one.state(**fields)


@pytest.mark.parametrize("front", AWD, ids=str)
@pytest.mark.parametrize("fields", METHODS, ids=str)
def test_compiled_code_gives_the_bits_of_tensors(
    tmp_path: Path, fields: dict[str, Any], front: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if front and not awd.find_method(fields["method"]).takes_task_vectors:
        pytest.skip("a method on whole weights")
    one = family(tmp_path, 3)
    found = one.state(**fields, **front)
    assert same_bits(found, as_tensors(one, monkeypatch, **fields, **front))
    base = one.state(coefficient=0.0)
    if fields.get("knobs") != {"density": 0.0}:
        assert not same_bits(found, base)


@pytest.mark.parametrize("dtype", [one.torch for one in CODES], ids=str)
@pytest.mark.parametrize("method", ["ties", "ties_mergekit", "dare"])
def test_every_stored_type_gives_the_bits_of_tensors(
    tmp_path: Path, method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"a.weight": torch.randn(40, 700).to(dtype), "b": torch.randn(1234).to(dtype)}
    one = Family(tmp_path, base, expert_states(base, 3))
    assert same_bits(one.state(method=method), as_tensors(one, monkeypatch, method=method))


def test_inner_products_are_those_of_float64(tmp_path: Path) -> None:
    base = {"a.weight": torch.randn(9, 1300), "b.weight": torch.randn(70, 3), "c": torch.randn(11)}
    one = Family(tmp_path, base, expert_states(base, 3))
    plan = awd.plan_merge(one.recipe(), device="cpu")
    for vectors in planned_vectors.model_vectors(plan).tensors():
        flat = [vectors.matrix(k).flatten().numpy() for k in range(3)]
        together = np.stack([base[vectors.name].flatten().double().numpy(), *flat])
        np.testing.assert_allclose(vectors.gram, together @ together.T, rtol=1e-13, atol=1e-14)


def test_what_lies_behind_the_last_row_counts_nowhere(tmp_path: Path) -> None:
    base = {"a.weight": torch.randn(10, 3)}
    one = Family(tmp_path, base, expert_states(base, 2))
    (tensor,) = planned_vectors.model_vectors(awd.plan_merge(one.recipe(), device="cpu")).tensors()
    (piece,) = tensor.sweep()
    assert piece.stored is not None
    around, squares = np.full(64, np.nan), np.empty((2, 10))
    around[:30] = 1.0
    assert merge_kernels.chosen_squares(piece.stored.for_kernels, 30, around[:30], squares)
    expected = piece.task_vectors.square().sum(2).numpy()
    np.testing.assert_allclose(squares, expected, rtol=1e-14)


@pytest.mark.parametrize("method", ["dare", "della"])
def test_norms_of_what_is_kept_are_those_of_tensors(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = family(tmp_path, 3, torch.float64)
    fields = {"method": method, "preset": "mergekit"}
    found, expected = one.state(**fields), as_tensors(one, monkeypatch, **fields)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [one.torch for one in CODES], ids=str)
@pytest.mark.parametrize("preset", ["mergekit", "fusionbench"])
@pytest.mark.parametrize("columns", [704, 700])
def test_what_is_dropped_is_that_of_tensors(
    tmp_path: Path, preset: str, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of whole groups of lanes remember what was dropped from one sweep to the next.
    base = {"a.weight": torch.randn(40, columns).to(dtype), "b": torch.randn(1234).to(dtype)}
    one = Family(tmp_path, base, expert_states(base, 9))
    fields = {"method": "dare", "preset": preset, "dtype": "float32"}
    found, expected = one.state(**fields), as_tensors(one, monkeypatch, **fields)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=1e-12)
    assert not same_bits(found, one.state(**{**fields, "coefficient": 0.0}))


@pytest.mark.parametrize(
    "method", ["ties", "ties_mergekit", "dare", "dare_ties", "della", "sce", "breadcrumbs_tensor"]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(tmp_path: Path, method: str, bad: float) -> None:
    base = {"a.weight": torch.randn(40, 700)}
    experts = expert_states(base, 3)
    experts[1]["a.weight"][3, 699] = bad
    with pytest.raises(AwdError, match=r"(?s)a\.weight.*expert-1|expert-1.*a\.weight"):
        Family(tmp_path, base, experts).state(method=method)


@pytest.mark.parametrize("method", ["ties", "ties_mergekit", "dare"])
def test_the_number_of_threads_changes_no_bit(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"a.weight": torch.randn(900, 700), "b": torch.randn(300_000)}
    one = Family(tmp_path, base, expert_states(base, 3))
    expected = one.state(method=method)
    for workers in (1, 2, 5):
        monkeypatch.setattr(parallel, "WORKERS", workers)
        assert same_bits(one.state(method=method), expected)


def test_a_float64_floor_keeps_exactly_what_rounds_to_the_float32_one() -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(1, 0x7F7FFFFF, 2000).astype(np.int32)
    floors = np.concatenate(
        [patterns.view(np.float32), np.array([1e-45, 3.4028235e38], np.float32)]
    )
    exact = exact_floors(floors)
    assert (exact.astype(np.float32) >= floors).all()
    assert (np.nextafter(exact, 0).astype(np.float32) < floors).all()
    assert exact_floors(np.array([0, np.inf], np.float32)).tolist() == [0, np.inf]


@pytest.mark.parametrize("kept", [False, True])
def test_a_piece_is_read_again_where_its_memory_was_used_for_another(
    tmp_path: Path, kept: bool
) -> None:
    base = {"a.weight": torch.randn(900, 700), "b.weight": torch.randn(40, 700)}
    one = Family(tmp_path, base, expert_states(base, 3))
    plan = awd.plan_merge(one.recipe(), device="cpu")
    tensors = [planned_vectors.tensor_vectors(plan, tensor, kept) for tensor in plan.tensors]
    pieces = [piece for tensor in tensors for piece in tensor.sweep()]
    for piece in pieces:
        assert piece.stored is not None
    for piece in reversed(pieces):
        rows = slice(piece.start, piece.stop)
        own = [state[piece.name][rows].double() for state in one.expert_states]
        expected = torch.stack(own) - base[piece.name][rows].double()
        assert torch.equal(piece.task_vectors, expected)
