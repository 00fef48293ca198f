"""Token embeddings and output heads: rows that stand for tokens, tied tensors, unequal tables.

Told by name and shape alone; there is no table of architectures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from awd_core.checkpoints.checkpoint import ExpertTensor
from awd_core.checkpoints.header import StoredTensor, read_rows
from awd_core.lazy import torch

_HEAD = re.compile(r"(lm_head|embed_out|predictions\.(decoder|bias))")
_EMBEDDING = re.compile(
    r"(embed_tokens|word_embed|\bwte\b|\bshared\.|tok_embed|token_embed|embed_in)"
)


def is_head(name: str) -> bool:
    """Whether this is an output head over tokens, by its name."""
    return bool(_HEAD.search(name))


def is_vocabulary(name: str) -> bool:
    """Whether the rows of this tensor stand for tokens, by its name."""
    return is_head(name) or bool(_EMBEDDING.search(name))


def same_but_for_rows(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes of a tensor over tokens differ in the number of tokens alone."""
    return is_vocabulary(name) and len(one) == len(other) > 0 and one[1:] == other[1:]


def tied_embedding(
    name: str, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> StoredTensor | None:
    """The embedding that serves as the head `name` in a checkpoint that stores no such head.

    None where its configuration unties the two, or several embeddings could be meant.
    """
    if name in stored or not is_head(name) or not name.endswith(".weight"):
        return None
    if not config or config.get("tie_word_embeddings", True) is not True:
        return None
    tables = [one for one in stored.values() if _EMBEDDING.search(one.name) and len(one.shape) == 2]
    return tables[0] if len(tables) == 1 else None


def tied_heads(
    stored: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Heads that are stored although the configuration ties them: the embedding of each.

    Whoever loads such a checkpoint takes the embedding, so the head's own numbers never count.
    """
    if not config.get("tie_word_embeddings", False):
        return {}
    found = {}
    for name, tensor in stored.items():
        others = {other: one for other, one in stored.items() if other != name}
        embedding = tied_embedding(name, others, config)
        if embedding is not None and embedding.shape == tensor.shape:
            found[name] = embedding
    return found


@dataclass(frozen=True)
class CommonRows(ExpertTensor):
    """A tensor over tokens with fewer or more of them than the base: the common ones count.

    Rows that the expert does not have stay as in the base; rows that the base does not have are
    left out.
    """

    stored: StoredTensor

    def task_vector(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of theta - theta_0; zero beyond the common ones."""
        return self.weights(start, stop, base) - base

    def weights(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows of theta; theta_0 beyond the common ones."""
        result = base.clone()
        if len(self.stored.shape) < 2:  # a vector is one row, and its columns are the tokens
            common = min(self.stored.n_elements, base.shape[1])
            row = read_rows(self.stored, 0, 1)[:, :common]
            result[:, :common] = row.to(base.device, torch.float64)
        elif start < (end := min(stop, self.stored.shape[0])):
            rows = read_rows(self.stored, start, end)
            result[: end - start] = rows.to(base.device, torch.float64)
        return result
