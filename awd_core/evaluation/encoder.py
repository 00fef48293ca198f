"""A text encoder: unit-norm mean-pooled features of short texts, as the heads expect them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from awd_core.errors import AwdError, Cancelled
from awd_core.lazy import torch

MAX_TOKENS = 32

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Tensors that checkpoints carry or lack by habit, and that no feature depends on.
IRRELEVANT = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")


class Encoder:
    """f(x) = u / ||u||, u = the mean of the last hidden states over the tokens of x.

    Texts are cut at `max_tokens`. Batches are formed from the texts sorted by length, in float32
    and evaluation mode, so equal weights give equal bits, wherever the weights came from.

    Args:
        model: The model, giving `last_hidden_state`.
        folder: Folder of the tokenizer.
        max_tokens: Of a text that are read, special tokens included.
    """

    # Texts that are encoded together.
    batch_size: ClassVar[int] = 32

    def __init__(self, model: torch.nn.Module, folder: Path, max_tokens: int = MAX_TOKENS) -> None:
        self.model = model.eval()
        self.folder = folder
        self.max_tokens = max_tokens

    @classmethod
    def from_folder(cls, folder: Path | str) -> Encoder:
        """The encoder of a Hugging Face folder with safetensors weights, in one file or shards.

        Args:
            folder: Holds config, tokenizer and weights.
        """
        return cls.from_state(folder, read_state(Path(folder)))

    @classmethod
    def from_state(
        cls,
        config_folder: Path | str,
        state: Mapping[str, torch.Tensor],
        max_tokens: int = MAX_TOKENS,
    ) -> Encoder:
        """The encoder with the given weights and the config and tokenizer of a folder.

        float32 tensors are used in place, without a copy: leave them unchanged. A head that stands
        beside the encoder (`classifier.weight` beside `bert.*`) is left out.

        Args:
            config_folder: Holds config and tokenizer; its weights are not read.
            state: Tensors by their names in the checkpoint; other float types are cast to float32.
            max_tokens: Of a text that are read.
        """
        folder = Path(config_folder)
        if not (folder / "config.json").is_file():
            raise AwdError("This folder holds no model config", where=folder / "config.json")
        # Importing transformers takes seconds, which nobody who only reads tasks should wait for.
        from transformers import AutoConfig, AutoModel
        from transformers.initialization import no_init_weights

        with no_init_weights():
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        prefix = f"{model.base_model_prefix}."
        beside_head = any(name.startswith(prefix) for name in state)
        weights = {
            name.removeprefix(prefix): value.float().cpu() if value.is_floating_point() else value
            for name, value in state.items()
            if name.startswith(prefix) or not beside_head
        }
        _load(model, weights, folder)
        return cls(model, folder, max_tokens)

    def features(
        self,
        texts: Sequence[str],
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Unit-norm features, float32, (texts, features), in the order of the texts.

        Args:
            texts: The texts; equal ones are encoded once.
            cancel: Asked before each batch; when it says True, `Cancelled` is raised.
            progress: Called after each batch with the numbers of texts done and wanted.
        """
        unique = list(dict.fromkeys(texts))
        tokens = [self.tokens(text) for text in unique]
        order = sorted(range(len(unique)), key=lambda i: (len(tokens[i]), unique[i]))
        found: dict[str, torch.Tensor] = {}
        for start in range(0, len(order), self.batch_size):
            if cancel is not None and cancel():
                raise Cancelled()
            batch = order[start : start + self.batch_size]
            with torch.inference_mode():
                features = self.encode(*padded([tokens[i] for i in batch]))
            found.update(zip((unique[i] for i in batch), features, strict=True))
            if progress is not None:
                progress(len(found), len(unique))
        with torch.inference_mode():
            return torch.stack([found[text] for text in texts])

    def encode(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Features of one batch of padded token ids; gradients flow where they are enabled."""
        hidden = self.model(input_ids=ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, cut at `max_tokens`, special tokens included."""
        return _token_ids(str(self.folder), text, self.max_tokens)


def padded(tokens: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded to the longest, and the attention mask, both (texts, length)."""
    length = max(len(ids) for ids in tokens)
    ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids in tokens])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in tokens])
    return ids, mask


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's `model.safetensors`, or of the shards named in its index."""
    from safetensors.torch import load_file

    if (folder / WEIGHTS_FILE).is_file():
        return load_file(folder / WEIGHTS_FILE)
    if not (folder / INDEX_FILE).is_file():
        raise AwdError(
            "This folder holds no weights",
            where=folder,
            expected=f"{WEIGHTS_FILE} or {INDEX_FILE}",
        )
    shards = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].values()
    state: dict[str, torch.Tensor] = {}
    for shard in sorted(set(shards)):
        state.update(load_file(folder / shard))
    return state


def _load(model: torch.nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Assigns weights to a model; a missing, unknown or mis-shaped tensor is an error."""
    try:
        found = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise AwdError(
            "These weights do not fit the model's config", where=folder, received=str(error)
        ) from error
    for problem, names in (
        ("The weights lack tensors of the model", found.missing_keys),
        ("The weights hold tensors that the model does not have", found.unexpected_keys),
    ):
        relevant = [name for name in names if not name.endswith(IRRELEVANT)]
        if relevant:
            raise AwdError(problem, where=folder, received=", ".join(relevant[:5]))


@lru_cache(maxsize=4)
def tokenizer(folder: str):
    """The tokenizer of a folder, loaded once."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@lru_cache(maxsize=50_000)
def _token_ids(folder: str, text: str, max_tokens: int) -> tuple[int, ...]:
    return tuple(tokenizer(folder)(text, truncation=True, max_length=max_tokens)["input_ids"])
