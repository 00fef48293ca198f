"""The texts of the eight tasks on disk: built from the sources, and read back for training.

Shipped are the splits that evaluation and heads need. The training texts are built again from
the installed sources, without anything that stands in a shipped split.
"""

import json
from collections.abc import Callable
from pathlib import Path

from awd_core.evaluation.tasks import SPLITS, Example, Task
from awd_core.zoo import sources
from awd_core.zoo.labelling import RULES, Rule
from awd_core.zoo.splits import build, near_key

# The four splits of one task by name, and those of all tasks by key.
Splits = dict[str, tuple[Example, ...]]
Corpus = dict[str, Splits]


def build_corpus(progress: Callable[[str], None] | None = None) -> Corpus:
    """All splits of all tasks, from the sources installed here.

    Args:
        progress: Called with the name of what is read or built next.
    """
    report = progress or (lambda _: None)
    passages = sources.read_all(report)
    corpus: Corpus = {}
    for rule in RULES:
        report(rule.title)
        corpus[rule.key] = build(rule, passages)
    return corpus


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Writes each task's description and shipped splits, and the versions of the sources.

    Args:
        corpus: All splits of all tasks.
        folder: Receives one folder per task.
    """
    for rule in RULES:
        task_folder = folder / rule.key
        task_folder.mkdir(parents=True, exist_ok=True)
        _write_json(describe(rule), task_folder / "task.json")
        for split in SPLITS:
            _write_lines(corpus[rule.key][split], task_folder / f"{split}.jsonl")
    _write_json(sources.versions(), folder / "versions.json")


def describe(rule: Rule) -> dict[str, object]:
    """What `task.json` says of a task."""
    return {
        "key": rule.key,
        "title": rule.title,
        "question": rule.question,
        "labels": list(rule.labels),
    }


def training_examples(task: Task, corpus: Corpus) -> tuple[Example, ...]:
    """The training texts of a task without near-duplicates of its shipped texts.

    The corpus may come from other versions of the sources than the shipped texts, whose splits
    then need not agree.

    Args:
        task: The task, with its shipped splits.
        corpus: All splits of all tasks, built here.
    """
    shipped = {near_key(example.text) for split in SPLITS for example in task.examples(split)}
    train = corpus[task.key]["train"]
    return tuple(example for example in train if near_key(example.text) not in shipped)


def _write_json(content: object, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_lines(examples: tuple[Example, ...], path: Path) -> None:
    lines = [
        json.dumps({"text": example.text, "label": example.label}, ensure_ascii=False) + "\n"
        for example in examples
    ]
    path.write_text("".join(lines), encoding="utf-8")
