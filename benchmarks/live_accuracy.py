"""The accuracy panel: merge of the zoo in memory and its evaluation on the live sample.

    python -m benchmarks.live_accuracy

Budget: 2 s for the fixed sample. Merge and evaluation are timed apart.
"""

import time

import numpy as np

import awd_core as awd
from awd_core import zoo
from awd_core.evaluation import LIVE_SAMPLE, Encoder, evaluate

RUNS = 7
SETTINGS = {
    "task arithmetic": {},
    "AWD (model) + task arithmetic": {"disentangle": {"granularity": "model"}},
    "AWD (row) + task arithmetic": {"disentangle": {"granularity": "row"}},
    "TIES": {"method": "ties"},
}


def main() -> None:
    """Measure and print."""
    base = awd.open_checkpoint("zoo:base")
    experts = [awd.open_checkpoint(f"zoo:{key}") for key in zoo.TASK_KEYS]
    study, tasks = awd.collect(base, experts), zoo.tasks()
    print(f"{LIVE_SAMPLE} texts a task, {len(tasks)} tasks; median of {RUNS} runs (s):\n")
    print("| setting | merge | evaluation | together |\n|---|---|---|---|")
    for name, fields in SETTINGS.items():
        recipe = awd.Recipe(base=base.source, experts=[e.source for e in experts], **fields)
        times = []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            plan = awd.plan_merge(recipe, study=study, checkpoints=(base, experts))
            encoder = Encoder.from_state(base.path, awd.merged_state(plan))
            merged = time.perf_counter()
            evaluate(encoder, tasks, "validation", LIVE_SAMPLE)
            times.append((merged - start, time.perf_counter() - merged))
        # The first run tokenises the texts and compiles kernels, once for a server.
        merge, evaluation = np.median(times[1:], axis=0)
        print(f"| {name} | {merge:.2f} | {evaluation:.2f} | {merge + evaluation:.2f} |", flush=True)


if __name__ == "__main__":
    main()
