"""Every data-free method on whole models in float64 NumPy, from the formulas, nothing streamed.

A model is a dictionary of theta_0 by name, and one of task vectors (K, *shape). A reference takes
both, the coefficients and the knobs, and gives the merged task vector by name.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.reference import merging

State = dict[str, np.ndarray]
MASK = (1 << 64) - 1


def per_tensor(merge: Callable[..., np.ndarray]) -> Callable[..., State]:
    """A reference for a model from one for a tensor: (theta_0, tau, coefficients, **knobs)."""

    def of_model(base: State, tau: State, coefficients: np.ndarray, **knobs: Any) -> State:
        return {
            name: merge(base[name], tau[name], coefficients, **knobs)
            if base[name].size
            else base[name]
            for name in base
        }

    return of_model


def whole_vector(merge: Callable[..., np.ndarray]) -> Callable[..., State]:
    """A reference for a model from one for the flat task vectors: (tau, coefficients, **knobs)."""

    def of_model(base: State, tau: State, coefficients: np.ndarray, **knobs: Any) -> State:
        flat = np.concatenate([tau[name].reshape(len(coefficients), -1) for name in base], axis=1)
        ends = np.cumsum([base[name].size for name in base])[:-1]
        parts = np.split(merge(flat, coefficients, **knobs), ends)
        return {
            name: part.reshape(base[name].shape) for name, part in zip(base, parts, strict=True)
        }

    return of_model


def weighted(multipliers: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """sum_k l_k tau_k."""
    return np.tensordot(multipliers, tau, 1)


def flat(tau: np.ndarray) -> np.ndarray:
    """(K, n)."""
    return tau.reshape(len(tau), -1)


# Linear


def task_arithmetic(base: np.ndarray, tau: np.ndarray, lam: np.ndarray) -> np.ndarray:
    return weighted(lam, tau)


def average(base: np.ndarray, tau: np.ndarray, lam: np.ndarray) -> np.ndarray:
    return (base + tau).mean(0) - base


def weighted_average(base: np.ndarray, tau: np.ndarray, lam: np.ndarray) -> np.ndarray:
    return weighted(lam, base + tau) / lam.sum() - base


def negation(base: np.ndarray, tau: np.ndarray, lam: np.ndarray) -> np.ndarray:
    return -weighted(lam, tau)


def metrics_weighted(
    base: np.ndarray, tau: np.ndarray, metrics: np.ndarray, power: float, better: str
) -> np.ndarray:
    powers = metrics**power if better == "higher" else (1 / metrics) ** power
    return weighted_average(base, tau, powers)


def delta_weighted(base: np.ndarray, tau: np.ndarray, lam: np.ndarray, power: float) -> np.ndarray:
    norms = np.linalg.norm(flat(tau), axis=1)
    if not norms.any():
        return 0 * base
    powers = norms**power * (norms > 0)
    return weighted(lam * powers / powers.sum(), tau)


def model_stock(base: np.ndarray, tau: np.ndarray, lam: np.ndarray, centre: str) -> np.ndarray:
    n_experts = len(tau)
    if n_experts == 1:
        return tau[0]
    pairs = [(i, j) for i in range(n_experts) for j in range(i)]
    if centre == "unequal-norms":
        common = np.mean([(tau[i] * tau[j]).sum() for i, j in pairs])
        if common <= 0:
            return 0 * base
        squares = np.array([(t**2).sum() for t in tau])
        own = np.maximum(squares - common, 1e-12 * squares.max())
        return weighted(common / own / (1 + (common / own).sum()), tau)
    cosines = []
    for i, j in pairs:
        length = np.linalg.norm(tau[i]) * np.linalg.norm(tau[j])
        cosines.append((tau[i] * tau[j]).sum() / length if length else 0.0)
    cosines = np.clip(cosines, -1, 1)
    cosine = np.cos(np.mean(np.arccos(cosines))) if centre == "mean-angle" else np.mean(cosines)
    cosine = min(max(cosine, 0.0), 1.0)
    t = n_experts * cosine / (1 + (n_experts - 1) * cosine)
    return t * (base + tau).mean(0) + (1 - t) * base - base


def slerp(base: np.ndarray, tau: np.ndarray, lam: np.ndarray, t: float) -> np.ndarray:
    first, second = base + tau[0], base + tau[1]
    length = np.linalg.norm(first) * np.linalg.norm(second)
    cosine = (first * second).sum() / length if length else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second - base
    angle = np.arccos(cosine)
    arc = np.sin((1 - t) * angle) * first + np.sin(t * angle) * second
    return arc / np.sin(angle) - base


def nuslerp(base: np.ndarray, tau: np.ndarray, lam: np.ndarray) -> np.ndarray:
    t = lam[1] / lam.sum()
    length = np.linalg.norm(tau[0]) * np.linalg.norm(tau[1])
    cosine = np.clip((tau[0] * tau[1]).sum() / length, -1, 1) if length else 1.0
    angle = np.arccos(cosine)
    if np.sin(angle) < 1e-8:
        return (1 - t) * tau[0] + t * tau[1]
    return (np.sin((1 - t) * angle) * tau[0] + np.sin(t * angle) * tau[1]) / np.sin(angle)


def multi_slerp(base: np.ndarray, tau: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """With the tangent space that the formula says is not needed."""
    vectors, weights = flat(tau), lam / lam.sum()
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / np.where(norms > 0, norms, 1)[:, None]
    mean = weights @ units
    length = np.linalg.norm(mean)
    if length < 1e-8:
        return 0 * base
    mean = mean / length
    tangents = units - (units @ mean)[:, None] * mean * (norms > 0)[:, None]
    tangent = weights @ tangents
    size = np.linalg.norm(tangent)
    result = np.cos(size) * mean + (np.sin(size) / size * tangent if size else 0)
    return (weights @ norms * result).reshape(base.shape)


def karcher(
    base: np.ndarray, tau: np.ndarray, lam: np.ndarray, steps: int, tolerance: float
) -> np.ndarray:
    vectors = flat(base + tau)
    norms = np.linalg.norm(vectors, axis=1)
    if not norms.any():
        return 0 * base
    units = vectors[norms > 0] / norms[norms > 0, None]
    mean = units.mean(0)
    mean = mean / np.linalg.norm(mean)
    for _ in range(steps):
        tangent = np.zeros_like(mean)
        for unit in units:
            cosine = np.clip(unit @ mean, -1, 1)
            angle = np.arccos(cosine)
            ratio = angle / np.sin(angle) if np.sin(angle) > 0 else 1.0
            tangent += ratio * (unit - cosine * mean) / len(units)
        size = np.linalg.norm(tangent)
        if size <= tolerance:
            break
        mean = np.cos(size) * mean + np.sin(size) * tangent / size
        mean = mean / np.linalg.norm(mean)
    return (norms.mean() * mean).reshape(base.shape) - base


# Elementwise


def magnitudes(values: np.ndarray) -> np.ndarray:
    """|v| as float32 holds it: the precision in which entries are ranked."""
    return np.abs(values).astype(np.float32)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Which entries are among the `count` largest magnitudes of a vector; equal ones all are."""
    if count == 0:
        return np.zeros(values.shape, dtype=bool)
    size = magnitudes(values)
    return size >= np.sort(size)[len(size) - count]


