"""Chunks of (base, task vectors) in file order: the only way weights reach any computation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache

import numpy as np

from awd_core import dtypes, kernels, stored_lanes
from awd_core.arrays import Array, namespace
from awd_core.checkpoints import Checkpoint, ExpertTensor, StoredTensor
from awd_core.checkpoints.header import read_bytes, read_rows
from awd_core.checkpoints.lora import ZeroTensor
from awd_core.checkpoints.weights import WeightTensor
from awd_core.errors import not_finite
from awd_core.lanes import whole_groups
from awd_core.lazy import torch
from awd_core.parallel import in_order

# Elements of one tensor held at once. (K + 1) chunks of bfloat16 are then 2.4 MB at K = 8, and
# stay in the cache of the core that read them. Chunking never changes a result.
CHUNK_ELEMENTS = 1 << 17

CODES = {
    dtypes.FLOAT64: stored_lanes.FLOAT64,
    dtypes.FLOAT32: stored_lanes.FLOAT32,
    dtypes.BFLOAT16: stored_lanes.BFLOAT16,
    dtypes.FLOAT16: stored_lanes.FLOAT16,
}
_TYPES = {code: dtype for dtype, code in CODES.items()}
# Largest tensor, base and experts together, that a thread keeps while it is read more than once:
# a matrix of 1024 x 4096 at K = 6 in bfloat16.
KEPT_BYTES = 64 << 20
_ALIGNMENT = 64


@dataclass(frozen=True)
class Span:
    """A part of a tensor, of which all elements follow one another in its file.

    Attributes:
        first: Position of the first element in the flattened tensor.
        rows: Number of rows.
        columns: Columns of each; fewer than the tensor's only for a part of one row.
    """

    first: int
    rows: int
    columns: int

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return self.rows * self.columns


def spans(
    tensor: StoredTensor, chunk_elements: int = CHUNK_ELEMENTS, whole_rows: bool = False
) -> Iterator[Span]:
    """Spans of about `chunk_elements` elements that cover a tensor in order.

    Whole rows, or parts of a row longer than that, cut where sums over rows are cut anyway.
    """
    columns = tensor.matrix_shape[1]
    length = max(1, chunk_elements // kernels.SEGMENT) * kernels.SEGMENT
    if whole_rows or columns <= max(length, chunk_elements):
        for start, stop in row_blocks(tensor, chunk_elements):
            yield Span(start * columns, stop - start, columns)
        return
    for start in range(0, tensor.n_elements, columns):
        for column in range(0, columns, length):
            yield Span(start + column, 1, min(length, columns - column))


@dataclass(frozen=True)
class Packed:
    """Base and experts of one span as they are stored, one after the other in one buffer.

    Attributes:
        data: The bytes, uint8: an array on the CPU, a tensor on another device.
        offsets: Where the base (index 0) and every expert begin, (K + 1,).
        codes: Their types, as `awd_core.kernels` names them, (K + 1,).
        is_vector: Whether the numbers are tau_k, not theta_k, (K + 1,).
        n: Elements of each.
    """

    data: np.ndarray | torch.Tensor
    offsets: np.ndarray
    codes: np.ndarray
    is_vector: np.ndarray
    n: int

    @property
    def on_cpu(self) -> bool:
        """Whether compiled code can read it."""
        return isinstance(self.data, np.ndarray)

    @property
    def for_kernels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What every kernel takes first."""
        assert isinstance(self.data, np.ndarray)
        return self.data, self.offsets, self.codes, self.is_vector

    def part(self, first: int, n: int) -> Packed:
        """Elements `first:first + n`, in the same memory."""
        offsets = self.offsets + first * np.array([_itemsize(code) for code in self.codes])
        return replace(self, offsets=offsets, n=n)

    def widened(self) -> tuple[Array, Array, bool]:
        """theta_0, (n,), and tau_k, (K, n), float64, and whether all of them are finite."""
        if not self.on_cpu:
            base = self._float64(0)
            vectors = base.new_empty((len(self.codes) - 1, self.n))
            for k, vector in enumerate(vectors):
                vector.copy_(self._task_vector(k + 1, base))
            return base, vectors, bool(torch.isfinite(base.sum() + vectors.sum()))
        padded = whole_groups(self.n)
        base = np.empty(padded)
        vectors = np.empty((len(self.codes) - 1, padded))
        finite = kernels.task_vectors(*self.for_kernels, base, vectors)
        return base[: self.n], np.ascontiguousarray(vectors[:, : self.n]), finite

    def base(self) -> torch.Tensor:
        """theta_0 alone, (n,), float64."""
        return self._float64(0)

    def _task_vector(self, index: int, base: torch.Tensor) -> torch.Tensor:
        if self.codes[index] == stored_lanes.NOTHING:
            return torch.zeros_like(base)
        own = self._float64(index)
        return own if self.is_vector[index] else own - base

    def _float64(self, index: int) -> torch.Tensor:
        dtype, offset = _TYPES[int(self.codes[index])], int(self.offsets[index])
        part = self.data[offset : offset + self.n * dtype.itemsize]
        stored = torch.from_numpy(part) if isinstance(part, np.ndarray) else part
        # A copy: the memory of `data` may be used again.
        return stored.view(dtype.torch).to(torch.float64, copy=True)


