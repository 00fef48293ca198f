"""Singular vectors and polar factors of one matrix, float64, the same for any number of threads.

They come from the eigendecomposition of the smaller Gram, which is four to six times as fast as a
singular value decomposition. That squares the condition number: a direction whose singular value is
s of the largest one is known to about 1e-16 / s^2. So directions below NEGLIGIBLE are left out
(they are rounding, and any basis of them is as good as any other), and where one below ILL is
wanted the decomposition is taken of the matrix itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from awd_core.lazy import torch

# Shares of the largest singular value.
NEGLIGIBLE, ILL = 1e-6, 1e-4


@dataclass(frozen=True)
class Triplets:
    """`sum_i s_i u_i v_i^T`, singular values falling.

    Attributes:
        u: Left singular vectors, (rows, r).
        s: Singular values, (r,), none negligible.
        v: Right singular vectors, (columns, r).
    """

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor

    def matrix(self) -> torch.Tensor:
        """Their sum, (rows, columns)."""
        return (self.u * self.s) @ self.v.mT


@dataclass(frozen=True)
class LowRank:
    """A matrix of low rank as the product that it is, such as the task vector of a LoRA expert.

    Attributes:
        left: (rows, r).
        right: (r, columns).
    """

    left: torch.Tensor
    right: torch.Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """LAPACK in one thread: its sums then have one order.

    With more threads it is no faster at the sizes of a model's matrices, and far slower where
    another program uses a core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def singular_triplets(matrix: torch.Tensor, rank: int | None = None, of: float = 0.0) -> Triplets:
    """The first `rank` singular triplets of a matrix (all without one), negligible ones left out.

    Args:
        matrix: (rows, columns) float64.
        rank: How many at most.
        of: Length of what the matrix is a remainder of: what is negligible beside that is left out.

    Cost: an eigendecomposition of size min(rows, columns) and two products.
    """
    rows, columns = matrix.shape
    if rows > columns:
        turned = singular_triplets(matrix.mT, rank, of)
        return Triplets(turned.v, turned.s, turned.u)
    rank = rows if rank is None else min(rank, rows)
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if not rank or largest * (rows * columns) ** 0.5 <= NEGLIGIBLE * of:
        return Triplets(matrix[:, :0], matrix.new_empty(0), matrix.mT[:, :0])
    # A power of two, so that no bit changes and squares neither overflow nor vanish.
    unit = 2.0 ** torch.tensor(largest, dtype=torch.float64).log2().floor().item()
    scaled = matrix / unit
    with one_thread():
        squares, vectors = torch.linalg.eigh(scaled @ scaled.mT)
    s = squares.flip(0)[:rank].clamp(min=0).sqrt()
    kept = int((s > NEGLIGIBLE * max(float(s[0]), of / unit)).sum())
    if kept and s[kept - 1] < ILL * s[0]:
        return _decomposed(scaled, kept, unit)
    u, s = vectors.flip(1)[:, :kept], s[:kept]
    return Triplets(u, s * unit, scaled.mT @ (u / s))


def _decomposed(scaled: torch.Tensor, rank: int, unit: float) -> Triplets:
    with one_thread():
        u, s, vh = torch.linalg.svd(scaled, full_matrices=False)
    return Triplets(u[:, :rank], s[:rank] * unit, vh[:rank].mT)


def product_triplets(product: LowRank, rank: int | None = None, of: float = 0.0) -> Triplets:
    """The singular triplets of `left right`, without the product; see `singular_triplets`.

    Cost: two QR decompositions, (rows, r) and (columns, r), and a decomposition of size r. Dearer
    than that of the product where r is above min(rows, columns).
    """
    left, right = product.left, product.right
    if min(*left.shape, right.shape[1]) < left.shape[1]:
        return singular_triplets(left @ right, rank, of)
    with one_thread():
        own_left, core_left = torch.linalg.qr(left)
        own_right, core_right = torch.linalg.qr(right.mT)
    found = singular_triplets(core_left @ core_right.mT, rank, of)
    return Triplets(own_left @ found.u, found.s, own_right @ found.v)


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of U S V^T: the nearest matrix with orthonormal columns.

    Where columns depend on one another the directions that they lack are left out: the result is
    then a partial isometry, and it does not jump when the columns move by rounding.
    """
    found = singular_triplets(matrix)
    return found.u @ found.v.mT


def isotropic(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`mean(s) u v^T`, (rows, columns); zero where there is no direction at all."""
    return u @ v.mT * (s.mean() if len(s) else 0.0)
