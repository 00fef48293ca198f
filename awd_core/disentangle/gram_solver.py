"""Gradient descent of AWD on Gram matrices, many groups at once.

Eight groups advance together, one in each lane of a SIMD register, and blocks of eight are spread
over the cores. Groups never mix, so neither the batch nor the number of threads changes a result.
"""

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np

from awd_core.disentangle.objective import (
    PARALLEL,
    PENALTIES,
    SWALLOWED,
    Penalty,
    mean_norms,
)
from awd_core.lanes import (
    LANES,
    any_less,
    first_inverse_root,
    load,
    multiply_add,
    pick_less,
    root,
    size,
    splat,
    store,
    with_sign,
)

Until = Literal["steps", "converged"]

# `converged` halves the step once this many steps in a row brought less than this share of the
# loss, and ends when the step is this much shorter than at the start.
PATIENCE, PROGRESS, SHORTEST = 20.0, 1e-6, 2.0**-24
# A loss that is lower by less than this share is lower by rounding.
ROUNDING = 1e-14

# Share of a squared norm that is left of a task vector beside the others, below which the group is
# looked at closely; and the eigenvalue of its cosines that is rounding of 0.
NEARLY_DEPENDENT, DEPENDENT = 1e-8, 1e-14

# Below this a float64 loses digits, and the first guess of an inverse root its meaning.
SMALLEST = 1e-300

# Blocks are dealt to this many slabs whatever the number of threads, so that the sums of the loss
# over groups always run in the same order.
_SLABS = 32


@dataclass(frozen=True)
class Descent:
    """How delta is found.

    Attributes:
        alpha: Norm constraint of every group in the paper's units, (groups,).
        lr: Step size beta of every group in the paper's units, (groups,).
        steps: Number of steps; with `converged` the most that are taken.
        penalty: `l2` (paper), `l2_squared` or `none`.
        momentum: Of the velocity, 0 for the paper's plain descent.
        weight_decay: L2 decay inside the gradient, one number or (groups,); 0 for the paper's.
        until: `steps`: the last iterate, as the paper. `converged`: the best iterate; the step is
            halved, from the best iterate on, whenever the loss makes no progress. That ends both
            divergence and the chatter of |cos| around 0.
        radius: Hard constraint ||delta|| <= radius mean_k ||tau_k||, one number or (groups,).
    """

    alpha: np.ndarray
    lr: np.ndarray
    steps: int
    penalty: Penalty = "l2"
    momentum: float = 0.0
    weight_decay: np.ndarray | float = 0.0
    until: Until = "steps"
    radius: np.ndarray | float = np.inf


@dataclass(frozen=True)
class Descended:
    """What a descent found.

    Attributes:
        coefficients: c, (groups, K).
        losses: L before every step and at the end, averaged over the groups that have two
            non-zero vectors, (steps + 1,). With `converged`, the lowest so far.
        steps: Steps that every group took before its step size reached its end, (groups,).
    """

    coefficients: np.ndarray
    losses: np.ndarray
    steps: np.ndarray


def descend(grams: np.ndarray, descent: Descent) -> tuple[np.ndarray, np.ndarray]:
    """Span coefficients (groups, K) and the loss before every step and at the end: see `run`."""
    found = run(grams, descent)
    return found.coefficients, found.losses


def run(grams: np.ndarray, descent: Descent) -> Descended:
    """Descend from delta = 0 in every group.

    Solved on G / s^2, s = mean_k ||tau_k||, with alpha s and beta / s^2: the exact equivariance
    of the descent, so that nothing under- or overflows at any norm. With penalty `l2_squared`
    alpha becomes alpha s^2, and weight decay s^2 wd.

    Where task vectors depend on one another (rows shorter than K, an expert that is a mean of
    others) many c give the same delta. The recursion of c would then wander off among them, at an
    exponential pace, until rounding moves delta too; so each step is projected on the c that
    differ in delta.

    Args:
        grams: (groups, K, K) float64.
        descent: The settings.

    Cost: O(groups K^2 steps); eight groups at K = 8 take a third of a microsecond a step.
    """
    n_groups, n_experts = grams.shape[:2]
    members = np.flatnonzero((np.einsum("gii->gi", grams) > 0).sum(1) >= 2)
    coefficients, taken = np.zeros((n_groups, n_experts)), np.zeros(n_groups)
    if not len(members):
        return Descended(coefficients, np.zeros(descent.steps + 1), taken.astype(np.int64))
    # One block has nothing to share out; waking the other threads would cost more than the work.
    sweep = _descend_blocks if len(members) > LANES else _descend_one_block
    converged = descent.until == "converged"
    grams = np.ascontiguousarray(grams)
    losses = sweep(
        grams,
        *_projectors(grams, members),
        members,
        _relative(grams, descent),
        descent.steps,
        PENALTIES.index(descent.penalty),
        descent.momentum,
        converged,
        coefficients,
        taken,
    )
    shown = int(taken.max()) + 1 if converged else descent.steps + 1
    return Descended(coefficients, losses[:shown] / len(members), taken.astype(np.int64))


