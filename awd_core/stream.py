"""Chunks of (base, task vectors) in file order: the only way weights reach any computation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from awd_core.checkpoints import Checkpoint, ExpertTensor, StoredTensor
from awd_core.checkpoints.header import read_rows
from awd_core.errors import AwdError, RecipeError

# Elements of one tensor held at once. (K + 1) chunks of float64 are then 19 MB at K = 8: a few of
# them fit in cache and in any memory. Chunking never changes a result.
CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Chunk:
    """Some rows of one tensor of the base, with the task vectors of every expert there.

    Attributes:
        tensor: The base's tensor that these rows belong to.
        start: First row, in `tensor.matrix_shape`.
        base: theta_0, (rows, columns), float64.
        task_vectors: tau_k, (K, rows, columns), float64, in expert order.
    """

    tensor: StoredTensor
    start: int
    base: torch.Tensor
    task_vectors: torch.Tensor

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.start + self.base.shape[0]


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU when there is one, else the CPU.

    Raises:
        RecipeError: The device asked for is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(
            "There is no GPU to use",
            where="device",
            received=device,
            expected="a CUDA device and a CUDA build of PyTorch",
            remedy="Use --device auto or cpu.",
        )
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise RecipeError(
            "Unknown device", where="device", received=device, expected="auto, cpu, cuda"
        )
    return torch.device(device)


def row_blocks(
    tensor: StoredTensor, chunk_elements: int = CHUNK_ELEMENTS
) -> Iterator[tuple[int, int]]:
    """Ranges of whole rows of about `chunk_elements` elements that cover a tensor in order."""
    rows, columns = tensor.matrix_shape
    step = max(1, chunk_elements // max(1, columns))
    if columns:
        for start in range(0, rows, step):
            yield start, min(rows, start + step)


def read_base(tensor: StoredTensor, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Rows of theta_0 in float64, (rows, columns)."""
    return read_rows(tensor, start, stop).to(device).to(torch.float64)


def chunks(
    tensor: StoredTensor,
    experts: Sequence[Checkpoint],
    device: torch.device,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Iterator[Chunk]:
    """Every chunk of one tensor, in order of rows.

    Raises:
        MismatchError: An expert does not have this tensor in this shape.
        AwdError: A weight is NaN or infinite, with the expert's name.
    """
    counterparts = [expert.tensor(tensor) for expert in experts]
    labels = [expert.label for expert in experts]
    for start, stop in row_blocks(tensor, chunk_elements):
        base = read_base(tensor, start, stop, device)
        task_vectors = _task_vectors(counterparts, start, stop, base)
        _require_finite(tensor.name, labels, base, task_vectors)
        yield Chunk(tensor, start, base, task_vectors)


def _task_vectors(
    counterparts: Sequence[ExpertTensor], start: int, stop: int, base: torch.Tensor
) -> torch.Tensor:
    stacked = torch.empty((len(counterparts), *base.shape), dtype=torch.float64, device=base.device)
    for index, counterpart in enumerate(counterparts):
        stacked[index] = counterpart.task_vector(start, stop, base)
    return stacked


def _require_finite(
    name: str, labels: list[str], base: torch.Tensor, task_vectors: torch.Tensor
) -> None:
    # One reduction tells whether anything is wrong; only then is it looked for.
    if torch.isfinite(base.sum() + task_vectors.sum()):
        return
    culprits = ["the base"] if not torch.isfinite(base).all() else []
    culprits += [
        f"expert {label!r}"
        for label, vector in zip(labels, task_vectors, strict=True)
        if not torch.isfinite(vector).all() and not culprits
    ]
    if culprits:
        raise AwdError(
            "A weight is NaN or infinite",
            where=f"tensor {name!r} of {', '.join(culprits)}",
            expected="finite weights",
            remedy="Use a checkpoint from before training diverged, or list the tensor"
            " under `exclude`.",
        )