@dataclass(frozen=True)
class Chunk:
    """A span of one tensor of the base, with the task vectors of every expert there.

    Attributes:
        tensor: The base's tensor that it belongs to.
        span: Which part of it.
        packed: What is stored there.
        labels: Of the experts.
        scales: What every task vector is multiplied with, (K,); None for nothing.
    """

    tensor: StoredTensor
    span: Span
    packed: Packed
    labels: tuple[str, ...] = ()
    scales: np.ndarray | None = None

    @property
    def start(self) -> int:
        """First row, in `tensor.matrix_shape`."""
        return self.span.first // max(1, self.tensor.matrix_shape[1])

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.start + self.span.rows

    @property
    def has_whole_rows(self) -> bool:
        """Whether it is no part of a row longer than a chunk."""
        return self.span.columns == self.tensor.matrix_shape[1]

    @property
    def ends_row(self) -> bool:
        """Whether its last element is the last of a row."""
        return (self.span.first + self.span.n_elements) % self.tensor.matrix_shape[1] == 0

    @property
    def base(self) -> torch.Tensor:
        """theta_0, (rows, columns), float64."""
        return torch.as_tensor(self.widened[0])

    @property
    def task_vectors(self) -> torch.Tensor:
        """tau_k, (K, rows, columns), float64, in expert order."""
        return torch.as_tensor(self.widened[1])

    @cached_property
    def widened(self) -> tuple[Array, Array, bool]:
        """`base` and `task_vectors`, arrays on the CPU, and whether all numbers are finite."""
        base, vectors, finite = self.packed.widened()
        shape = self.span.rows, self.span.columns
        if self.scales is not None:
            vectors *= namespace(vectors).asarray(self.scales, device=vectors.device)[:, None]
        return base.reshape(shape), vectors.reshape(len(vectors), *shape), finite

    def require_finite(self) -> None:
        """Refuse NaN and infinite weights.

        Raises:
            AwdError: With the tensor, and the base or the first expert that has one.
        """
        if self.widened[2]:
            return
        culprits = ["the base"] if not torch.isfinite(self.base).all() else []
        culprits += [
            f"expert {label!r}"
            for label, vector in zip(self.labels, self.task_vectors, strict=True)
            if not torch.isfinite(vector).all() and not culprits
        ]
        if culprits:
            raise not_finite(self.tensor.name, ", ".join(culprits))