def _relative(grams: np.ndarray, descent: Descent) -> np.ndarray:
    """1 / s^2, and alpha, beta, weight decay and radius in units of s: (groups, 5)."""
    scale = mean_norms(grams)
    scale = np.where(scale > 0, scale, 1.0)
    power = {"l2": 1, "l2_squared": 2, "none": 0}[descent.penalty]
    columns = (
        1 / scale**2,
        descent.alpha * scale**power,
        descent.lr / scale**2,
        descent.weight_decay * scale**2,
        descent.radius * np.ones_like(scale),
    )
    return np.stack(columns, axis=1)


def _projectors(grams: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For groups whose vectors depend on one another, P with G P = G that has no part in G c = 0.

    Returns:
        P, (some groups, K, K); and for every group its position there, -1 for all others.
    """
    positions = np.full(len(grams), -1)
    dependent = members[_nearly_dependent(grams, members)]
    positions[dependent] = np.arange(len(dependent))
    norms = np.sqrt(np.einsum("gii->gi", grams[dependent]))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    # Cosines have eigenvalues of one size even where norms differ by orders of magnitude.
    values, vectors = np.linalg.eigh(grams[dependent] * inverse[:, :, None] * inverse[:, None])
    kept = vectors * (values > DEPENDENT * values[:, -1:])[:, None]
    projectors = kept @ kept.transpose(0, 2, 1)
    return inverse[:, :, None] * projectors * norms[:, None], positions


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _nearly_dependent(grams, members):
    """Whether some vector of each group is all but a combination of those before it."""
    found = np.zeros(len(members), dtype=np.bool_)
    n_experts = grams.shape[1]
    for member in numba.prange(len(members)):
        gram, lower = grams[members[member]], np.zeros((n_experts, n_experts))
        for i in range(n_experts):
            if gram[i, i] <= 0.0:
                continue
            left = 1.0
            for j in range(i):
                if lower[j, j] > 0.0:
                    inner = gram[i, j] / np.sqrt(gram[i, i]) / np.sqrt(gram[j, j])
                    for k in range(j):
                        inner -= lower[i, k] * lower[j, k]
                    lower[i, j] = inner / lower[j, j]
                    left -= lower[i, j] ** 2
            if left < NEARLY_DEPENDENT:
                found[member] = True
                break
            lower[i, i] = np.sqrt(left)
    return found


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _descend_blocks(
    grams, projectors, positions, members, knobs, steps, penalty, momentum, converged, found, taken
):
    n_blocks = -(-len(members) // LANES)
    n_slabs = min(n_blocks, _SLABS)
    traces = np.zeros((n_slabs, steps + 1, LANES))
    for slab in numba.prange(n_slabs):
        for block in range(slab, n_blocks, n_slabs):
            _descend_block(
                grams,
                projectors,
                positions,
                members[block * LANES : (block + 1) * LANES],
                knobs,
                steps,
                penalty,
                momentum,
                converged,
                found,
                taken,
                traces[slab],
            )
    return _summed(traces)


# A function of its own and not the one above compiled again: numba's cache on disk knows a
# function by its name, so whichever were compiled first would stand in for both.
@numba.njit(cache=True, error_model="numpy")
def _descend_one_block(
    grams, projectors, positions, members, knobs, steps, penalty, momentum, converged, found, taken
):
    traces = np.zeros((1, steps + 1, LANES))
    _descend_block(
        grams,
        projectors,
        positions,
        members,
        knobs,
        steps,
        penalty,
        momentum,
        converged,
        found,
        taken,
        traces[0],
    )
    return _summed(traces)


@numba.njit(cache=True, error_model="numpy")
def _summed(traces):
    """Sums over slabs and lanes, one after the other: (steps + 1,)."""
    losses = np.zeros(traces.shape[1])
    for trace in traces:
        for step in range(len(losses)):
            for lane in range(LANES):
                losses[step] += trace[step, lane]
    return losses


@numba.njit(cache=True, error_model="numpy")
def _descend_block(
    grams,
    projectors,
    positions,
    members,
    knobs,
    steps,
    penalty,
    momentum,
    converged,
    coefficients,
    taken,
    trace,
):
    """Up to eight groups from delta = 0 to the end; adds their losses to `trace`."""
    n_experts = grams.shape[1]
    gram, floors, scalars = _gather(grams, members, knobs)
    projector = _gather_projectors(projectors, positions, members)
    alpha, start, decay = load(scalars, 0), load(scalars, 1), load(scalars, 2)
    radius, pairs, counted = load(scalars, 3), load(scalars, 4), load(scalars, 5)
    c, h = _rows(n_experts), _rows(n_experts)
    best_c, velocity = _rows(n_experts), _rows(n_experts)
    work = _rows(n_experts), _rows(n_experts), _rows(n_experts)
    zero, one, half = splat(0.0), splat(1.0), splat(0.5)
    inertia, patience, progress = splat(momentum), splat(PATIENCE), splat(1.0 - PROGRESS)
    lr, shortest, surely = start, start * splat(SHORTEST), splat(1.0 - ROUNDING)
    best = milestone = splat(np.inf)
    waited = done = zero
    last = steps
    for step in range(steps + 1):
        loss = _gradient(gram, floors, alpha, radius, pairs, penalty, c, h, work)
        if len(projector):
            _project(projector, h, work[0])
        moving = lr
        if converged:
            for k in range(n_experts):
                store(best_c, k, pick_less(loss, best * surely, load(c, k), load(best_c, k)))
            best = pick_less(loss, best * surely, loss, best)
            loss = best
            waited = pick_less(best, milestone * progress, zero, waited + one)
            milestone = pick_less(best, milestone * progress, best, milestone)
            # Out of patience: back to the best iterate, without velocity, at half the step.
            for k in range(n_experts):
                store(c, k, pick_less(waited, patience, load(c, k), load(best_c, k)))
            moving = pick_less(waited, patience, lr, zero)
            lr = pick_less(waited, patience, lr, lr * half)
            waited = pick_less(waited, patience, waited, zero)
            moving = pick_less(shortest, lr, moving, zero)
        store(trace, step, multiply_add(counted, loss, load(trace, step)))
        if step == steps:
            break
        done = done + (pick_less(shortest, lr, one, zero) if converged else one)
        for k in range(n_experts):
            slope = multiply_add(decay, load(c, k), load(h, k))
            speed = multiply_add(inertia, load(velocity, k), slope)
            store(velocity, k, pick_less(zero, moving, speed, zero))
            store(c, k, load(c, k) - moving * speed)
        if converged and not any_less(shortest, lr):
            last = step
            break
    for step in range(last + 1, steps + 1):
        store(trace, step, multiply_add(counted, best, load(trace, step)))
    store(scalars, 0, done)
    found = best_c if converged else c
    for lane in range(len(members)):
        taken[members[lane]] = scalars[0, lane]
        for k in range(n_experts):
            coefficients[members[lane], k] = found[k, lane]


@numba.njit(cache=True, error_model="numpy")
def _rows(n):
    """(n, LANES) zeros that begin where a cache line does: a row is then never two lines."""
    memory = np.zeros((n + 1) * LANES)
    first = -(memory.ctypes.data // 8) % LANES
    return memory[first : first + n * LANES].reshape(n, LANES)


@numba.njit(cache=True, error_model="numpy")
def _gather(grams, members, knobs):
    """Lower triangles of G / s^2, floors of the squared norms, and what is one number a group.

    Lanes without a group of their own repeat the last one and count for nothing.
    """
    n_experts = grams.shape[1]
    gram, floors, scalars = _rows(n_experts * (n_experts + 1) // 2), _rows(n_experts), _rows(6)
    for lane in range(LANES):
        group = members[min(lane, len(members) - 1)]
        at, n_active, widest = 0, 0, 0.0
        for i in range(n_experts):
            for j in range(i + 1):
                gram[at, lane] = grams[group, i, j] * knobs[group, 0]
                squares = grams[group, i, i] * grams[group, j, j]
                if squares > 0.0:
                    widest = max(widest, 1.0 - grams[group, i, j] ** 2 / squares)
                at += 1
            # A zero task vector takes no part: its floor is infinite, its inverse norm 0.
            square = gram[at - 1, lane]
            floor = max(SWALLOWED * SWALLOWED * square, SMALLEST)
            floors[i, lane] = floor if square > 0.0 else np.inf
            n_active += square > 0.0
        for knob in range(4):
            scalars[knob, lane] = knobs[group, knob + 1]
        # Vectors on one line, as single numbers are, stay where they are.
        if widest < PARALLEL:
            scalars[1, lane] = 0.0
        scalars[4, lane] = 2.0 / (n_active * (n_active - 1))
        scalars[5, lane] = 1.0 if lane < len(members) else 0.0
    return gram, floors, scalars


@numba.njit(cache=True, error_model="numpy")
def _gather_projectors(projectors, positions, members):
    """P of every lane, row by row; nothing where no lane needs one."""
    n_experts = projectors.shape[1]
    needed = False
    for group in members:
        needed |= positions[group] >= 0
    rows = _rows(n_experts * n_experts if needed else 0)
    for lane in range(LANES if needed else 0):
        position = positions[members[min(lane, len(members) - 1)]]
        for i in range(n_experts):
            for j in range(n_experts):
                own = 1.0 if i == j else 0.0
                own = projectors[position, i, j] if position >= 0 else own
                rows[i * n_experts + j, lane] = own
    return rows


@numba.njit(cache=True, error_model="numpy")
def _project(projector, h, work):
    """h <- P h."""
    n_experts = len(h)
    for i in range(n_experts):
        total = splat(0.0)
        for j in range(n_experts):
            total = multiply_add(load(projector, i * n_experts + j), load(h, j), total)
        store(work, i, total)
    for i in range(n_experts):
        store(h, i, load(work, i))


@numba.njit(cache=True, error_model="numpy", inline="always")
def _gradient(gram, floors, alpha, radius, pairs, penalty, c, h, work):
    """Project c on the ball, then `h` and the loss there; the equations of `objective`."""
    n_experts = len(floors)
    p, inverse, overlap = work
    zero, one, two, huge = splat(0.0), splat(1.0), splat(2.0), splat(np.inf)
    _multiply(gram, c, p)
    q = zero
    for i in range(n_experts):
        q = multiply_add(load(p, i), load(c, i), q)
    q = pick_less(zero, q, q, zero)
    norm = root(q)
    bounded = any_less(radius, huge)
    # The nearest point of the ball ||delta|| <= r lies on the ray through delta.
    if bounded:
        shrink = pick_less(radius, norm, radius / norm, one)
        norm, q = shrink * norm, shrink * shrink * q
        for i in range(n_experts):
            store(c, i, shrink * load(c, i))
            store(p, i, shrink * load(p, i))
    at = 0
    for i in range(n_experts):
        at += i + 1
        own, floor = load(gram, at - 1) - two * load(p, i) + q, load(floors, i)
        own = pick_less(own, floor, floor, own)
        store(inverse, i, pick_less(floor, huge, _inverse_root(own), zero))
        store(overlap, i, zero)
        store(h, i, zero)
    # overlap_i = sum_j |M_ij| / n_j and h_i = sum_j sign(M_ij) / n_j, every pair once.
    at = 0
    for i in range(n_experts):
        shift, mine = load(p, i) - q, load(inverse, i)
        pull, share = load(h, i), load(overlap, i)
        for j in range(i):
            inner = load(gram, at) - load(p, j) - shift
            at += 1
            length = size(inner)
            sign = pick_less(zero, length, with_sign(one, inner), zero)
            share = multiply_add(length, load(inverse, j), share)
            pull = multiply_add(sign, load(inverse, j), pull)
            store(overlap, j, multiply_add(length, mine, load(overlap, j)))
            store(h, j, multiply_add(sign, mine, load(h, j)))
        at += 1
        store(h, i, pull)
        store(overlap, i, share)
    loss, total = zero, zero
    for i in range(n_experts):
        mine = load(inverse, i)
        a = (load(h, i) - load(overlap, i) * mine * mine) * mine * pairs
        loss = multiply_add(load(overlap, i), mine, loss)
        total = total + a
        store(h, i, a)
    loss = loss * pairs * splat(0.5)
    if penalty == 0:
        loss = multiply_add(alpha, norm, loss)
        total = total + pick_less(zero, norm, alpha / norm, zero)
    elif penalty == 1:
        loss = multiply_add(alpha, q, loss)
        total = total + two * alpha
    for i in range(n_experts):
        store(h, i, total * load(c, i) - load(h, i))
    return loss


@numba.njit(cache=True, error_model="numpy", inline="always")
def _inverse_root(a):
    """1 / sqrt(a) within two units in the last place."""
    half, negative = splat(0.5), splat(-0.5) * a
    y = first_inverse_root(a)
    # Every step squares the error: 3.5e-2, 1.8e-3, 4.9e-6, 3.6e-11, rounding.
    for _ in range(4):
        y = multiply_add(y, multiply_add(negative * y, y, half), y)
    return y


@numba.njit(cache=True, error_model="numpy", inline="always")
def _multiply(gram, c, p):
    """p = G c from the lower triangle of G."""
    at = 0
    for i in range(len(p)):
        mine, total = load(c, i), splat(0.0)
        for j in range(i):
            total = multiply_add(load(gram, at), load(c, j), total)
            store(p, j, multiply_add(load(gram, at), mine, load(p, j)))
            at += 1
        store(p, i, multiply_add(load(gram, at), mine, total))
        at += 1
