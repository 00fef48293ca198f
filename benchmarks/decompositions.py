"""The leading singular triplets of one matrix: decomposed in full, and by a randomised SVD.

    python -m benchmarks.decompositions

Of a matrix with short side r, the floor(r/K) leading triplets. Processor seconds in one thread, as
studies compute them, and the largest relative error of a singular value: on a flat spectrum
(independent numbers, the worst case) and on one that falls like 1 / r.
"""

import time

import numpy as np

from awd_core.arrays import numpy_in_one_thread
from awd_core.spectra import Leading, in_full, leading_triplets

SHAPES = ((384, 384), (768, 768), (768, 3072), (1024, 1024), (1024, 4096), (2048, 2048))
EXPERTS = (2, 4, 8, 16)


def timed(matrix: np.ndarray, count: int, exact: bool) -> tuple[Leading, float]:
    """The triplets, and the processor seconds that they took."""
    start = time.thread_time()
    found = leading_triplets(matrix, count, 0, exact)
    return found, time.thread_time() - start


def falling_spectrum(flat: np.ndarray, full: Leading) -> np.ndarray:
    """The matrix with the same left singular vectors, and singular values 1 / r."""
    return full.left @ ((full.left.T @ flat) / (full.values * np.arange(1, len(flat) + 1))[:, None])


def row(shape: tuple[int, int], n_experts: int) -> str:
    """One line of the table."""
    flat = np.random.default_rng(0).standard_normal(shape)
    count = shape[0] // n_experts
    whole = leading_triplets(flat, shape[0], 0, exact=True)
    full, seconds = timed(flat, count, exact=True)
    near, near_seconds = timed(flat, count, exact=False)
    error = np.abs(near.strengths / full.strengths - 1).max()
    steep, _ = timed(falling_spectrum(flat, whole), count, exact=False)
    steep_error = np.abs(steep.strengths * np.arange(1, count + 1) - 1).max()
    taken = "full" if in_full(shape[0], count) else "randomised"
    return (
        f"| {shape[0]} x {shape[1]} | {n_experts} | {count} | {seconds:.3f} | {near_seconds:.3f} |"
        f" {error:.1e} | {steep_error:.1e} | {taken} |"
    )


def main() -> None:
    """Measure and print."""
    print("| shape | K | triplets | full, s | randomised, s | error, flat | error, 1 / r | taken |")
    print("|---|---|---|---|---|---|---|---|")
    with numpy_in_one_thread():
        for shape in SHAPES:
            for n_experts in EXPERTS:
                print(row(shape, n_experts), flush=True)


if __name__ == "__main__":
    main()
