"""Gradient descent of AWD on Gram matrices, many groups at once.

Eight groups advance together, one in each lane of a SIMD register, and blocks of eight are spread
over the cores. Groups never mix, so neither the batch nor the number of threads changes a result.
"""

from dataclasses import dataclass

import numba
import numpy as np

from awd_core.disentangle.objective import PENALTIES, SWALLOWED, Penalty

# float64 numbers in one AVX-512 register; two registers' worth on AVX2 costs nothing.
LANES = 8


@dataclass(frozen=True)
class Descent:
    """How delta is found.

    Attributes:
        alpha: Norm constraint of every group in the paper's units, (groups,).
        lr: Step size beta of every group in the paper's units, (groups,).
        steps: Number of steps.
        penalty: `l2` (paper), `l2_squared` or `none`.
        momentum: Of the velocity, 0 for the paper's plain descent.
        weight_decay: L2 decay inside the gradient, 0 for the paper's.
    """

    alpha: np.ndarray
    lr: np.ndarray
    steps: int
    penalty: Penalty = "l2"
    momentum: float = 0.0
    weight_decay: float = 0.0


def descend(grams: np.ndarray, descent: Descent) -> tuple[np.ndarray, np.ndarray]:
    """Span coefficients after `steps` steps, and the loss before every step and at the end.

    Solved on G / s^2, s = mean_k ||tau_k||, with alpha s and beta / s^2: the exact equivariance
    of the descent, so that nothing under- or overflows at any norm. With penalty `l2_squared`
    alpha becomes alpha s^2, and weight decay s^2 wd.

    Args:
        grams: (groups, K, K) float64.
        descent: The settings.

    Returns:
        c, (groups, K) float64; and L averaged over the groups that have two non-zero vectors,
        (steps + 1,).
    """
    n_groups, n_experts = grams.shape[:2]
    active = (np.einsum("gii->gi", grams) > 0).sum(1) >= 2
    coefficients = np.zeros((n_groups, n_experts))
    if not active.any():
        return coefficients, np.zeros(descent.steps + 1)
    solved, losses = _descend_active(
        grams[active], descent, descent.alpha[active], descent.lr[active]
    )
    coefficients[active] = solved
    return coefficients, losses


