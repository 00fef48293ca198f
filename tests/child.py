"""Work in a process of its own, slow enough to be killed at any step."""

import time
from pathlib import Path
from typing import Any

import awd_core as awd
from awd_core import files

SHARD_BYTES = 2_000_000


def work(kind: str, out: Path, base: Path, experts: list[Path], begun: Any, pause: float) -> None:
    """Collect a study, or merge by the method `kind`; every finished tensor is made to last."""
    files.Journal.SECONDS_BETWEEN = 0.0
    begun.set()

    def slowly(step: awd.Progress) -> None:
        time.sleep(pause)

    if kind == "collect":
        opened = [awd.open_checkpoint(one) for one in (base, *experts)]
        awd.collect(opened[0], opened[1:], out, device="cpu", progress=slowly)
    else:
        recipe = awd.Recipe(base=str(base), experts=list(map(str, experts)), method=kind)
        awd.merge(recipe, out, device="cpu", shard_bytes=SHARD_BYTES, progress=slowly)
