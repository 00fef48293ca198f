"""A task: a question about short texts, its possible answers, and examples in three splits."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import safe_open

from awd_core.errors import AwdError, nearest
from awd_core.lazy import torch

SPLITS = ("few_shot", "validation", "test")


@dataclass(frozen=True)
class Example:
    """A text and the label that is right for it."""

    text: str
    label: str


@dataclass(frozen=True)
class Task:
    """One classification of short texts, with its frozen head.

    Attributes:
        key: Name in files and in code.
        title: Name shown to users.
        question: The question that the labels answer, as shown to users.
        labels: The possible answers, in the order of the head's rows.
        folder: Holds one `SPLIT.jsonl` per split, each line `{"text": ..., "label": ...}`.
        heads_file: Safetensors file holding the head of this task under its key.
    """

    key: str
    title: str
    question: str
    labels: tuple[str, ...]
    folder: Path
    heads_file: Path

    def examples(self, split: str, limit: int | None = None) -> tuple[Example, ...]:
        """The examples of a split, or a fixed sample of `limit` of them.

        The sample takes every class equally often (up to one), always the same texts, and a
        smaller sample is part of every larger one.

        Args:
            split: `few_shot`, `validation` or `test`.
            limit: Number of examples wanted; None for all of them.
        """
        if split not in SPLITS:
            raise AwdError(
                f"The task {self.key} has no split of this name",
                received=split,
                remedy=nearest(split, SPLITS),
            )
        if limit is not None and limit < 1:
            raise AwdError("A sample needs at least one example", received=limit, expected=">= 1")
        return _interleaved(self._splits(split), self.labels)[:limit]

    def _splits(self, split: str) -> tuple[Example, ...]:
        if split not in self._cache:
            self._cache[split] = read_examples(self.folder / f"{split}.jsonl", self.labels)
        return self._cache[split]

    @cached_property
    def _cache(self) -> dict[str, tuple[Example, ...]]:
        return {}

    @cached_property
    def head(self) -> torch.Tensor:
        """Unit-norm class prototypes, float32, (classes, features), in the order of `labels`."""
        if not self.heads_file.is_file():
            raise AwdError("The file of heads is missing", where=self.heads_file)
        with safe_open(self.heads_file, framework="pt") as heads:
            if self.key not in heads.keys():  # noqa: SIM118  safe_open is not a mapping
                raise AwdError(f"There is no head for the task {self.key}", where=self.heads_file)
            head = heads.get_tensor(self.key)
        if head.shape[0] != len(self.labels):
            raise AwdError(
                f"The head of the task {self.key} does not fit its labels",
                where=self.heads_file,
                received=f"{head.shape[0]} rows",
                expected=f"{len(self.labels)} rows, one per label",
            )
        return head


def load_task(folder: Path, heads_file: Path) -> Task:
    """The task described by `task.json` in a folder.

    Args:
        folder: Holds `task.json` (key, title, question, labels) and the splits.
        heads_file: Safetensors file holding the task's head.
    """
    path = folder / "task.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        return Task(
            key=described["key"],
            title=described["title"],
            question=described["question"],
            labels=tuple(described["labels"]),
            folder=folder,
            heads_file=heads_file,
        )
    except (OSError, ValueError, KeyError) as error:
        raise AwdError(
            "A task cannot be read",
            where=path,
            received=f"{type(error).__name__}: {error}",
            expected="a JSON object with key, title, question and labels",
        ) from error


def read_examples(path: Path, labels: tuple[str, ...]) -> tuple[Example, ...]:
    """The examples of a JSON lines file; every label has to be one of the task's.

    Args:
        path: File with one `{"text": ..., "label": ...}` per line.
        labels: The labels that may occur.
    """
    if not path.is_file():
        raise AwdError("The examples of a task are missing", where=path, expected="a JSONL file")
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            example = Example(fields["text"], fields["label"])
        except (ValueError, KeyError, TypeError) as error:
            raise AwdError(
                "An example cannot be read",
                where=f"{path}, line {number}",
                received=line[:80],
                expected='{"text": ..., "label": ...}',
            ) from error
        if example.label not in labels:
            raise AwdError(
                "An example has a label that its task does not have",
                where=f"{path}, line {number}",
                received=example.label,
                expected=", ".join(labels),
            )
        examples.append(example)
    return tuple(examples)


def _interleaved(examples: tuple[Example, ...], labels: tuple[str, ...]) -> tuple[Example, ...]:
    """Examples reordered class by class in turn, so that every prefix is balanced."""
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_label[example.label].append(example)
    longest = max((len(group) for group in by_label.values()), default=0)
    return tuple(
        by_label[label][place]
        for place in range(longest)
        for label in labels
        if place < len(by_label[label])
    )
