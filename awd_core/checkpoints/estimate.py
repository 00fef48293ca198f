"""What the pass and a merge will cost, from sizes alone, against what this machine has free."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from awd_core.checkpoints.checkpoint import Checkpoint
from awd_core.checkpoints.lora import LoraCheckpoint

Verdict = Literal["fits", "tight", "will not fit", "unknown"]
_WORST: tuple[Verdict, ...] = ("will not fit", "tight", "unknown", "fits")

# Python, torch and the chunks in flight; the same for models of any size.
RESIDENT_BYTES = 700_000_000
# What a pass or a merge reads in a second on two cores, for the rough answer: minutes or hours.
BYTES_PER_SECOND = 500_000_000


@dataclass(frozen=True)
class Resource:
    """Something the work needs, in bytes.

    Attributes:
        needed: How much.
        free: How much there is; None where that cannot be told.
    """

    needed: int
    free: int | None

    @property
    def verdict(self) -> Verdict:
        """`tight` from four fifths of what is free."""
        if self.free is None:
            return "unknown"
        if self.needed > self.free:
            return "will not fit"
        return "tight" if self.needed > 0.8 * self.free else "fits"


@dataclass(frozen=True)
class Estimate:
    """What the pass and a merge will cost.

    Attributes:
        parameters: Elements of the base that can be merged.
        bytes_to_read: Bytes of base and experts, read once by the pass and once by a merge.
        bytes_to_write: Bytes of the merged weights in the base's own types.
        memory: Resident memory of either, for methods that work element by element.
        disk: The merged folder and the study.
        seconds: Of reading everything once, roughly.
    """

    parameters: int
    bytes_to_read: int
    bytes_to_write: int
    memory: Resource
    disk: Resource
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The worse of memory and disk."""
        found = (self.memory.verdict, self.disk.verdict)
        return next(verdict for verdict in _WORST if verdict in found)


def estimate(base: Checkpoint, experts: Sequence[Checkpoint], out: Path | None = None) -> Estimate:
    """Sizes from headers, and what is free here.

    Args:
        base: The base.
        experts: Its experts.
        out: Where the merge will be written; the working folder when left out.
    """
    floats = [tensor for tensor in base.stored.values() if tensor.is_float]
    n_bytes = [sum(tensor.n_bytes for tensor in one.stored.values()) for one in (base, *experts)]
    rows = sum(tensor.shape[0] for tensor in floats if len(tensor.shape) >= 2)
    study = 4 * len(experts) * (len(experts) + 1) * rows
    return Estimate(
        parameters=sum(tensor.n_elements for tensor in floats),
        bytes_to_read=sum(n_bytes),
        bytes_to_write=n_bytes[0],
        memory=Resource(RESIDENT_BYTES + _largest_product(base, experts), free_memory()),
        disk=Resource(n_bytes[0] + study, _free_disk(out or Path.cwd())),
        seconds=sum(n_bytes) / BYTES_PER_SECOND,
    )


def _largest_product(base: Checkpoint, experts: Sequence[Checkpoint]) -> int:
    """A merge that is one adapter multiplies out one weight at a time."""
    adapted = {n for one in experts if isinstance(one, LoraCheckpoint) for n in one.factors}
    sizes = (base.stored[name].n_elements for name in adapted if name in base.stored)
    return 4 * max(sizes, default=0)


def _free_disk(out: Path) -> int | None:
    out = out.expanduser().absolute()
    folder = next((one for one in (out, *out.parents) if one.exists()), None)
    return None if folder is None else shutil.disk_usage(folder).free


def free_memory() -> int | None:
    """What the system, or the container this runs in, has to give."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="utf-8").strip()
        used = (group / "memory.current").read_text(encoding="utf-8").strip()
        free += [int(limit) - int(used)] if limit.isdigit() else []
    except (OSError, ValueError):  # another system, or no container
        pass
    return min(free, default=None)


def in_words(seconds: float) -> str:
    """A rough time: `under 1 s`, `about 20 s`, `about 5 min`."""
    if seconds < 1:
        return "under 1 s"
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"
