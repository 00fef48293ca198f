"""Whether an expert's attention looks locked against merging: detection only.

MergeLock (arXiv 2509.01548) multiplies the query and key weights of an expert by A and A^-T, and
value and output by B and B^-1. What the model computes, `W_Q^T W_K` and `W_O W_V`, stays; the
weights move far from the base, so that a merge with other experts fails. The sign of it is a pair
that has moved far while its product has hardly changed:

    moved   = ||(W_Q', W_K') - (W_Q, W_K)|| / ||(W_Q, W_K)||
    changed = ||W_Q'^T W_K' - W_Q^T W_K|| / ||W_Q^T W_K||

A fine-tuned expert has both small; another model has both near 1.4. The thresholds are ours.
Weights that were rotated or whose heads were reordered for other reasons (quantisation, conversion
between formats) show the same sign, and merging fails for them just as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from awd_core import layout
from awd_core.checkpoints import Checkpoint, StoredTensor
from awd_core.lazy import torch
from awd_core.progress import CancelFn, ProgressFn, Reporter
from awd_core.stream import read_base, row_blocks

MOVED, RATIO = 0.5, 10.0
OUTPUT = "value and output"
SOURCE = "MergeLock, arXiv 2509.01548; thresholds ours"


@dataclass(frozen=True)
class LockSign:
    """One pair of attention weights of one expert.

    Attributes:
        expert: Its label.
        block: The transformer block.
        pair: `query and key` or `value and output`.
        moved: Relative distance of the pair from the base's.
        changed: Relative change of their product.
    """

    expert: str
    block: str
    pair: str
    moved: float
    changed: float

    @property
    def looks_locked(self) -> bool:
        """Whether the pair moved by more than MOVED and RATIO times as far as its product."""
        return self.moved > MOVED and self.moved > RATIO * self.changed

    @property
    def verdict(self) -> str:
        """A sentence for people."""
        if not self.looks_locked:
            return "no sign of a lock"
        return (
            f"{self.pair} of {self.block} in {self.expert!r} look reparameterised (moved by"
            f" {self.moved:.0%}, their product by {self.changed:.1%}): merging will fail"
        )


def lock_signs(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    *,
    progress: ProgressFn | None = None,
    cancel: CancelFn | None = None,
) -> tuple[LockSign, ...]:
    """Every pair of query and key, and of value and output, of every expert.

    Attention whose weights are fused, or whose key and value heads are shared in a way that the
    configuration does not tell, is left out.

    Args:
        base: The base.
        experts: Its experts.
        progress: Called after each pair of each expert.
        cancel: Polled there.

    Raises:
        Cancelled: `cancel` returned True.

    Cost: the attention weights are read once, a few of them at a time, and multiplied.
    """
    pairs = [found for found in _pairs(base) if _kv_heads(base.config, *found[1:]) is not None]
    report = Reporter("Looking for locks", len(pairs) * len(experts), progress, cancel)
    signs = []
    for block, pair, tensors in pairs:
        for expert in experts:
            signs.append(_sign(pair, block, expert, tensors, base.config))
            report.advance(1, f"{block} of {expert.label}")
    return tuple(signs)


def _pairs(base: Checkpoint) -> Iterator[tuple[str, str, tuple[StoredTensor, StoredTensor]]]:
    """Block, name of the pair, and its tensors: query and key, or output and value."""
    names = list(base.stored)
    kinds: dict[tuple[str, str], list[StoredTensor]] = {}
    for name, block in zip(names, layout.blocks(names), strict=True):
        tensor = base.stored[name]
        if tensor.is_float and len(tensor.shape) == 2:
            kinds.setdefault((block, layout.place(name).kind), []).append(tensor)
    for block in dict.fromkeys(block for block, _ in kinds):
        for title, first, second in (
            ("query and key", "attention.q", "attention.k"),
            (OUTPUT, "attention.o", "attention.v"),
        ):
            found = kinds.get((block, first), []), kinds.get((block, second), [])
            # A block with cross attention has two of each, in the same order.
            if len(found[0]) == len(found[1]):
                for pair in zip(*found, strict=True):
                    yield block, title, pair


def _sign(
    title: str,
    block: str,
    expert: Checkpoint,
    tensors: tuple[StoredTensor, StoredTensor],
    config: Mapping[str, Any],
) -> LockSign:
    heads = _kv_heads(config, title, tensors)
    assert heads is not None
    before = [_base_weights(tensor) for tensor in tensors]
    after = [_expert_weights(tensor, expert) for tensor in tensors]
    distance = sum(float((b - a).square().sum()) for b, a in zip(before, after, strict=True))
    length = sum(float(b.square().sum()) for b in before)
    one, other = ((w[0].mT if title == OUTPUT else w[0], w[1]) for w in (before, after))
    p, q = _grouped(one[0], one[1], heads), one[1]
    p2, q2 = _grouped(other[0], other[1], heads), other[1]
    size = _inner(p, q, p, q)
    gap = max(0.0, size + _inner(p2, q2, p2, q2) - 2 * _inner(p, q, p2, q2))
    return LockSign(
        expert.label,
        block,
        title,
        moved=(distance / length) ** 0.5 if length else 0.0,
        changed=(gap / size) ** 0.5 if size else 0.0,
    )


def _inner(p: torch.Tensor, q: torch.Tensor, p2: torch.Tensor, q2: torch.Tensor) -> float:
    """<p^T q, p2^T q2>, from products of the size of the heads."""
    return float(((p @ p2.mT) * (q @ q2.mT)).sum())


def _grouped(first: torch.Tensor, second: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Query heads that share a key head, summed: sum_h Q_h^T K = (sum_h Q_h)^T K."""
    rows, columns = first.shape
    if rows == second.shape[0]:
        return first
    return first.reshape(kv_heads, -1, second.shape[0] // kv_heads, columns).sum(1).flatten(0, 1)


def _kv_heads(
    config: Mapping[str, Any], title: str, tensors: tuple[StoredTensor, StoredTensor]
) -> int | None:
    """Key and value heads; None where the shapes need their number and nothing tells it."""
    (*outside, inside), (rows, _) = tensors[0].shape, tensors[1].shape
    if rows == (inside if title == OUTPUT else outside[0]):
        return 1
    told = config.get("num_key_value_heads")
    told = told or (config.get("text_config") or {}).get("num_key_value_heads")
    return told if isinstance(told, int) and rows % told == 0 else None


def _base_weights(tensor: StoredTensor) -> torch.Tensor:
    return torch.cat([read_base(tensor, *rows, "cpu") for rows in row_blocks(tensor)])


def _expert_weights(tensor: StoredTensor, expert: Checkpoint) -> torch.Tensor:
    counterpart = expert.tensor(tensor)
    return torch.cat(
        [
            counterpart.weights(*rows, read_base(tensor, *rows, "cpu")).double()
            for rows in row_blocks(tensor)
        ]
    )
