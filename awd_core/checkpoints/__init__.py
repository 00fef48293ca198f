"""Opens what people have. Only headers are read here; weights are read by `awd_core.stream`."""

from dataclasses import replace
from pathlib import Path

from awd_core.checkpoints import hub
from awd_core.checkpoints.base_fit import BaseFit, base_fit
from awd_core.checkpoints.checkpoint import Checkpoint, ExpertTensor
from awd_core.checkpoints.estimate import Estimate
from awd_core.checkpoints.header import StoredTensor
from awd_core.checkpoints.lora import CONFIG as ADAPTER_CONFIG
from awd_core.checkpoints.lora import LoraCheckpoint, open_lora
from awd_core.checkpoints.preflight import Preflight, Problem, base_problems, preflight
from awd_core.checkpoints.weights import WeightCheckpoint, open_weight_file, open_weights
from awd_core.errors import CheckpointError, nearest

ZOO_PREFIX = "zoo:"

__all__ = [
    "BaseFit",
    "Checkpoint",
    "Estimate",
    "ExpertTensor",
    "LoraCheckpoint",
    "Preflight",
    "Problem",
    "StoredTensor",
    "WeightCheckpoint",
    "base_fit",
    "base_problems",
    "common_rows",
    "open_checkpoint",
    "preflight",
]


def open_checkpoint(
    source: str | Path, label: str | None = None, *, allow_pickle: bool = False
) -> Checkpoint:
    """Open a model folder, a weight file, a PEFT LoRA folder, a hub id or a member of the zoo.

    Only headers are read. A path that exists is never looked up on a network. A hub id
    (`owner/name` or `owner/name@revision`) is taken from the local Hugging Face cache and
    downloaded as far as needed. `zoo:base` and `zoo:TASK` are the shipped base and experts.

    Args:
        source: Folder, `.safetensors` file, hub id or `zoo:NAME`.
        label: Short name for charts; the folder's name when left out.
        allow_pickle: Whether pickled weights (`pytorch_model.bin`) may be opened where there are
            no others. PyTorch's restricted unpickler reads them: tensors only, no code.

    Raises:
        CheckpointError: With where, what was found and what to do.
    """
    path, name, known = _locate(str(source), allow_pickle)
    label = label or name
    if not path.is_dir():
        return open_weight_file(path, label, known, allow_pickle=allow_pickle)
    if (path / ADAPTER_CONFIG).exists():
        return open_lora(path, label, known, allow_pickle=allow_pickle)
    return open_weights(path, label, known, allow_pickle=allow_pickle)


def common_rows(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, allowed to have other tokens than the base: only common rows are merged."""
    return replace(checkpoint, common_rows=True)


def _locate(source: str, allow_pickle: bool) -> tuple[Path, str, str]:
    """Path, short name, and what opens it again from any working directory."""
    if source.startswith(ZOO_PREFIX):
        return _from_zoo(source), source.removeprefix(ZOO_PREFIX), source
    path = Path(source).expanduser()
    if _exists(path):
        path = path.absolute()
        return path, path.resolve().name if path.is_dir() else path.stem, str(path)
    if hub.is_hub_id(source):
        return hub.fetch(source, allow_pickle=allow_pickle), source, source
    raise CheckpointError(
        "There is no such folder",
        where=source,
        expected="a folder on this machine, or a hub id of the form owner/name",
        remedy="`zoo` stands for base and experts at once, and is given alone; one is `zoo:NAME`."
        if source == "zoo"
        else "Check the spelling of the path.",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _from_zoo(source: str) -> Path:
    from awd_core import zoo

    name = source.removeprefix(ZOO_PREFIX)
    folders = {"base": zoo.base_folder()}
    folders |= dict(zip(zoo.TASK_KEYS, zoo.expert_folders(), strict=True))
    if name not in folders:
        raise CheckpointError(
            "The zoo has no member of this name",
            where=source,
            remedy=nearest(name, tuple(folders)),
        )
    return folders[name]
