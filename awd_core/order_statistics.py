"""Exact order statistics of signed numbers by the two histograms of `awd_core.magnitude`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from awd_core.lazy import torch
from awd_core.magnitude import N_BINS, bin_of_rank

_OFFSET = 1 << 31


def order_bits(values: torch.Tensor) -> torch.Tensor:
    """Whole numbers from 0 to 2^32 - 1, int64, in the order of the float32 values."""
    bits = (values.to(torch.float32) + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) + _OFFSET


def kth_largest_values(
    sweep: Callable[[], Iterable[torch.Tensor]], ranks: Sequence[int], n_zeros: int
) -> np.ndarray:
    """The `ranks[k]`-th largest value of row k of a stream, exact in float32, (K,).

    Args:
        sweep: Starts the stream anew; yields (K, ...) pieces.
        ranks: 1 is the largest; (K,).
        n_zeros: How many zeros every row has besides those of the stream.

    Cost: two sweeps.
    """
    zero = _OFFSET
    upper = np.zeros((len(ranks), N_BINS), dtype=np.int64)
    upper[:, zero >> 16] += n_zeros
    for values in sweep():
        for row, bits in zip(upper, order_bits(values).flatten(1) >> 16, strict=True):
            row += torch.bincount(bits, minlength=N_BINS).cpu().numpy()
    found = [bin_of_rank(row, rank) for row, rank in zip(upper, ranks, strict=True)]
    lower = np.zeros_like(upper)
    for row, (place, _) in zip(lower, found, strict=True):
        row[0] += n_zeros * (place == zero >> 16)
    for values in sweep():
        for row, bits, (place, _) in zip(lower, order_bits(values).flatten(1), found, strict=True):
            inside = bits[(bits >> 16) == place] & 0xFFFF
            row += torch.bincount(inside, minlength=N_BINS).cpu().numpy()
    patterns = [
        (place << 16 | bin_of_rank(row, rank)[0]) - _OFFSET
        for row, (place, rank) in zip(lower, found, strict=True)
    ]
    signed = np.array(patterns, dtype=np.int64).astype(np.int32)
    return (signed ^ ((signed >> 31) & 0x7FFFFFFF)).view(np.float32)
