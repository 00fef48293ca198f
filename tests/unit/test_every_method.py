"""What holds for every row of METHODS on checkpoints on disk, whatever its executor is."""

from functools import partial
from importlib import import_module
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numba
import pytest
import torch

import awd_core as awd
from awd_core import parallel, planned_vectors, stream, weighted
from awd_core.method import MergeMethod
from tests.helpers import QUERY, Family, State, base_state, bits, expert_states, family, same_bits

Kind = type[MergeMethod]
EVERY = pytest.mark.parametrize("kind", awd.METHODS, ids=lambda kind: kind.key)


def count(kind: Kind, n_experts: int) -> int:
    """So many experts, or as many as the method can merge."""
    return max(kind.least_experts, min(n_experts, kind.most_experts or n_experts))


def fields(kind: Kind) -> dict[str, Any]:
    """The method with its defaults; descents take few steps."""
    has_steps = any(knob.name == "steps" for knob in kind.knobs())
    return {"method": kind.key, "knobs": {"steps": 3} if has_steps else {}}


def require_whole(found: State, base: State) -> None:
    """Every tensor is there, in its shape and type, finite; what is no float is the base's."""
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.isfinite(found[name].double()).all(), name
        assert tensor.is_floating_point() or bits(found[name]) == bits(tensor)


@EVERY
def test_lambda_zero_is_the_base_bit_for_bit(tmp_path: Path, kind: Kind) -> None:
    if not kind.takes_coefficients or kind.coefficients_are != "scales":
        pytest.skip("has no lambda that scales the merge")
    one = family(tmp_path, count(kind, 3))
    assert same_bits(one.state(**fields(kind), coefficient=0.0), one.base_state)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_buffers_stay_and_every_type_is_written(
    tmp_path: Path, kind: Kind, dtype: torch.dtype
) -> None:
    one = family(tmp_path, count(kind, 3), dtype)
    require_whole(one.state(**fields(kind)), one.base_state)


@EVERY
@pytest.mark.parametrize("n_experts", [1, 16])
def test_one_expert_and_more_experts_than_rows_give_a_whole_model(
    tmp_path: Path, kind: Kind, n_experts: int
) -> None:
    one = family(tmp_path, count(kind, n_experts))
    require_whole(one.state(**fields(kind)), one.base_state)


@EVERY
def test_duplicate_experts_give_a_whole_model(tmp_path: Path, kind: Kind) -> None:
    base = base_state()
    one = Family(tmp_path, base, expert_states(base, 1) * count(kind, 3))
    require_whole(one.state(**fields(kind)), base)


@EVERY
def test_experts_that_are_the_base_give_the_base(tmp_path: Path, kind: Kind) -> None:
    base = base_state()
    found = Family(tmp_path, base, [base] * count(kind, 3)).state(**fields(kind))
    for name, tensor in base.items():
        if kind.takes_task_vectors:
            assert bits(found[name]) == bits(tensor), name
        torch.testing.assert_close(found[name], tensor)


@EVERY
def test_a_zero_task_vector_among_others_gives_a_whole_model(tmp_path: Path, kind: Kind) -> None:
    base = base_state()
    experts = [base, *expert_states(base, 2)]
    one = Family(tmp_path, base, experts[: count(kind, 3)])
    require_whole(one.state(**fields(kind)), base)


@EVERY
def test_nan_is_refused(tmp_path: Path, kind: Kind) -> None:
    base = base_state()
    experts = expert_states(base, count(kind, 2))
    experts[1][QUERY] = experts[1][QUERY].clone()
    experts[1][QUERY][1, 2] = torch.nan
    chosen = fields(kind)
    if kind.needs_task:  # that of another expert may do without this one
        chosen["knobs"]["task"] = 1
    with pytest.raises(awd.AwdError, match=rf"NaN or infinite.*{QUERY}.*expert-1"):
        Family(tmp_path, base, experts).state(**chosen)


# Sizes of pieces on one thread and on two; the largest holds every tensor whole. Every other time
# tensors are kept in memory by the thread that makes them.
READERS = ("merge", "planned_vectors", "weighted")
PIECES = ((1 << 12, 1), (1 << 22, 1), *((1 << size, 2) for size in (12, 14, 16, 17, 20, 22)))


@pytest.mark.slow
@EVERY
def test_neither_pieces_nor_threads_change_a_bit(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside a base of 0 every bit of what is added shows.
    shapes = {
        "embeddings.word_embeddings.weight": (1400, 100),
        "layer.0.output.dense.weight": (700, 96),
        "layer.0.LayerNorm.weight": (5000,),
        "conv.weight": (30, 40, 3, 3),
    }
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    one = Family(tmp_path, base, expert_states(base, count(kind, 2)))
    readers = [import_module(f"awd_core.{name}") for name in READERS]
    threads = torch.get_num_threads(), numba.get_num_threads()
    found = []
    try:
        for (size, n_threads), kept in zip(PIECES, cycle((0, stream.KEPT_BYTES)), strict=False):
            with monkeypatch.context() as patch:
                patch.setattr(planned_vectors, "KEPT_BYTES", kept)
                patch.setattr(parallel, "WORKERS", n_threads)
                patch.setattr(weighted, "PIECE_ELEMENTS", size)
                torch.set_num_threads(n_threads)
                numba.set_num_threads(min(n_threads, threads[1]))
                for module, name in product(readers, ("chunks", "row_blocks", "spans")):
                    sized = partial(getattr(stream, name), chunk_elements=size)
                    if hasattr(module, name):
                        patch.setattr(module, name, sized)
                found.append(one.state(**fields(kind)))
    finally:
        torch.set_num_threads(threads[0])
        numba.set_num_threads(threads[1])
    assert any(tensor.any() for tensor in found[0].values())
    for pieces, state in zip(PIECES, found, strict=True):
        assert same_bits(state, found[0]), pieces