def disjoint(tau: np.ndarray, signs: np.ndarray, lam: np.ndarray, merge: str) -> np.ndarray:
    """Mean, sum or largest of what has the elected sign."""
    agrees = (tau != 0) & (np.sign(tau) == signs)
    scaled = np.where(agrees, tau, 0) * lam[:, None]
    if merge == "max":
        pick = np.where(agrees, np.abs(tau), 0).argmax(0)
        return scaled[pick, np.arange(tau.shape[1])]
    return scaled.sum(0) / (np.maximum(agrees.sum(0), 1) if merge == "mean" else 1)


def ties(tau: np.ndarray, lam: np.ndarray, density: float, merge: str) -> np.ndarray:
    trimmed = merging.trim(tau, density)
    signs = np.sign(trimmed.sum(0))
    signs = np.where(signs == 0, np.sign(signs.sum()), signs)
    return disjoint(trimmed, signs, lam, merge)


def ties_mergekit(
    base: np.ndarray,
    tau: np.ndarray,
    weights: np.ndarray,
    density: float,
    normalize: bool,
    scale: float,
) -> np.ndarray:
    vectors = flat(tau)
    count = max(1, int(density * base.size)) if density else 0
    kept = np.stack([v * largest(v, count) for v in vectors]) * weights[:, None]
    signs = np.where(kept.sum(0) >= 0, 1, -1)
    agrees = np.sign(kept) == signs
    merged = (kept * agrees).sum(0)
    if normalize:
        divisor = (weights[:, None] * agrees).sum(0)
        merged = merged / np.where(divisor == 0, 1, divisor)
    return scale * merged.reshape(base.shape)


