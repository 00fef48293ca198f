"""AWD in the Gram domain: against descent in the space of the weights, and its latency.

    python -m benchmarks.awd_solver [--full-steps 300] [--repeats 40]

The opponent is not a slow one: float64, BLAS for all inner products, no autograd. Its time for 300
steps is measured over fewer steps where --full-steps says so, and multiplied; the coefficients are
compared after the steps that were really done.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from analysis.measures import MEASURES
from analysis.view import View
from awd_core import Settings, Study, solve
from awd_core.disentangle import alpha_path
from awd_core.disentangle.gram_solver import Descent, run
from awd_core.disentangle.objective import gradient_coefficients
from awd_core.elements import ElementCounts
from awd_core.lanes import LANES
from awd_core.study import SourceInfo, TensorInfo

STEPS, ALPHA, LR = 300, 0.1, 0.01


def task_vectors(n_experts: int, n: int, seed: int = 0) -> np.ndarray:
    """(K, n) with cosines near .1 and norms near 2.5, as in the paper's setting."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_experts, n))
    vectors += 0.33 * rng.standard_normal(n)
    vectors *= 2.5 / np.sqrt(1.1 * n) * rng.uniform(0.5, 1.5, (n_experts, 1))
    return vectors


def full_space(tau: np.ndarray, steps: int) -> np.ndarray:
    """delta after descent in R^n, (n,)."""
    delta, v = np.zeros(tau.shape[1]), np.empty_like(tau)
    for _ in range(steps):
        np.subtract(tau, delta, out=v)
        gradient = -gradient_coefficients(v @ v.T) @ v
        norm = np.linalg.norm(delta)
        if norm:
            gradient += ALPHA / norm * delta
        delta -= LR * gradient
    return delta


def quantiles(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """p50 and p95 in milliseconds, after one call that warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.quantile(times, 0.5) * 1e3), float(np.quantile(times, 0.95) * 1e3)


def against_full_space(most_steps: int, repeats: int) -> None:
    """The first table."""
    print("Gram solver against descent in the space of the weights, K = 8, 300 steps:\n")
    print("| parameters | full space | Gram | ratio | full-space steps | relative difference |")
    print("|---|---|---|---|---|---|")
    for n in (100_000, 1_000_000, 10_000_000):
        tau = task_vectors(8, n)
        gram = (tau @ tau.T)[None]
        steps = min(STEPS, max(3, most_steps * 100_000 // n))
        start = time.perf_counter()
        theirs = full_space(tau, steps)
        full = (time.perf_counter() - start) * STEPS / steps
        descent = Descent(np.array([ALPHA]), np.array([LR]), STEPS)
        gram_ms = quantiles(lambda gram=gram, d=descent: run(gram, d), 10 * repeats)[0]
        same = run(gram, Descent(np.array([ALPHA]), np.array([LR]), steps)).coefficients[0]
        apart = np.linalg.norm(same @ tau - theirs) / np.linalg.norm(theirs)
        print(
            f"| {n:,} | {full:.2f} s{'' if steps == STEPS else ' (extrapolated)'} |"
            f" {gram_ms:.2f} ms | {full * 1e3 / gram_ms:,.0f} | {steps} | {apart:.1e} |",
            flush=True,
        )


def latency(repeats: int) -> None:
    """The second table."""
    threads = numba.get_num_threads()
    print(
        f"\nGram solver alone, 300 steps, {threads} threads (ms). CPU: processor time over threads,"
    )
    print("which is p50 on a machine that does nothing else.\n")
    print("| groups | K | p50 | p95 | CPU |\n|---|---|---|---|---|")
    cases = [(groups, 8) for groups in (1, 50, 300, 1000, 20_000, 83_000)]
    for groups, n_experts in cases + [(300, k) for k in (2, 4, 16, 32)]:
        grams = many_grams(groups, n_experts)
        ones = np.ones(groups)
        descent = Descent(ALPHA * ones, LR * 6 * ones, STEPS)
        count = repeats if groups < 10_000 else max(3, repeats // 5)
        start = time.process_time()
        p50, p95 = quantiles(lambda grams=grams, descent=descent: run(grams, descent), count)
        cpu = (time.process_time() - start) * 1e3 / (count + 1)
        cpu /= threads if groups > LANES else 1
        print(f"| {groups:,} | {n_experts} | {p50:.2f} | {p95:.2f} | {cpu:.2f} |", flush=True)


def many_grams(groups: int, n_experts: int) -> np.ndarray:
    """(groups, K, K), each of its own."""
    rng = np.random.default_rng(1)
    own = rng.standard_normal((groups, n_experts, 40)) * 0.4
    own += rng.standard_normal((groups, 1, 40)) * 0.13
    return own @ own.transpose(0, 2, 1)


def live(repeats: int) -> None:
    """The third table: what a slider waits for."""
    study = study_of(many_grams(300, 8))
    granularities = ("model", "block", "tensor")

    # The budget is for what follows from Grams; other measures are read from the study as they are.
    of_grams = [measure for measure in MEASURES if measure.needs == "gram"]

    def redraw(settings: Settings) -> None:
        view = View(study, solve(study, settings), np.full(8, 0.3))
        for measure in of_grams:
            for scope in measure.scopes:
                measure.of(view, scope)

    print("\nSolve and every measure of Grams in every scope, 300 tensors, K = 8 (ms):\n")
    print("| granularity | p50 | p95 |\n|---|---|---|")
    for granularity in granularities:
        settings = Settings(granularity=granularity)
        p50, p95 = quantiles(lambda settings=settings: redraw(settings), repeats)
        print(f"| {granularity} | {p50:.1f} | {p95:.1f} |", flush=True)
    p50, p95 = quantiles(lambda: alpha_path(study), repeats)
    print(f"\nAlpha path, model, K = 8, 200 points: p50 {p50:.1f} ms, p95 {p95:.1f} ms.")


def study_of(grams: np.ndarray) -> Study:
    """A study in memory, without weights."""
    n_tensors, n_experts = grams.shape[:2]
    source = SourceInfo("", "", "", "model", "")
    tensors = [
        TensorInfo(
            f"layer.{n // 12}.dense.{n}.weight", (64, 64), "float32", f"block {n // 12}", "x"
        )
        for n in range(n_tensors)
    ]
    sources = tuple(SourceInfo(f"expert {k}", "", "", "model", "") for k in range(n_experts))
    counts = ElementCounts.zeros(n_experts, n_tensors)
    ones = np.ones(n_tensors)
    return Study(Path(), source, sources, tuple(tensors), (), grams, ones, counts, "benchmark")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full-steps", type=int, default=STEPS, help="at 100,000 parameters")
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    against_full_space(arguments.full_steps, arguments.repeats)
    latency(arguments.repeats)
    live(arguments.repeats)


if __name__ == "__main__":
    main()