def _descend_active(
    grams: np.ndarray, descent: Descent, alpha: np.ndarray, lr: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n_groups, n_experts = grams.shape[:2]
    scale = np.sqrt(np.einsum("gii->gi", grams)).mean(1)
    alpha_power = {"l2": 1, "l2_squared": 2, "none": 0}[descent.penalty]
    n_blocks = -(-n_groups // LANES)
    lanes = _to_lanes(grams / scale[:, None, None] ** 2, n_blocks)
    solved, losses = _descend_lanes(
        lanes,
        _to_lanes(alpha * scale**alpha_power, n_blocks),
        _to_lanes(lr / scale**2, n_blocks),
        _to_lanes(descent.weight_decay * scale**2, n_blocks),
        descent.steps,
        PENALTIES.index(descent.penalty),
        descent.momentum,
    )
    per_group = losses.transpose(0, 2, 1).reshape(n_blocks * LANES, -1)[:n_groups]
    coefficients = solved.transpose(0, 2, 1).reshape(n_blocks * LANES, n_experts)[:n_groups]
    return coefficients, per_group.mean(0)


def _to_lanes(values: np.ndarray, n_blocks: int) -> np.ndarray:
    """(groups, ...) -> (blocks, ..., LANES), the last block filled up with its first group."""
    padded = np.resize(values, (n_blocks * LANES, *values.shape[1:]))
    padded[: len(values)] = values
    blocks = padded.reshape(n_blocks, LANES, *values.shape[1:])
    return np.ascontiguousarray(np.moveaxis(blocks, 1, -1))


def _descend_lanes(grams: np.ndarray, *settings: object) -> tuple[np.ndarray, np.ndarray]:
    # One block has nothing to share out; waking the other threads would cost more than the work.
    return (_descend_blocks if len(grams) > 1 else _descend_blocks_serially)(grams, *settings)


def _blocks(grams, alpha, lr, weight_decay, steps, penalty, momentum):
    n_blocks, n_experts = grams.shape[0], grams.shape[1]
    solved = np.zeros((n_blocks, n_experts, LANES))
    losses = np.zeros((n_blocks, steps + 1, LANES))
    for block in numba.prange(n_blocks):
        _descend_block(
            grams[block],
            alpha[block],
            lr[block],
            weight_decay[block],
            steps,
            penalty,
            momentum,
            solved[block],
            losses[block],
        )
    return solved, losses


_descend_blocks = numba.njit(parallel=True, cache=True, error_model="numpy")(_blocks)
_descend_blocks_serially = numba.njit(cache=True, error_model="numpy")(_blocks)


@numba.njit(cache=True, error_model="numpy")
def _descend_block(gram, alpha, lr, weight_decay, steps, penalty, momentum, c, losses):
    n_experts = gram.shape[0]
    velocity = np.zeros((n_experts, LANES))
    h = np.zeros((n_experts, LANES))
    for step in range(steps + 1):
        _gradient(gram, alpha, penalty, c, h, losses[step])
        if step == steps:
            break
        for k in range(n_experts):
            for lane in range(LANES):
                slope = h[k, lane] + weight_decay[lane] * c[k, lane]
                velocity[k, lane] = momentum * velocity[k, lane] + slope
                c[k, lane] -= lr[lane] * velocity[k, lane]


@numba.njit(cache=True, error_model="numpy")
def _gradient(gram, alpha, penalty, c, h, loss):
    """`h` and the loss at c; the equations of `objective`, a lane for each group."""
    n_experts = gram.shape[0]
    p = np.empty((n_experts, LANES))
    inverse = np.empty((n_experts, LANES))
    a = np.zeros((n_experts, LANES))
    overlap = np.zeros((n_experts, LANES))
    q = np.zeros(LANES)
    total_a = np.zeros(LANES)
    n_active = np.zeros(LANES)
    for lane in range(LANES):
        loss[lane] = 0.0
    for i in range(n_experts):
        for lane in range(LANES):
            p[i, lane] = 0.0
        for j in range(n_experts):
            for lane in range(LANES):
                p[i, lane] += gram[i, j, lane] * c[j, lane]
        for lane in range(LANES):
            q[lane] += p[i, lane] * c[i, lane]
    for lane in range(LANES):
        q[lane] = max(q[lane], 0.0)
    for i in range(n_experts):
        for lane in range(LANES):
            square = gram[i, i, lane]
            own = square - 2.0 * p[i, lane] + q[lane]
            floored = max(own, SWALLOWED * SWALLOWED * square)
            # A zero task vector takes no part: its inverse norm is zero, so all its terms are.
            inverse[i, lane] = 1.0 / np.sqrt(floored) if square > 0.0 else 0.0
            n_active[lane] += 1.0 if square > 0.0 else 0.0
    for i in range(n_experts):
        for j in range(i):
            for lane in range(LANES):
                inner = gram[i, j, lane] - p[i, lane] - p[j, lane] + q[lane]
                product = inverse[i, lane] * inverse[j, lane]
                cosine = inner * product
                size = abs(cosine)
                pull = product if cosine > 0.0 else (-product if cosine < 0.0 else 0.0)
                a[i, lane] += pull
                a[j, lane] += pull
                overlap[i, lane] += size
                overlap[j, lane] += size
                loss[lane] += size
    for lane in range(LANES):
        n_active[lane] = 2.0 / (n_active[lane] * (n_active[lane] - 1.0))
        loss[lane] *= n_active[lane]
    for i in range(n_experts):
        for lane in range(LANES):
            own = overlap[i, lane] * inverse[i, lane] * inverse[i, lane]
            a[i, lane] = n_active[lane] * (a[i, lane] - own)
            total_a[lane] += a[i, lane]
    for lane in range(LANES):
        norm = np.sqrt(q[lane])
        if penalty == 0:
            loss[lane] += alpha[lane] * norm
            total_a[lane] += alpha[lane] / norm if norm > 0.0 else 0.0
        elif penalty == 1:
            loss[lane] += alpha[lane] * q[lane]
            total_a[lane] += 2.0 * alpha[lane]
    for i in range(n_experts):
        for lane in range(LANES):
            h[i, lane] = total_a[lane] * c[i, lane] - a[i, lane]
