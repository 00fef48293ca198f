"""Merges that are weighted sums of task vectors, at about the speed of reading.

Task arithmetic, averaging, and AWD in front of them at granularity model, block, tensor or row:
with `v_k = d_k tau_k - sum_j c_j d_j tau_j`,

    sum_k l_k v_k = sum_k w_k tau_k,    w_k = d_k (l_k - c_k sum_j l_j),

so one kernel reads what is stored, sums in float64 and rounds once. A span of a tensor is a task of
its own: a pure function of the files, for any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from awd_core import dtypes, kernels
from awd_core.checkpoints import StoredTensor
from awd_core.checkpoints.lora import product_rows
from awd_core.dtypes import Dtype
from awd_core.final_type import added_to_base, as_bytes, copied, numbers, refuse_not_finite
from awd_core.lanes import whole_groups
from awd_core.lazy import torch
from awd_core.method import LinearMethod
from awd_core.parallel import in_order
from awd_core.plan import Plan
from awd_core.stream import CHUNK_ELEMENTS, CODES, Reader, Span, spans

# What is summed at once leaves the caches between reading and summing, which costs less than half
# as many elements in twice as many tasks: 8.2 ns an element at K = 8 instead of 8.7.
PIECE_ELEMENTS = 2 * CHUNK_ELEMENTS

# Tensors of the result, each as the bytes of its pieces in order.
Tensors = Iterator[tuple[StoredTensor, Iterator[np.ndarray]]]


def is_weighted_sum(plan: Plan) -> bool:
    """Whether a plan is carried out here: on the CPU, with weights for whole tensors or rows."""
    settings = plan.recipe.disentangle
    by_rows = settings is None or settings.granularity in ("model", "block", "tensor", "row")
    return (
        isinstance(plan.method, LinearMethod)
        and plan.sole_expert is None
        and plan.dense is None
        and plan.recipe.lines is None
        and by_rows
        and plan.device == "cpu"
    )


def weights(plan: Plan, tensor: StoredTensor) -> np.ndarray:
    """w_k of one tensor, (K, 1), or (K, rows) where every row has its own."""
    assert isinstance(plan.method, LinearMethod)
    multipliers = plan.method.multipliers(plan.coefficients_of(tensor))[:, None]
    if plan.redundant is not None:
        multipliers = multipliers - multipliers.sum() * plan.redundant[tensor.name].T
    return multipliers if plan.scales is None else multipliers * plan.scales[:, None]


def weighted_tensors(plan: Plan, tensors: Sequence[StoredTensor]) -> Tensors:
    """Tensors of the result, each as flat pieces in order; those that nobody changes are copied."""
    parts = {tensor.name: _spans(plan, tensor) for tensor in tensors}

    def tasks() -> Iterator[tuple[Callable[[Span], np.ndarray], Span]]:
        for tensor in tensors:
            piece = _piece_of(plan, tensor, tensor.name in plan.merged_names)
            for span in parts[tensor.name]:
                yield piece, span

    pieces = in_order(lambda task: task[0](task[1]), tasks())
    for tensor in tensors:
        yield tensor, islice(pieces, len(parts[tensor.name]))


def _spans(plan: Plan, tensor: StoredTensor) -> list[Span]:
    # Products of factors are taken row by row, so an adapter's rows are not divided.
    stored = all(expert.kind == "weights" for expert in plan.experts)
    return list(spans(tensor, chunk_elements=PIECE_ELEMENTS, whole_rows=not stored))


def _piece_of(plan: Plan, tensor: StoredTensor, is_merged: bool) -> Callable[[Span], np.ndarray]:
    """What makes any span of one tensor of the result."""
    dtype = plan.out_dtype(tensor)
    if not is_merged:
        return lambda span: copied(plan, tensor, span)
    product = _weighted_product(plan, tensor)
    if product is not None:
        return _piece_of_product(plan, tensor, *product)
    read = Reader(tensor, plan.experts, plan.device)
    by_expert = np.ascontiguousarray(weights(plan, tensor))
    # What the kernel does not write (float8) is rounded from float32.
    written = dtype if dtype in CODES else dtypes.FLOAT32
    columns = tensor.matrix_shape[1]

    def piece(span: Span) -> np.ndarray:
        chunk = read(span, scratch=True)

        def summed(kind: Dtype) -> tuple[np.ndarray, bool]:
            out = np.empty(whole_groups(span.n_elements) * kind.itemsize, dtype=np.uint8)
            where = by_expert, span.first, columns, span.n_elements
            finite = kernels.weighted_sum(
                *chunk.packed.for_kernels, *where, dtype.largest, CODES[kind], out
            )
            return out[: span.n_elements * kind.itemsize], finite

        final, finite = summed(written)
        if written != dtype:
            final = as_bytes(numbers(final, written).to(dtype.torch))
        if not finite:
            chunk.require_finite()
            exact = numbers(summed(dtypes.FLOAT64)[0], dtypes.FLOAT64)
            refuse_not_finite(plan, tensor, exact, numbers(final, dtype))
        return final

    return piece


def _weighted_product(plan: Plan, tensor: StoredTensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`sum_k w_k L_k R_k` as one product, (rows, r) and (r, columns), of experts of low rank.

    Their task vectors are then never expanded one by one. None where an expert is something else,
    or not finite, which is refused by name where task vectors are read.
    """
    if any(expert.kind == "weights" for expert in plan.experts):
        return None
    found = [
        (own, expert.tensor(tensor).low_rank())
        for own, expert in zip(torch.from_numpy(weights(plan, tensor)), plan.experts, strict=True)
        if expert.touches(tensor.name)
    ]
    factors = [(own[:, None], one) for own, one in found if one is not None]
    if len(factors) < len(found):
        return None
    left = torch.cat([one.left * own for own, one in factors], dim=1)
    right = torch.cat([one.right for _, one in factors])
    return (left, right) if torch.isfinite(left.sum() + right.sum()) else None


def _piece_of_product(
    plan: Plan, tensor: StoredTensor, left: torch.Tensor, right: torch.Tensor
) -> Callable[[Span], np.ndarray]:
    read = Reader(tensor, [], plan.device)

    def piece(span: Span) -> np.ndarray:
        start = span.first // max(1, span.columns)
        update = product_rows(left, right, start, start + span.rows)
        return added_to_base(plan, tensor, read(span, scratch=True).packed, update)

    return piece
