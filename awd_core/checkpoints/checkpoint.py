"""What the rest of the core knows of a checkpoint: its tensors, and how to read one by rows."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from awd_core.checkpoints.header import StoredTensor, samples
from awd_core.lazy import torch
from awd_core.linear_algebra import LowRank


class ExpertTensor(abc.ABC):
    """One tensor of an expert, readable by rows."""

    @abc.abstractmethod
    def task_vector(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows `start:stop` of tau = theta - theta_0, given those rows of theta_0 in float64.

        In a float type that holds them exactly.
        """

    @abc.abstractmethod
    def weights(self, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Rows `start:stop` of theta itself, given those rows of theta_0 in float64."""

    def low_rank(self) -> LowRank | None:
        """tau of the whole tensor as a product in float64; None where it is no stored product."""
        return None


@dataclass(frozen=True)
class Checkpoint(abc.ABC):
    """Base or expert on disk, opened from headers only.

    Attributes:
        label: Short name for charts and messages.
        source: What opens it again: an absolute path, a hub id, or `zoo:NAME`.
        path: The folder on this machine; the file, for weights without a folder.
        stored: Every tensor in its files, by name, in file order.
        config: `config.json` (or `adapter_config.json`) as it stands.
        common_rows: Whether a tensor over tokens may have other tokens than the base's; only the
            rows that both have are then merged.
    """

    label: str
    source: str
    path: Path
    stored: Mapping[str, StoredTensor]
    config: Mapping[str, Any]
    common_rows: bool = field(default=False, kw_only=True)

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """`weights` or `lora`."""

    @abc.abstractmethod
    def tensor(self, base: StoredTensor) -> ExpertTensor:
        """The counterpart of one tensor of the base in this expert."""

    @abc.abstractmethod
    def touches(self, name: str) -> bool:
        """Whether tau may be other than zero in this tensor, as far as headers tell."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that decide the weights, each once, in order."""
        return tuple(dict.fromkeys(tensor.file for tensor in self.stored.values()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, types and three 4 KiB samples of every tensor.

        Tells checkpoints apart in milliseconds; it is not proof against a deliberate change of a
        few weights, for which `provenance.json` records full hashes.
        """
        digest = hashlib.sha256(b"common rows" if self.common_rows else b"")
        for tensor, blocks in samples(self.stored.values()):
            # Types as torch prints them: studies are known by their fingerprints.
            digest.update(f"{tensor.name}|{tensor.shape}|torch.{tensor.dtype}\n".encode())
            digest.update(b"".join(blocks))
        return digest.hexdigest()
