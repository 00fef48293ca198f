"""Opens what people have. Only headers are read here; weights are read by `awd_core.stream`."""

from pathlib import Path

from awd_core.checkpoints.checkpoint import Checkpoint, ExpertTensor
from awd_core.checkpoints.header import StoredTensor
from awd_core.checkpoints.lora import CONFIG as ADAPTER_CONFIG
from awd_core.checkpoints.lora import LoraCheckpoint, open_lora
from awd_core.checkpoints.preflight import Estimate, Preflight, Problem, preflight
from awd_core.checkpoints.weights import WeightCheckpoint, open_weights
from awd_core.errors import CheckpointError, nearest

ZOO_PREFIX = "zoo:"

__all__ = [
    "Checkpoint",
    "Estimate",
    "ExpertTensor",
    "LoraCheckpoint",
    "Preflight",
    "Problem",
    "StoredTensor",
    "WeightCheckpoint",
    "open_checkpoint",
    "preflight",
]


def open_checkpoint(source: str | Path, label: str | None = None) -> Checkpoint:
    """Open a model folder, a PEFT LoRA folder, a hub id or a member of the zoo, from headers only.

    A path that exists is never looked up on a network. A hub id (`owner/name` or
    `owner/name@revision`) is resolved through the local Hugging Face cache and downloaded if
    needed. `zoo:base` and `zoo:TASK` are the shipped base and experts.

    Args:
        source: Folder, hub id or `zoo:NAME`.
        label: Short name for charts; the folder's name when left out.

    Raises:
        CheckpointError: With where, what was found and what to do.
    """
    path, name, known = _locate(str(source))
    if not path.is_dir():
        raise CheckpointError(
            "A checkpoint is a folder",
            where=path,
            received="a file",
            expected="a folder with config.json and safetensors weights, or a PEFT adapter folder",
            remedy="Point at the folder that holds this file.",
        )
    label = label or name
    if (path / ADAPTER_CONFIG).exists():
        return open_lora(path, label, known)
    return open_weights(path, label, known)


def _locate(source: str) -> tuple[Path, str, str]:
    """Folder, short name, and what opens it again from any working directory."""
    if source.startswith(ZOO_PREFIX):
        return _from_zoo(source), source.removeprefix(ZOO_PREFIX), source
    path = Path(source).expanduser()
    if path.exists():
        path = path.absolute()
        return path, path.resolve().name, str(path)
    return _from_hub(source), source, source


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


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, _, revision = source.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(
            "There is no such folder",
            where=source,
            expected="a folder on this machine, or a hub id of the form owner/name",
            remedy="Check the spelling of the path.",
        )
    try:
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md"]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; each means: not to be had
        raise CheckpointError(
            "This is neither a folder here nor a model that could be fetched from the hub",
            where=source,
            received=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            remedy="Check the spelling, your connection and HF_TOKEN; offline, point at a folder.",
        ) from error