def uniforms(seed: int, expert: int, name: str, n: int) -> np.ndarray:
    """SplitMix64 in plain integers."""
    import hashlib

    digest = hashlib.blake2b(f"{seed}/{expert}/{name}".encode(), digest_size=8).digest()
    key, numbers = int.from_bytes(digest, "little"), []
    for index in range(1, n + 1):
        state = (key + index * 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(((state ^ (state >> 31)) >> 11) / 2**53)
    return np.array(numbers)


def masks(tau: State, seed: int = 0) -> State:
    """Uniform numbers of every element, in the shapes of tau."""
    return {
        name: np.stack(
            [uniforms(seed, k, name, vectors[0].size) for k in range(len(vectors))]
        ).reshape(vectors.shape)
        for name, vectors in tau.items()
    }


def l1(tau: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """What is kept, scaled to the L1 norm of each whole vector."""
    before, after = np.abs(flat(tau)).sum(1), np.abs(flat(kept)).sum(1)
    ratio = np.where(after > 0, before / np.where(after > 0, after, 1), 0)
    return kept * ratio.reshape(-1, *[1] * (tau.ndim - 1))


def dare(base: State, tau: State, lam: np.ndarray, drop: float, rescale: str) -> State:
    merged = {}
    for name, numbers in masks(tau).items():
        kept = tau[name] * (numbers >= drop)
        kept = kept / (1 - drop) if rescale == "unbiased" else l1(tau[name], kept)
        merged[name] = weighted(lam, kept)
    return merged


def dare_ties(
    base: State, tau: State, lam: np.ndarray, drop: float, density: float, merge: str
) -> State:
    kept = {name: tau[name] * (numbers >= drop) for name, numbers in masks(tau).items()}

    def merged(vectors: np.ndarray, lam: np.ndarray) -> np.ndarray:
        trimmed = merging.trim(vectors, density) / (1 - drop)
        signs = np.where(trimmed.sum(0) >= 0, 1, -1)
        return disjoint(trimmed, signs, lam, merge)

    return whole_vector(merged)(base, kept, lam)


def rows(vectors: np.ndarray) -> np.ndarray:
    """(K, rows, columns): a vector or a scalar is one row, trailing axes are one."""
    return vectors.reshape(len(vectors), vectors.shape[1] if vectors.ndim > 2 else 1, -1)


def della(
    base: State,
    tau: State,
    lam: np.ndarray,
    density: float,
    epsilon: float,
    rescale: str,
    elect: bool,
) -> State:
    merged = {}
    for name, numbers in masks(tau).items():
        if not base[name].size:
            merged[name] = base[name]
            continue
        vectors, uniform = rows(tau[name]), rows(numbers)
        n = vectors.shape[-1]
        ranks = np.argsort(np.argsort(np.abs(vectors), axis=-1, kind="stable"), axis=-1)
        share = ranks / (n - 1) if n > 1 else np.full(ranks.shape, 0.5)
        keep = density - epsilon + 2 * epsilon * share
        kept = vectors * (uniform < keep)
        kept = kept / keep if rescale == "unbiased" else l1(vectors, kept)
        kept = vectors if density == 1 else kept
        if elect:
            kept = flat(kept)
            signs = np.where(kept.sum(0) >= 0, 1, -1)
            result = disjoint(kept, signs, lam, "mean")
        else:
            result = weighted(lam, kept)
        merged[name] = result.reshape(base[name].shape)
    return merged


def breadcrumbs(
    base: np.ndarray, tau: np.ndarray, lam: np.ndarray, density: float, outliers: float
) -> np.ndarray:
    if base.ndim == 0:
        return weighted(lam, tau)
    vectors = rows(tau)
    n = vectors.shape[-1]
    ranks = np.argsort(np.argsort(-np.abs(vectors), axis=-1, kind="stable"), axis=-1)
    first = int(outliers * n)
    keep = (ranks >= first) & (ranks < first + int(density * n))
    return weighted(lam, vectors * keep).reshape(base.shape)


def breadcrumbs_tensor(
    base: np.ndarray, tau: np.ndarray, lam: np.ndarray, density: float, outliers: float
) -> np.ndarray:
    vectors, n = flat(tau), base.size
    keep = int(density * n)
    top = min(int(outliers * n), n - keep)
    kept = [v * (largest(v, keep + top if keep else 0) & ~largest(v, top)) for v in vectors]
    return weighted(lam, np.stack(kept)).reshape(base.shape)


def pcb(tau: np.ndarray, lam: np.ndarray, keep: float, clip: float, cross: str) -> np.ndarray:
    n_experts, n = tau.shape

    def minmax(values: np.ndarray) -> np.ndarray:
        low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
        return (values - low) / np.where(high > low, high - low, np.inf)

    def held(values: np.ndarray, low: float, high: float) -> np.ndarray:
        ordered = np.sort(values, axis=1)
        least = ordered[:, [min(int(n * low), n - 1)]]
        return np.clip(values, least, ordered[:, [int(n * (1 - high) - 1)]])

    size = held(np.abs(tau), clip, clip)
    within = np.exp(n_experts * minmax(size) ** 2)
    everyone = tau if cross == "raw" else np.sign(tau) * minmax(size)
    scores = within * np.tanh(tau * everyone.sum(0))
    shares = minmax(held(scores, 1 - keep, 0.0))
    total = (np.sign(tau) * size * shares * lam[:, None]).sum(0)
    return total / np.maximum(shares.sum(0), 1e-12)


def magmax(base: np.ndarray, tau: np.ndarray, lam: np.ndarray) -> np.ndarray:
    best, of = tau[0] * lam[0], np.abs(tau[0])
    for vector, coefficient in zip(tau[1:], lam[1:], strict=True):
        wins = np.abs(vector) >= of
        best, of = np.where(wins, vector * coefficient, best), np.maximum(of, np.abs(vector))
    return best


def sce(base: np.ndarray, tau: np.ndarray, lam: np.ndarray, select: float, fuse: str) -> np.ndarray:
    vectors = flat(tau)
    chosen = np.ones(base.size, dtype=bool)
    if select < 1:
        deviation = vectors.std(0)
        deviation[(vectors == vectors[0]).all(0)] = 0
        chosen = largest(deviation, int(select * np.count_nonzero(deviation)))
    energy = (vectors * chosen).__pow__(2).sum(1)
    if not energy.any():
        return 0 * base
    weights = energy / energy.sum()
    fused = vectors * chosen if fuse == "selected" else vectors
    signs = np.where(fused.sum(0) >= 0, 1, -1)
    left = weights[:, None] * ((np.sign(fused) == signs) & (fused != 0))
    total = left.sum(0)
    merged = (fused * left * lam[:, None]).sum(0) / np.where(total > 0, total, 1)
    return merged.reshape(base.shape)


def consensus(
    base: np.ndarray, tau: np.ndarray, lam: np.ndarray, threshold: float, agree: int
) -> np.ndarray:
    marks = np.abs(tau) >= threshold * np.abs(tau.sum(0) - tau)
    return weighted(lam, tau) * (marks.sum(0) >= min(agree, len(tau)))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum(0)


def widen(base: State, tau: State, lam: np.ndarray, ratio: float, calibration: float) -> State:
    return {name: _widen(name, base[name], tau[name], lam, ratio, calibration) for name in base}


def _widen(
    name: str,
    base: np.ndarray,
    tau: np.ndarray,
    lam: np.ndarray,
    ratio: float,
    calibration: float,
) -> np.ndarray:
    if not base.size:
        return base
    if base.ndim < 2:
        size = np.abs(tau)
        means = size.reshape(len(tau), -1).mean(1).reshape(-1, *[1] * base.ndim)
        weights = np.where(size > ratio * means, calibration, softmax(size))
        return (lam.reshape(-1, *[1] * base.ndim) * weights * tau).sum(0)
    before, vectors = base.reshape(len(base), -1), rows(tau)
    if "embed" in name:
        before, vectors = before.T, vectors.transpose(0, 2, 1)
    after = before + vectors
    length, was = np.linalg.norm(after, axis=1), np.linalg.norm(before, axis=0)
    turned = 1 - (after * before).sum(1) / (length * was)
    still = (vectors == 0).all(1)
    weights = np.zeros((len(tau), before.shape[1]))
    for change in (np.where(still, 0, np.abs(length - was)), np.where(still, 0, turned)):
        ranks = np.argsort(np.argsort(change, axis=1, kind="stable"), axis=1) / change.shape[1]
        important = ranks > ratio * ranks.mean(1, keepdims=True)
        weights += np.where(important, calibration, softmax(ranks)) / 2
    merged = (lam[:, None, None] * weights[:, None] * vectors).sum(0)
    return (merged.T if "embed" in name else merged).reshape(base.shape)


REFERENCES: dict[str, Callable[..., State]] = {
    "task_arithmetic": per_tensor(task_arithmetic),
    "average": per_tensor(average),
    "weighted_average": per_tensor(weighted_average),
    "negation": per_tensor(negation),
    "metrics_weighted": per_tensor(metrics_weighted),
    "delta_weighted": per_tensor(delta_weighted),
    "model_stock": per_tensor(model_stock),
    "slerp": per_tensor(slerp),
    "nuslerp": per_tensor(nuslerp),
    "multi_slerp": per_tensor(multi_slerp),
    "karcher": per_tensor(karcher),
    "ties": whole_vector(ties),
    "ties_mergekit": per_tensor(ties_mergekit),
    "dare": dare,
    "dare_ties": dare_ties,
    "della": della,
    "breadcrumbs": per_tensor(breadcrumbs),
    "breadcrumbs_tensor": per_tensor(breadcrumbs_tensor),
    "pcb": whole_vector(pcb),
    "magmax": per_tensor(magmax),
    "sce": per_tensor(sce),
    "consensus": per_tensor(consensus),
    "widen": widen,
}
