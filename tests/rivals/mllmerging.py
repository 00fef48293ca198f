"""Run in a process of its own: MLLMerging's functions on given task vectors.

    python mllmerging.py CLONE TASK_VECTORS.npz RESULTS.npz

Arrays come as `NUMBER:NAME` (task vector of one expert); results go as `METHOD:NAME`, computed in
float32 beside a base of zero. Of the clone two files are imported, without the package around them.
Nothing of AWD Studio is imported here.
"""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch

METHODS = Path("fusion_bench", "fusion_bench", "method", "yongxianwei_merging")


def main() -> None:
    """All methods."""
    clone, given_file, found_file = sys.argv[1:]
    package = types.ModuleType("authors")
    package.__path__ = [str(Path(clone) / METHODS)]
    sys.modules["authors"] = package
    authors = importlib.import_module("authors.functional")
    given = np.load(given_file)
    experts: list[dict[str, torch.Tensor]] = []
    for key in given.files:
        number, name = key.split(":")
        experts += [{} for _ in range(int(number) + 1 - len(experts))]
        experts[int(number)][name] = torch.from_numpy(given[key])
    base = {name: torch.zeros_like(tau) for name, tau in experts[0].items()}
    common = (base, experts, None)
    results = {
        "wudi": authors.wudi_merge_v1(*common, progress=False),
        "optmerge": authors.wudi_merge_v2(*common, progress=False),
        "swudi": authors.swudi_merge(*common, truncate_rank_ratio=0.65, progress=False),
        "aswudi": authors.aswudi_merge(*common, progress=False),
        "aswudi_entropy": authors.aswudi_merge(*common, auto_rank_method="entropy", progress=False),
        "aswudi_participation": authors.aswudi_merge(
            *common, auto_rank_method="participation", progress=False
        ),
    }
    arrays = {
        f"{method}:{name}": value.numpy()
        for method, state in results.items()
        for name, value in state.items()
    }
    np.savez(found_file, **arrays)


if __name__ == "__main__":
    main()
