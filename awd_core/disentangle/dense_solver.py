"""AWD in the space of the weights, for what leaves the span of the task vectors: Adam and L1.

Adam divides every entry of the gradient by a size of its own, and the gradient of ||delta||_1 is
sign(delta): neither is a combination of task vectors, so delta itself is the state. Vectors are
float32, every sum over elements is float64. Groups are solved one after the other: with
granularity `tensor` or `row` no more than one tensor of every expert is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from awd_core import layout
from awd_core.checkpoints import Checkpoint, StoredTensor
from awd_core.checkpoints.estimate import free_memory
from awd_core.devices import resolve_device
from awd_core.disentangle.objective import (
    critical_alphas,
    gradient_coefficients,
    mean_absolute_cosine,
    mean_norms,
    on_one_line,
)
from awd_core.disentangle.settings import (
    PAPER_ALPHA,
    PAPER_LR,
    RELATIVE_ALPHA,
    RELATIVE_LR,
    Settings,
)
from awd_core.errors import AwdError
from awd_core.lazy import torch
from awd_core.progress import CancelFn, ProgressFn, Reporter
from awd_core.stream import CHUNK_ELEMENTS, chunks

# As in the paper of Adam (arXiv 1412.6980) and in torch.optim.
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class DenseSolution:
    """One redundant vector for each group, element by element.

    Attributes:
        settings: What was asked for.
        redundant: delta of every tensor by name, float32 in the tensor's shape.
        losses: L before every step and after the last, averaged over groups, (steps + 1,).
        outcome: How it ended, in a sentence.
    """

    settings: Settings
    redundant: dict[str, torch.Tensor]
    losses: np.ndarray
    outcome: str


def solve_dense(
    tensors: Sequence[StoredTensor],
    experts: Sequence[Checkpoint],
    settings: Settings,
    *,
    device: str = "auto",
    memory: int | None = None,
    progress: ProgressFn | None = None,
    cancel: CancelFn | None = None,
) -> DenseSolution:
    """Descend on delta itself.

    With penalty `l1`, alpha is an absolute slope and `alpha_relative` a fraction of the largest
    slope of L_O at 0, at which delta stays 0. With Adam, `lr` is in units of the weights and
    `lr_relative` in units of s / sqrt(n), the root mean square of an entry of a task vector.

    Args:
        tensors: The base's tensors.
        experts: The experts, in order.
        settings: Any settings for a number of steps, those of the Gram solver too.
        device: `auto`, `cpu` or `cuda`.
        memory: Bytes that may be used; what is free when left out.
        progress: Called after every step.
        cancel: Polled after every step.

    Raises:
        AwdError: The largest group does not fit into memory.
        Cancelled: `cancel` returned True.
    """
    tensors = [tensor for tensor in tensors if tensor.n_elements]
    groups = _cut(tensors, settings)
    where = resolve_device(device)
    _require_memory(groups, len(experts), settings, where, memory)
    total = settings.steps * sum(tensor.n_elements for tensor in tensors)
    report = Reporter("Disentangling in the space of the weights", total, progress, cancel)
    redundant: dict[str, torch.Tensor] = {}
    losses, n_groups = np.zeros(settings.steps + 1), 0
    for group in groups:
        vectors = [_task_vectors(tensor, experts, settings, where) for tensor in group]
        descent = _Descent(vectors, settings)
        units, name = sum(tensor.n_elements for tensor in group), group[0].name
        for step in range(settings.steps + 1):
            losses[step] += descent.measure()
            if step < settings.steps:
                descent.step()
                report.advance(units, name)
        n_groups += descent.n_active
        for tensor, delta in zip(group, descent.deltas, strict=True):
            redundant[tensor.name] = delta.reshape(tensor.shape).cpu()
    losses /= max(1, n_groups)
    outcome = (
        f"Ended after {settings.steps} steps in the space of the weights; the loss went from"
        f" {losses[0]:.4g} to {losses[-1]:.4g}."
    )
    return DenseSolution(settings, redundant, losses, outcome)


class _Descent:
    """delta of one group of tensors, or of every row of one tensor, and its way down."""

    def __init__(self, vectors: list[torch.Tensor], settings: Settings) -> None:
        self._vectors, self._settings = vectors, settings
        self.deltas = [torch.zeros_like(tau[0]) for tau in vectors]
        self._velocities = [torch.zeros_like(delta) for delta in self.deltas]
        self._squares = [torch.zeros_like(delta) for delta in self.deltas if settings.adam]
        self._steps = 0
        self._grams = self._measure_grams()
        self.n_active = int(((np.einsum("rkk->rk", self._grams) > 0).sum(1) >= 2).sum())
        self._alpha, self._lr = self._scales()
        self._lr = np.where(on_one_line(self._grams), 0.0, self._lr)

    def measure(self) -> float:
        """L at delta, summed over the groups; keeps the Grams for the step that follows."""
        self._grams = self._measure_grams()
        overlap = np.nan_to_num(mean_absolute_cosine(self._grams))
        size = {
            "l2": np.sqrt(self._sums(torch.square)),
            "l2_squared": self._sums(torch.square),
            "l1": self._sums(torch.abs),
            "none": 0.0,
        }[self._settings.penalty]
        return float((overlap + self._alpha * size).sum())

    def step(self) -> None:
        """delta <- delta - beta grad L, or Adam's step."""
        self._steps += 1
        a = -gradient_coefficients(self._grams)
        norm = np.sqrt(self._sums(torch.square))
        pull = {
            "l2": np.divide(self._alpha, norm, out=np.zeros_like(norm), where=norm > 0),
            "l2_squared": 2 * self._alpha,
        }.get(self._settings.penalty, np.zeros_like(norm))
        for part, (tau, delta) in enumerate(zip(self._vectors, self.deltas, strict=True)):
            slopes, pulls, alphas, lrs = (
                torch.from_numpy(values).to(delta) for values in (a, pull, self._alpha, self._lr)
            )
            for rows, columns in _pieces(delta):
                piece = delta[rows, columns]
                gradient = torch.einsum("rk,krn->rn", slopes[rows], tau[:, rows, columns] - piece)
                gradient += pulls[rows, None] * piece
                if self._settings.penalty == "l1":
                    gradient += alphas[rows, None] * piece.sign()
                gradient += self._settings.weight_decay * piece
                piece -= lrs[rows, None] * self._direction(part, rows, columns, gradient)

    def _direction(
        self, part: int, rows: slice, columns: slice, gradient: torch.Tensor
    ) -> torch.Tensor:
        velocity = self._velocities[part][rows, columns]
        if not self._settings.adam:
            return velocity.mul_(self._settings.momentum).add_(gradient)
        square = self._squares[part][rows, columns]
        velocity.lerp_(gradient, 1 - BETA_1)
        square.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
        root = (square / (1 - BETA_2**self._steps)).sqrt_().add_(EPSILON)
        return velocity / (1 - BETA_1**self._steps) / root

    def _measure_grams(self) -> np.ndarray:
        """Gram of v_k = tau_k - delta over all tensors of the group, (rows, K, K) float64."""
        total: np.ndarray | float = 0.0
        for tau, delta in zip(self._vectors, self.deltas, strict=True):
            grams = torch.zeros(
                (delta.shape[0], len(tau), len(tau)), dtype=torch.float64, device=delta.device
            )
            for rows, columns in _pieces(delta):
                v = (tau[:, rows, columns] - delta[rows, columns]).double().transpose(0, 1)
                grams[rows] += v @ v.transpose(1, 2)
            total = total + grams.cpu().numpy()
        return np.asarray(total)

    def _sums(self, function: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """Sum of `function` over the elements of delta, (rows,) float64."""
        sums = [function(delta.double()).sum(1) for delta in self.deltas]
        return torch.stack(sums).sum(0).cpu().numpy()

    def _scales(self) -> tuple[np.ndarray, np.ndarray]:
        """alpha and beta of every group."""
        settings, ones = self._settings, np.ones(len(self._grams))
        in_paper_units = settings.uses_paper_units
        if in_paper_units[0]:
            alpha = ones * (PAPER_ALPHA if settings.alpha is None else settings.alpha)
        else:
            fraction = settings.alpha_relative
            critical = self._critical_alpha()
            alpha = critical * (RELATIVE_ALPHA if fraction is None else fraction)
        if in_paper_units[1]:
            return alpha, ones * (settings.lr or PAPER_LR)
        n_elements = sum(delta.shape[1] for delta in self.deltas)
        scale = mean_norms(self._grams)
        unit = scale / math.sqrt(n_elements) if settings.adam else scale**2
        return alpha, (settings.lr_relative or RELATIVE_LR) * unit

    def _critical_alpha(self) -> np.ndarray:
        """The alpha at which delta = 0 is a minimum, (rows,)."""
        if self._settings.penalty != "l1":
            power = 1 if self._settings.penalty == "l2_squared" else 0
            scale = mean_norms(self._grams)
            return critical_alphas(self._grams) / np.where(scale > 0, scale, 1.0) ** power
        a = gradient_coefficients(self._grams)
        largest = np.zeros(len(a))
        for tau in self._vectors:
            slopes = torch.from_numpy(a).to(tau)
            for row in range(tau.shape[1]):
                slope = torch.einsum("k,kn->n", slopes[row], tau[:, row])
                largest[row] = max(largest[row], float(slope.abs().max()))
        return largest


def _task_vectors(
    tensor: StoredTensor, experts: Sequence[Checkpoint], settings: Settings, device: str
) -> torch.Tensor:
    """tau of one tensor as (K, groups, elements of a group) float32."""
    blocks = [chunk.task_vectors.float() for chunk in chunks(tensor, experts, device)]
    tau = torch.cat(blocks, dim=1)
    of_rows = settings.granularity == "row" and len(tensor.shape) >= 2
    return tau if of_rows else tau.reshape(len(experts), 1, -1)


def _cut(tensors: Sequence[StoredTensor], settings: Settings) -> list[list[StoredTensor]]:
    """The tensors that are solved together, in file order."""
    names = [tensor.name for tensor in tensors]
    labels = {
        "model": ["model"] * len(names),
        "block": layout.blocks(names),
    }.get(settings.granularity, names)
    groups: dict[str, list[StoredTensor]] = {}
    for label, tensor in zip(labels, tensors, strict=True):
        groups.setdefault(label, []).append(tensor)
    return list(groups.values())


def _pieces(delta: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of a (rows, columns) tensor of at most CHUNK_ELEMENTS elements."""
    rows, columns = delta.shape
    height = max(1, CHUNK_ELEMENTS // columns)
    width = columns if height > 1 else CHUNK_ELEMENTS
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, top + height), slice(left, left + width)


def needed_memory(
    groups: Sequence[Sequence[StoredTensor]], n_experts: int, settings: Settings
) -> int:
    """Bytes at once: K task vectors, delta and the state of its descent for the largest group."""
    largest = max((sum(tensor.n_elements for tensor in group) for group in groups), default=0)
    return 4 * largest * (n_experts + (3 if settings.adam else 2))


def _require_memory(
    groups: Sequence[Sequence[StoredTensor]],
    n_experts: int,
    settings: Settings,
    device: str,
    memory: int | None,
) -> None:
    free = _free_memory(device) if memory is None else memory
    needed = needed_memory(groups, n_experts, settings)
    if free is None or needed <= free:
        return
    raise AwdError(
        "The redundant vector does not fit into memory",
        where=f"granularity {settings.granularity} on {device}",
        received=f"{needed / 1e9:.1f} GB for {n_experts} task vectors and delta",
        expected=f"at most {free / 1e9:.1f} GB",
        remedy="Use granularity tensor or row, which take one tensor at a time, or plain descent"
        " with penalty l2, which needs no weights at all.",
    )


def _free_memory(device: str) -> int | None:
    """Bytes that are free on the device; None where the system does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else free_memory()
