"""What a merge method sees of the weights: streams of pieces that can be started anew.

Task vectors here are what the recipe makes of them: with AWD they are `v_k = tau_k - delta`, with
equalised norms they are scaled. A method does not know the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np

from awd_core import gram_kernels, layout
from awd_core.gram import pack, unpack, with_base
from awd_core.lanes import LANES, whole_groups
from awd_core.lazy import torch
from awd_core.linear_algebra import LowRank
from awd_core.parallel import in_order
from awd_core.stored_lanes import FLOAT64
from awd_core.stream import Packed

Result = TypeVar("Result")

# Numbers of some rows: an array where compiled code made them, which needs no torch.
Update: TypeAlias = "np.ndarray | torch.Tensor"


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of some whole rows as they are stored, for compiled code on the CPU.

    Attributes:
        packed: The bytes of base and experts.
        scales: What every task vector is multiplied with, (K,).
        redundant: c of AWD, (K, 1), or (K, rows) of the whole tensor; (K, 0) without AWD.
        first: Position of the first element in the flattened tensor.
        columns: Of the tensor.
        require_finite: Refuses what is not finite, by name.
        streams: Where the random numbers of every expert start, (K,); (0,) to drop nothing.
        limit: What is dropped: random numbers below `limit` 2^-53.
        kept: The same drawn already, a bit for each element, (K, n / 8); (K, 0) to draw it.
    """

    packed: Packed
    scales: np.ndarray
    redundant: np.ndarray
    first: int
    columns: int
    require_finite: Callable[[], None]
    streams: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    limit: int = 0
    kept: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.uint8))

    @property
    def n(self) -> int:
        """Elements of each."""
        return self.packed.n

    @property
    def for_kernels(self) -> tuple[Any, ...]:
        """What every kernel on v_k takes first."""
        where = self.first, self.columns
        dropped = self.streams, np.uint64(self.limit), self.kept
        return *self.packed.for_kernels, self.scales, self.redundant, *where, *dropped

    def filled(self, kernel: Callable[..., bool], *arguments: Any) -> np.ndarray:
        """What a kernel writes, a number for every element, (rows, columns) float64.

        Args:
            kernel: Takes what is stored, n, the arguments and room for the result; says whether
                every number it read is finite.
            arguments: Of the kernel.

        Raises:
            AwdError: A weight is not finite.
        """
        out = np.empty(whole_groups(self.n))
        if not kernel(self.for_kernels, self.n, *arguments, out):
            self.require_finite()
        return out[: self.n].reshape(-1, self.columns)


class Piece:
    """Whole rows of one tensor. How a tensor is cut into pieces never changes a result.

    Attributes:
        name: The tensor's name in the state dict.
        start: First row, in the tensor seen as a matrix: (shape[0], rest); a vector is one row.
        base: theta_0, (rows, columns) float64.
        task_vectors: (K, rows, columns) float64, in expert order.
        seed: The recipe's, for methods that draw at random; see `awd_core.random_masks`.
        stored: The same for compiled code, where there is any for it; else None.
    """

    def __init__(
        self, name: str, start: int, base: torch.Tensor, task_vectors: torch.Tensor, seed: int = 0
    ) -> None:
        self.name, self.start, self.seed = name, start, seed
        self._given = base, task_vectors

    @cached_property
    def base(self) -> torch.Tensor:
        """theta_0."""
        return self._given[0]

    @cached_property
    def task_vectors(self) -> torch.Tensor:
        """v_k."""
        return self._given[1]

    @property
    def stored(self) -> StoredVectors | None:
        """None: these are tensors."""
        return None

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.start + self.base.shape[0]

    @property
    def offset(self) -> int:
        """Position of the first element in the flattened tensor."""
        return self.start * self.base.shape[1]


@dataclass(frozen=True)
class Numbers:
    """theta_0 and v_k as computed, for compiled code that takes what is stored.

    Attributes:
        data: The numbers, flat, with room for a group of lanes.
        rows: The same without it, (K + 1, n).
    """

    data: np.ndarray
    rows: np.ndarray

    @classmethod
    def empty(cls, n_experts: int, n: int) -> Numbers:
        """Room for n elements."""
        size = (n_experts + 1) * n
        data = np.zeros(size + LANES)
        return cls(data, data[:size].reshape(-1, n))

    @classmethod
    def of(cls, piece: Piece) -> Numbers:
        """Those of a piece of tensors on the CPU."""
        vectors = piece.task_vectors
        numbers = cls.empty(len(vectors), piece.base.numel())
        numbers.rows[0], numbers.rows[1:] = piece.base.flatten(), vectors.flatten(1)
        return numbers

    def plain(self) -> tuple[Packed, np.ndarray, np.ndarray]:
        """What `StoredVectors` says of them first: float64, not scaled, not disentangled."""
        n_vectors, n = self.rows.shape
        packed = Packed(
            data=self.data.view(np.uint8),
            offsets=np.arange(n_vectors) * self.rows.strides[0],
            codes=np.full(n_vectors, FLOAT64),
            is_vector=np.arange(n_vectors) > 0,
            n=n,
        )
        return packed, np.ones(n_vectors - 1), np.empty((n_vectors - 1, 0))

    def in_place_of(self, piece: Piece, stored: StoredVectors) -> Piece:
        """A piece of these numbers."""
        packed, scales, redundant = self.plain()
        own = replace(stored, packed=packed, scales=scales, redundant=redundant)
        return _Computed(piece, self.rows, own)