class Reader:
    """Reads spans of one tensor, from any thread.

    Args:
        tensor: The base's tensor.
        experts: The experts, in order.
        device: Where chunks go; to a GPU as they are stored, through pinned memory.

    Raises:
        MismatchError: An expert does not have this tensor in this shape.
    """

    def __init__(self, tensor: StoredTensor, experts: Sequence[Checkpoint], device: str) -> None:
        self.tensor, self.device = tensor, device
        self.labels = tuple(expert.label for expert in experts)
        self._experts = [expert.tensor(tensor) for expert in experts]
        plain = [_stored(counterpart) for counterpart in self._experts]
        dtypes = [_packed_type(tensor), *(_packed_type(stored) for stored in plain)]
        nothing = [False, *(isinstance(one, ZeroTensor) for one in self._experts)]
        self._sources = [tensor, *plain]
        self._as_stored = [
            one if one is not None and one.dtype in CODES else None for one in self._sources
        ]
        self._itemsizes = tuple(
            0 if none else dtype.itemsize for dtype, none in zip(dtypes, nothing, strict=True)
        )
        self._codes = np.array(
            [
                stored_lanes.NOTHING if none else CODES[dtype]
                for dtype, none in zip(dtypes, nothing, strict=True)
            ]
        )
        self._is_vector = np.array([source is None for source in self._sources])

    @property
    def n_bytes(self) -> int:
        """Of the tensor, base and experts together, as chunks hold them."""
        return self.tensor.n_elements * sum(self._itemsizes)

    @property
    def needs_whole_rows(self) -> bool:
        """Whether an expert's numbers have to be computed, which is done row by row."""
        return any(
            source is None and size
            for source, size in zip(self._sources, self._itemsizes, strict=True)
        )

    def __call__(self, span: Span, scratch: bool = False) -> Chunk:
        """One chunk.

        Args:
            span: Which elements.
            scratch: Whether its bytes are only needed until this thread reads the next one; memory
                is then used again, which saves a third of the time.

        Raises:
            CheckpointError: A file ended early or could not be read.
        """
        room = _room(span.n_elements, self._itemsizes)
        buffer = _buffer(room.n_bytes, self.device, scratch)
        view = memoryview(buffer)  # pyright: ignore[reportArgumentType]
        for source, part in zip(self._as_stored, room.parts, strict=True):
            if source is not None:
                read_bytes(source, span.first * source.dtype.itemsize, view[part])
        if None in self._as_stored:
            self._compute(span, room, buffer)
        for gap in room.gaps:
            buffer[gap] = 0
        data = _on(buffer, self.device)
        packed = Packed(data, room.offsets, self._codes, self._is_vector, span.n_elements)
        return Chunk(self.tensor, span, packed, self.labels)

    def _compute(self, span: Span, room: _Room, buffer: np.ndarray) -> None:
        """Fill in what is not stored as the kernels know it, where there is any."""
        base = cache(lambda: self._base(span))
        for index, part in enumerate(room.parts):
            if self._as_stored[index] is None and self._itemsizes[index]:
                numbers = self._float64(index, span, base).contiguous().view(-1)
                buffer[part] = numbers.view(torch.uint8).numpy()

    def _base(self, span: Span) -> torch.Tensor:
        """The rows of theta_0 that a span lies in, float64."""
        start = span.first // max(1, self.tensor.matrix_shape[1])
        return read_base(self.tensor, start, start + span.rows, "cpu")

    def _float64(self, index: int, span: Span, base: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Numbers that are not stored as the kernels know them: odd types, products of factors."""
        columns = self.tensor.matrix_shape[1]
        start, begin = divmod(span.first, max(1, columns))
        stop = start + span.rows
        source = self._sources[index]
        if source is None:
            rows = self._experts[index - 1].task_vector(start, stop, base())
        else:
            rows = read_rows(source, start, stop)
        return rows[:, begin : begin + span.columns].to(torch.float64)


class KeptReader:
    """Reads a whole tensor when a thread asks for a span of it, and its other spans from memory.

    Args:
        read: Reads the tensor.
    """

    def __init__(self, read: Reader) -> None:
        self.tensor, self._read = read.tensor, read
        self._whole: Chunk | None = None

    def __call__(self, span: Span, scratch: bool = True) -> Chunk:
        """One chunk; its bytes are there until this thread reads something else."""
        assert scratch, "what is kept is in the memory of a thread"
        whole = self._whole
        if whole is None or not is_current(whole.packed):
            everything = Span(0, *self.tensor.matrix_shape)
            self._whole = whole = self._read(everything, scratch=True)
        return replace(whole, span=span, packed=whole.packed.part(span.first, span.n_elements))


def _stored(counterpart: ExpertTensor) -> StoredTensor | None:
    return counterpart.stored if isinstance(counterpart, WeightTensor) else None


def _itemsize(code: int) -> int:
    return 0 if code == stored_lanes.NOTHING else _TYPES[int(code)].itemsize


def _packed_type(stored: StoredTensor | None) -> dtypes.Dtype:
    return stored.dtype if stored is not None and stored.dtype in CODES else dtypes.FLOAT64


@dataclass(frozen=True)
class _Room:
    """Where base and experts lie in a chunk: the bytes of each, and what is left between them."""

    offsets: np.ndarray
    parts: tuple[slice, ...]
    gaps: tuple[slice, ...]
    n_bytes: int


@lru_cache(maxsize=256)
def _room(n: int, itemsizes: tuple[int, ...]) -> _Room:
    parts, gaps, offset = [], [], 0
    for size in itemsizes:
        end = offset + n * size
        parts.append(slice(offset, end))
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        gaps.append(slice(end, offset))
    # Kernels take whole groups of lanes, so they read up to one group too far.
    gaps.append(slice(offset, offset + _ALIGNMENT))
    offsets = np.array([part.start for part in parts])
    own = tuple(gap for gap in gaps if gap.start < gap.stop)
    return _Room(offsets, tuple(parts), own, offset + _ALIGNMENT)


_of_thread = threading.local()


def _buffer(n_bytes: int, device: str, scratch: bool) -> np.ndarray:
    if device != "cpu":
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    if not scratch:
        return _aligned(n_bytes)
    room = getattr(_of_thread, "scratch", None)
    if room is None or len(room) < n_bytes:
        _of_thread.scratch = room = _aligned(n_bytes)
    _of_thread.latest = room[:n_bytes]
    return _of_thread.latest


def _aligned(n_bytes: int) -> np.ndarray:
    """Room that begins where a line of the cache does."""
    room = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    return room[first : first + n_bytes]


def is_current(packed: Packed) -> bool:
    """Whether bytes that were read into a thread's scratch memory are there still, in this one."""
    return not packed.on_cpu or getattr(_of_thread, "latest", None) is packed.data


def _on(buffer: np.ndarray, device: str) -> np.ndarray | torch.Tensor:
    """The bytes on the device. Threads that read have a stream each, so copies run ahead."""
    if device == "cpu":
        return buffer
    if not hasattr(_of_thread, "stream"):
        _of_thread.stream = torch.cuda.Stream(device)
    with torch.cuda.stream(_of_thread.stream):
        data = torch.from_numpy(buffer).to(device, non_blocking=True)
    _of_thread.stream.synchronize()
    # Its memory may not be used again before the default stream is done with it.
    data.record_stream(torch.cuda.default_stream(device))
    return data


def read_as_stored(stored: StoredTensor, span: Span) -> np.ndarray:
    """The bytes of a span, as they are stored."""
    buffer = np.empty(span.n_elements * stored.dtype.itemsize, np.uint8)
    read_bytes(stored, span.first * stored.dtype.itemsize, buffer.data)
    return buffer


def row_blocks(
    tensor: StoredTensor, chunk_elements: int = CHUNK_ELEMENTS
) -> Iterator[tuple[int, int]]:
    """Ranges of whole rows of about `chunk_elements` elements that cover a tensor in order."""
    rows, columns = tensor.matrix_shape
    step = max(1, chunk_elements // max(1, columns))
    if columns:
        for start in range(0, rows, step):
            yield start, min(rows, start + step)


def read_base(tensor: StoredTensor, start: int, stop: int, device: str) -> torch.Tensor:
    """Rows of theta_0 in float64, (rows, columns)."""
    return read_rows(tensor, start, stop).to(device).to(torch.float64)


def chunks(
    tensor: StoredTensor,
    experts: Sequence[Checkpoint],
    device: str,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Iterator[Chunk]:
    """Every chunk of one tensor, in order of rows, read ahead; whole rows.

    Raises:
        MismatchError: An expert does not have this tensor in this shape.
        AwdError: A weight is NaN or infinite, with the expert's name.
    """
    read = Reader(tensor, experts, device)

    def load(span: Span) -> Chunk:
        chunk = read(span)
        chunk.require_finite()
        return chunk

    parts = list(spans(tensor, chunk_elements, whole_rows=True))
    return in_order(load, parts) if len(parts) > 2 else map(load, parts)
