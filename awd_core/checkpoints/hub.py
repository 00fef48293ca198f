"""Models and adapters of the Hugging Face hub: the files that are needed, from cache or network."""

import glob
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from awd_core.checkpoints import lora, weights
from awd_core.errors import CheckpointError

# What belongs beside weights: configuration, tokenizer, templates, model card. Not in subfolders:
# those hold other formats or other models.
_SIDECARS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_CARD = "README.md"


def is_hub_id(source: str) -> bool:
    """Whether this can be `owner/name` or `owner/name@revision`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = source.partition("@")[0]
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not source.startswith((".", "/", "~"))


def fetch(source: str, *, allow_pickle: bool = False) -> Path:
    """The folder in the local cache that holds a model or adapter, downloaded as far as needed.

    `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` mean what they mean to
    `huggingface_hub`. Without a network the snapshot in the cache is taken.

    Args:
        source: `owner/name` or `owner/name@revision`.
        allow_pickle: Whether `.bin` weights are fetched where there are no others.

    Raises:
        CheckpointError: There is no such repository, or it cannot be reached.
    """
    from huggingface_hub import constants

    name, _, revision = source.partition("@")
    if constants.HF_HUB_OFFLINE:
        return _from_cache(source, name, revision or None, None)
    try:
        return _download(name, revision or None, allow_pickle)
    except CheckpointError:
        raise
    except Exception as error:  # the client raises many kinds; each means: not to be had from there
        return _from_cache(source, name, revision or None, error)


def _download(name: str, revision: str | None, allow_pickle: bool) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info = HfApi().model_info(name, revision=revision)
    present = [sibling.rfilename for sibling in info.siblings or ()]

    def read_index(file: str) -> list[str]:
        index = Path(hf_hub_download(name, file, revision=info.sha))
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))

    wanted = needed(present, read_index, allow_pickle=allow_pickle)
    pickled = [file for file in present if file.endswith(weights.PICKLED_SUFFIXES)]
    safe = any(file.endswith(weights.SAFE_SUFFIX) for file in wanted)
    if pickled and not safe and not allow_pickle:
        raise weights.pickle_refused(name, ", ".join(pickled[:3]))
    patterns = [glob.escape(file) for file in wanted]
    # By its own name, so that the cache remembers which commit a branch was.
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _from_cache(source: str, name: str, revision: str | None, cause: Exception | None) -> Path:
    """The snapshot in the cache, unless the hub answered that there is no such thing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    refused = isinstance(cause, HfHubHTTPError) and cause.response.status_code < 500
    for file in ("config.json", lora.CONFIG):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str) and not refused:
            return Path(found).parent
    raise _not_fetched(source, cause) from cause


def needed(
    present: Sequence[str],
    read_index: Callable[[str], Sequence[str]],
    *,
    allow_pickle: bool = False,
) -> list[str]:
    """Of the files of a repository, those that opening and merging it needs.

    Args:
        present: Every file of the repository.
        read_index: Names of the shards that an index names.
        allow_pickle: Whether `.bin` weights count where there are no others.
    """
    top = [file for file in present if "/" not in file]
    sidecars = [file for file in top if file == _CARD or file.endswith(_SIDECARS)]
    return [*sidecars, *_weights(top, read_index, allow_pickle)]


def _weights(
    top: Sequence[str], read_index: Callable[[str], Sequence[str]], allow_pickle: bool
) -> Sequence[str]:
    if lora.CONFIG in top:
        kinds = (lora.WEIGHTS, lora.PICKLED_WEIGHTS)[: 2 if allow_pickle else 1]
        return [file for file in kinds if file in top][:1]
    for index, single, suffix in (
        (weights.INDEX, weights.SINGLE, weights.SAFE_SUFFIX),
        (weights.PICKLED_INDEX, weights.PICKLED, weights.PICKLED_SUFFIXES[0]),
    )[: 2 if allow_pickle else 1]:
        if index in top:
            return [file for file in read_index(index) if file in top]
        if single in top:
            return [single]
        if shards := [file for file in top if file.endswith(suffix)]:
            return shards
    return []


def _not_fetched(source: str, cause: Exception | None) -> CheckpointError:
    first = (str(cause).splitlines() or [""])[0]
    offline = "HF_HUB_OFFLINE is set, and it is not in the cache"
    return CheckpointError(
        "This is neither a folder here nor a model that could be fetched from the hub",
        where=source,
        received=f"{type(cause).__name__}: {first}" if cause else offline,
        remedy="Check the spelling, your connection and HF_TOKEN; offline, point at a folder.",
    )
