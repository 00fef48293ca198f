"""The task vectors of a plan: scaled and disentangled as its recipe says, read when they are used.

What a method sees of the weights (`awd_core.vectors`) is made here from the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property

import numpy as np

from awd_core.allocation import map_large_blocks
from awd_core.checkpoints import StoredTensor
from awd_core.lazy import torch
from awd_core.linear_algebra import LowRank
from awd_core.method import sum_over_experts
from awd_core.plan import Plan
from awd_core.spectral import spectral_redundant
from awd_core.stream import KEPT_BYTES, Chunk, KeptReader, Reader, Span, chunks, is_current, spans
from awd_core.vectors import Piece, StoredVectors, TensorVectors, Vectors


def model_vectors(plan: Plan) -> Vectors:
    """Those of every tensor that is merged."""

    def tensors() -> Iterator[TensorVectors]:
        for tensor in plan.merged:
            if tensor.n_elements:
                yield tensor_vectors(plan, tensor)

    return Vectors(len(plan.experts), plan.n_elements, tensors)


def is_kept(plan: Plan, tensor: StoredTensor) -> bool:
    """Whether one thread merges a tensor alone, with base and experts in its memory."""
    in_pieces = plan.device == "cpu" and plan.method.executor != "matrix"
    merges = in_pieces and tensor.name in plan.merged_names
    return merges and Reader(tensor, plan.experts, plan.device).n_bytes <= KEPT_BYTES


def tensor_vectors(plan: Plan, tensor: StoredTensor, kept: bool = False) -> TensorVectors:
    """Those of one tensor; `kept` where one thread sweeps it, whole in memory."""
    seed, n_experts = plan.recipe.seed, len(plan.experts)
    # Where no chunk has enough to know its part of delta; a descent on the matrix for `spectral`.
    whole_delta = cache(lambda: _whole_redundant(plan, tensor))
    delta_of_all = cache(lambda: _tensor_redundant(plan, tensor, whole_delta()))

    @cache
    def read() -> Reader | KeptReader:
        reader = Reader(tensor, plan.experts, plan.device)
        return KeptReader(reader) if kept else reader

    def sweep() -> Iterator[Piece]:
        delta, c = whole_delta(), _for_kernels(plan, tensor)
        for span in spans(tensor, whole_rows=True):
            yield _PlannedPiece(plan, read(), span, delta, c)

    def bases() -> Iterator[Piece]:
        # As chunks of no expert: what is not finite is refused.
        for chunk in chunks(tensor, [], plan.device):
            nothing = chunk.base.new_empty((n_experts, 0, 0))
            yield Piece(tensor.name, chunk.start, chunk.base, nothing, seed)

    def matrix(index: int) -> torch.Tensor:
        vector = _whole(plan, tensor, index)
        if plan.scales is not None:
            vector *= float(plan.scales[index])
        delta = delta_of_all()
        return vector if delta is None else vector.sub_(delta)

    def low_rank(index: int) -> LowRank | None:
        return _low_rank(plan, tensor, index)

    return TensorVectors(tensor.name, tensor.shape, n_experts, sweep, matrix, bases, seed, low_rank)


class _PlannedPiece(Piece):
    """Rows of one tensor, read by whoever uses them first.

    Args:
        plan: The merge.
        read: Reads the tensor.
        span: Which rows.
        delta: The redundant vector of the whole tensor, where it is no combination of rows.
        c: What it is else, as `StoredVectors.redundant` has it.
    """

    def __init__(
        self,
        plan: Plan,
        read: Reader | KeptReader,
        span: Span,
        delta: torch.Tensor | None,
        c: np.ndarray,
    ) -> None:
        self._plan, self._read, self._span, self._delta, self._c = plan, read, span, delta, c
        self.name, self.seed = read.tensor.name, plan.recipe.seed
        self.start = span.first // max(1, span.columns)
        self._last: Chunk | None = None

    @property
    def _chunk(self) -> Chunk:
        """What is stored there; read again where this thread has read another piece meanwhile."""
        if self._last is None or not is_current(self._last.packed):
            self._last = replace(self._read(self._span, scratch=True), scales=self._plan.scales)
        return self._last

    @cached_property
    def base(self) -> torch.Tensor:
        """theta_0."""
        return self._chunk.packed.base().view(self._span.rows, self._span.columns)

    @cached_property
    def task_vectors(self) -> torch.Tensor:
        """v_k = tau_k - delta; tau_k itself without AWD.

        Raises:
            AwdError: A weight is not finite.
        """
        map_large_blocks()
        chunk = self._chunk
        chunk.require_finite()
        if self._delta is not None:
            return chunk.task_vectors - self._delta[self.start : self.stop]
        if self._plan.redundant is not None:
            return chunk.task_vectors - redundant(self._plan, chunk)
        return chunk.task_vectors

    @property
    def stored(self) -> StoredVectors | None:
        """The same for compiled code: on the CPU, where delta is a combination of rows.

        Good until this thread reads another piece.
        """
        if self._delta is not None or self._plan.device != "cpu":
            return None
        chunk, n_experts, columns = self._chunk, len(self._plan.experts), self._span.columns
        return StoredVectors(
            packed=chunk.packed,
            scales=np.ones(n_experts) if self._plan.scales is None else self._plan.scales,
            redundant=self._c,
            first=self._span.first,
            columns=columns,
            require_finite=chunk.require_finite,
        )


def _for_kernels(plan: Plan, tensor: StoredTensor) -> np.ndarray:
    """c of one tensor with experts first, (K, 1) or (K, rows); (K, 0) without any."""
    if plan.redundant is None:
        return np.empty((len(plan.experts), 0))
    return np.ascontiguousarray(plan.redundant[tensor.name].T)


def redundant(plan: Plan, chunk: Chunk) -> torch.Tensor:
    """delta = sum_j c_j tau_j on one chunk, (rows, columns)."""
    assert plan.redundant is not None
    c = plan.redundant[chunk.tensor.name]
    rows = c[chunk.start : chunk.stop] if len(c) > 1 else c
    coefficients = torch.from_numpy(rows.T.copy()).to(chunk.base.device)[:, :, None]
    return sum_over_experts(
        c_k * vector for c_k, vector in zip(coefficients, chunk.task_vectors, strict=True)
    )


def _whole_redundant(plan: Plan, tensor: StoredTensor) -> torch.Tensor | None:
    """delta of a tensor where no chunk has enough to know its part of it, (rows, columns)."""
    if not tensor.n_elements:
        return None
    if plan.dense is not None:
        delta = plan.dense[tensor.name].reshape(tensor.matrix_shape)
        return delta.to(plan.device, torch.float64)
    settings = plan.recipe.disentangle
    is_matrix = len(tensor.shape) >= 2
    if settings is None or settings.granularity != "spectral" or not is_matrix:
        return None
    assert plan.redundant is not None
    c = plan.redundant[tensor.name]
    if not c.any():
        return torch.zeros(tensor.matrix_shape, dtype=torch.float64, device=plan.device)
    return spectral_redundant(tensor, plan.experts, plan.device, c)


def _tensor_redundant(
    plan: Plan, tensor: StoredTensor, whole: torch.Tensor | None
) -> torch.Tensor | None:
    """delta of a whole tensor, (rows, columns); None without AWD."""
    if whole is not None or plan.redundant is None:
        return whole
    scaled = (
        replace(chunk, scales=plan.scales) for chunk in chunks(tensor, plan.experts, plan.device)
    )
    return torch.cat([redundant(plan, chunk) for chunk in scaled])


def _whole(plan: Plan, tensor: StoredTensor, index: int) -> torch.Tensor:
    whole = torch.empty(tensor.matrix_shape, dtype=torch.float64, device=plan.device)
    for chunk in chunks(tensor, [plan.experts[index]], plan.device):
        whole[chunk.start : chunk.stop] = chunk.task_vectors[0]
    return whole


def _low_rank(plan: Plan, tensor: StoredTensor, index: int) -> LowRank | None:
    """v_k of a whole matrix as a product; None where it is not one of low rank.

    With AWD it is `[((j = k) - c_j) L_j ...] [R_j ...]` over all experts, row by row.
    """
    awd = plan.recipe.disentangle
    if awd is not None and (plan.redundant is None or awd.granularity == "spectral"):
        return None
    c = None if plan.redundant is None else plan.redundant[tensor.name]
    parts = []
    for position, expert in enumerate(plan.experts):
        if c is None and position != index:
            continue
        if not expert.touches(tensor.name):
            continue
        own = expert.tensor(tensor).low_rank()
        # What is not finite is refused where the whole matrix is read instead.
        if own is None or not torch.isfinite(own.left.sum() + own.right.sum()):
            return None
        share = 1.0 if plan.scales is None else float(plan.scales[position])
        rows = torch.full((1, 1), share, dtype=torch.float64)
        if c is not None:
            rows = share * (float(position == index) - torch.from_numpy(c[:, position, None]))
        parts.append((own.left.to(plan.device) * rows.to(plan.device), own.right.to(plan.device)))
    rows, columns = tensor.matrix_shape
    nothing = torch.zeros((rows, 0), dtype=torch.float64, device=plan.device)
    left = torch.cat([nothing, *(one for one, _ in parts)], dim=1)
    return LowRank(left, torch.cat([nothing.new_zeros(0, columns), *(one for _, one in parts)]))
