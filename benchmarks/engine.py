"""What a merge is made of: starting, reading, hashing, and every compiled kernel, one thread each.

    python -m benchmarks engine

Eight experts of one 1024 x 1024 matrix each, bfloat16, in chunks as a merge reads them. GB are
those of base and experts; the processor time is that of the thread. Best of seven.
"""

import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import awd_core as awd
from awd_core import (
    dropping,
    element_kernels,
    gram_kernels,
    kernels,
    magnitude,
    magnitude_kernels,
    merge_kernels,
    stored_lanes,
)
from awd_core.elements import DENSITIES, MASK_SHARES, UPDATE_SCALES, ElementCounts
from awd_core.merge import plan_merge
from awd_core.planned_vectors import tensor_vectors
from awd_core.stream import Reader, spans
from benchmarks.pass_vs_read import draw

N_EXPERTS, MATRICES = 8, 4
_COLLECTED = "import gc; gc.disable = gc.freeze = lambda: None;"
_KERNEL = (
    "import numpy as np; from awd_core.gram_kernels import add_in_order;"
    " add_in_order(np.zeros(3), np.ones((5, 3)))"
)
_COMMAND = "import sys; from awd_core.__main__ import main; sys.argv = ['awd', '{}']; main()"
STARTS = {
    "Python": "pass",
    "torch": "import torch",
    "numba": "import numba",
    "awd_core": "import awd_core",
    "awd_core, garbage collected": f"{_COLLECTED} import awd_core",
    "awd_core and a kernel": f"import awd_core; {_KERNEL}",
    "the same, made ready": f"from awd_core import compiled; compiled.make_ready(); {_KERNEL}",
    "awd --help": _COMMAND.format("--help"),
    "awd inspect zoo": _COMMAND.format("inspect', 'zoo"),
}


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    work()
    found = []
    for _ in range(7):
        begun = time.thread_time()
        work()
        found.append(time.thread_time() - begun)
    return min(found)


def started(code: str) -> float:
    """Wall seconds of a process from its start to its end."""
    found = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - begun)
    return min(found)


def kernels_of(places: list[Path]) -> tuple[dict[str, Callable[[], object]], int]:
    """Every kernel on one chunk, by what it does, and the bytes of the chunk."""
    base, *experts = map(str, places)
    plan = plan_merge(awd.Recipe(base=base, experts=experts, coefficient=0.3), device="cpu")
    tensor = plan.tensors[0]
    piece = next(iter(tensor_vectors(plan, tensor).sweep()))
    stored = piece.stored
    assert stored is not None
    n, bytes_of, alone = stored.n, stored.packed.for_kernels, stored.for_kernels
    rows, ones = n // stored.columns, np.ones(N_EXPERTS)
    multipliers = np.append(0.0, ones)
    written, update = np.empty(2 * n + 64, np.uint8), np.empty(n + 64)
    histogram = np.zeros((N_EXPERTS, 1 << 16), np.int64)
    magnitude_kernels.upper_histogram(alone, n, histogram)
    ranks = [int(0.2 * n)]
    bins = np.array([magnitude.bins_of_ranks(row, ranks)[0][0] for row in histogram], np.int32)
    floors = (bins << 16).view(np.float32).astype(np.float64)
    keys, limit = dropping.keys(piece, N_EXPERTS), dropping.limit(0.8)
    before, after = np.empty((2, N_EXPERTS, rows))
    bits = np.empty((N_EXPERTS, n // 8), np.uint8)
    merge_kernels.kept_magnitudes(alone, n, keys, limit, before, after, bits)
    drawn = replace(stored, streams=keys, limit=limit)
    left, known = drawn.for_kernels, replace(drawn, kept=bits).for_kernels
    grams, squares = np.empty((rows, N_EXPERTS * (N_EXPERTS + 1) // 2)), np.empty(rows)
    levels = (floors,) * len(DENSITIES)
    counted = tuple(vars(ElementCounts.zeros(N_EXPERTS)).values())
    span = next(iter(spans(tensor, whole_rows=True)))
    read = Reader(tensor, plan.experts, plan.device)
    where = ones[:, None], 0, stored.columns, n, 3e38, stored_lanes.BFLOAT16, written
    elected = floors, ones, ones, ones, 1e-9, 1.0, 1.0, update
    data, offsets, codes, _ = bytes_of
    return {
        "read from the page cache": lambda: read(span, scratch=True),
        "SHA-256": lambda: hashlib.sha256(data.data).digest(),
        "widen to float64": stored.packed.widened,
        "weighted sum": lambda: kernels.weighted_sum(*bytes_of, *where),
        "row Grams": lambda: gram_kernels.row_grams(*bytes_of, n, stored.columns, grams, squares),
        "magnitudes, upper bits": lambda: magnitude_kernels.upper_histogram(alone, n, histogram),
        "magnitudes, lower bits": lambda: magnitude_kernels.lower_histogram(
            alone, n, bins, histogram
        ),
        "TIES": lambda: merge_kernels.elected_sum(alone, n, *elected),
        "DARE, L1 norms and what is kept": lambda: merge_kernels.kept_magnitudes(
            alone, n, keys, limit, before, after, bits
        ),
        "DARE, sum": lambda: merge_kernels.linear_sum(left, n, multipliers, update),
        "DARE, sum of what is known to be kept": lambda: merge_kernels.linear_sum(
            known, n, multipliers, update
        ),
        "add to the base, round": lambda: kernels.add_to_base(
            data, offsets[0], codes[0], update[:n], 3e38, stored_lanes.BFLOAT16, written
        ),
        "all counts over elements": lambda: element_kernels.count(
            *bytes_of, n, levels, MASK_SHARES, UPDATE_SCALES, *counted
        ),
    }, 2 * n * (N_EXPERTS + 1)


def main() -> None:
    """Print both tables."""
    print("| starting | s |\n|---|---|")
    for name, code in STARTS.items():
        print(f"| {name} | {started(code):.2f} |", flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work, n_bytes = kernels_of(draw(Path(scratch), MATRICES, N_EXPERTS))
        print("\n| a chunk of 8 experts | GB per processor second |\n|---|---|")
        for name, call in work.items():
            print(f"| {name} | {n_bytes / 1e9 / seconds(call):.2f} |", flush=True)


if __name__ == "__main__":
    main()
