"""Counts in rows of bits, compiled: one bit for each element, 64 of them in a word.

Rows are added up as the adder of a processor does it, for 64 elements at once: plane p holds bit p
of every element's number.
"""

import numpy as np

from awd_core.compiled import kernel
from awd_core.lanes import ones


@kernel
def n_planes(most: int) -> int:
    """Bits that the numbers 0 to `most` need."""
    planes = 0
    while most >> planes:
        planes += 1
    return planes


@kernel
def n_set(row: np.ndarray) -> int:
    """Number of bits that are set."""
    total = np.uint64(0)
    for word in range(len(row)):
        total += ones(row[word])
    return int(np.int64(total))


@kernel
def n_both(a: np.ndarray, b: np.ndarray) -> int:
    """Number of bits that are set in both rows."""
    total = np.uint64(0)
    for word in range(len(a)):
        total += ones(a[word] & b[word])
    return int(np.int64(total))


@kernel
def n_differing(a: np.ndarray, b: np.ndarray, sign: np.ndarray, other: np.ndarray) -> int:
    """Number of bits that are set in both rows where the signs differ."""
    total = np.uint64(0)
    for word in range(len(a)):
        total += ones(a[word] & b[word] & (sign[word] ^ other[word]))
    return int(np.int64(total))


@kernel
def split_by_number(rows: np.ndarray, planes: np.ndarray, out: np.ndarray) -> None:
    """Which elements have their bit set in none of the rows, in one of them, in two, ...

    Args:
        rows: (K, words).
        planes: Room, (n_planes(K) + 1, words).
        out: Result, (K + 1, words).
    """
    n_rows, full = len(rows), ~np.uint64(0)
    carry = planes[n_planes(n_rows)]
    planes[:] = 0
    for k in range(n_rows):
        carry[:] = rows[k]
        for p in range(n_planes(k + 1)):
            plane = planes[p]
            for word in range(len(carry)):
                both = plane[word] & carry[word]
                plane[word] ^= carry[word]
                carry[word] = both
    for number in range(n_rows + 1):
        equal = out[number]
        equal[:] = full
        for p in range(n_planes(n_rows)):
            plane, flip = planes[p], np.uint64(0) if (number >> p) & 1 else full
            for word in range(len(equal)):
                equal[word] &= plane[word] ^ flip