class _Computed(Piece):
    def __init__(self, piece: Piece, rows: np.ndarray, stored: StoredVectors) -> None:
        shape = -1, stored.columns
        tensors = torch.from_numpy(rows)
        vectors = tensors[1:].view(len(rows) - 1, *shape)
        super().__init__(piece.name, piece.start, tensors[0].view(shape), vectors, piece.seed)
        self._stored = stored

    @property
    def stored(self) -> StoredVectors | None:
        """The numbers themselves."""
        return self._stored


@dataclass(frozen=True)
class TensorVectors:
    """The task vectors of one tensor.

    Attributes:
        name: Its name in the state dict.
        shape: Its shape.
        n_experts: K.
        sweep: Starts a stream of pieces, first row to last; they may be read when they are used.
        matrix: The whole task vector of expert k, (rows, columns) float64; reads that expert only,
            except where AWD has to read them all for delta, once.
        bases: Starts a stream of pieces without task vectors, (K, 0, 0), for a method that has its
            result already.
        seed: The recipe's.
        low_rank: The same as a product of low rank, where the experts are LoRA adapters; else None.
    """

    name: str
    shape: tuple[int, ...]
    n_experts: int
    sweep: Callable[[], Iterator[Piece]]
    matrix: Callable[[int], torch.Tensor]
    bases: Callable[[], Iterator[Piece]]
    seed: int = 0
    low_rank: Callable[[int], LowRank | None] = lambda index: None

    @property
    def kind(self) -> str:
        """What the tensor is for, from its name: `attention.q`, `norm`, `embedding`, ..."""
        return layout.place(self.name).kind

    @property
    def is_matrix(self) -> bool:
        """Whether it has exactly two axes."""
        return len(self.shape) == 2

    @property
    def n_elements(self) -> int:
        """Elements of one task vector."""
        return int(np.prod(self.shape, dtype=np.int64))

    def each(self, function: Callable[[Piece], Result]) -> Iterator[Result]:
        """`function` of every piece, in any thread; the results in order of pieces."""
        return in_order(function, self.sweep())

    def task_vectors(self) -> Iterator[torch.Tensor]:
        """The (K, rows, columns) part of every piece."""
        return self.each(lambda piece: piece.task_vectors)

    def matrices(self) -> Iterator[torch.Tensor]:
        """The whole task vectors, one expert after the other."""
        return (self.matrix(index) for index in range(self.n_experts))

    @cached_property
    def gram(self) -> np.ndarray:
        """Inner products of theta_0 (index 0) and every task vector, (K + 1, K + 1) float64.

        Cost: one sweep.
        """
        return unpack(np.concatenate(list(self.each(_row_grams))).sum(0, keepdims=True))[0]


def _row_grams(piece: Piece) -> np.ndarray:
    """Gram of theta_0 and the task vectors in every row, (rows, (K + 1)(K + 2)/2)."""
    stored = piece.stored
    if stored is None and (piece.base.is_cuda or not piece.base.numel()):
        return pack(with_base(piece.base, piece.task_vectors))
    if stored is None:
        # A product of torch may round a row in another way where it begins at another address.
        computed, columns = Numbers.of(piece), piece.base.shape[1]
        stored = StoredVectors(*computed.plain(), piece.offset, columns, lambda: None)
    n_vectors = len(stored.packed.codes)
    grams = np.empty((stored.n // stored.columns, n_vectors * (n_vectors + 1) // 2))
    gram_kernels.grams_with_base(stored.for_kernels, stored.n, grams)
    if not np.isfinite(grams).all():
        stored.require_finite()
    return grams


@dataclass(frozen=True)
class Vectors:
    """The task vectors of a whole model.

    Attributes:
        n_experts: K.
        n_elements: Elements of one task vector; tensors that no expert changes count as zeros.
        tensors: Starts a stream of every tensor that an expert changes, in file order.
    """

    n_experts: int
    n_elements: int
    tensors: Callable[[], Iterator[TensorVectors]]

    def sweep(self) -> Iterator[Piece]:
        """Every piece of every tensor, in file order."""
        for tensor in self.tensors():
            yield from tensor.sweep()

    def each(self, function: Callable[[Piece], Result]) -> Iterator[Result]:
        """`function` of every piece, in any thread; the results in order of pieces."""
        return in_order(function, self.sweep())

    def task_vectors(self) -> Iterator[torch.Tensor]:
        """The (K, rows, columns) part of every piece."""
        return self.each(lambda piece: piece.task_vectors)
