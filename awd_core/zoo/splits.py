"""From passages to four balanced, disjoint splits per task.

The split is a function of the passage's owner alone: two passages of one docstring, and one
docstring asked about in two tasks, always fall into the same split.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from awd_core.evaluation.tasks import Example
from awd_core.zoo.labelling import Rule
from awd_core.zoo.sources import Passage, fraction

# Each split takes the owners whose fraction lies below its bound and not below the one before.
BOUNDS = {"test": 0.25, "validation": 0.40, "few_shot": 0.55, "train": 1.0}

# Examples wanted in each split: per task for the evaluated ones, per class for the others.
TEST_SIZE = 480
VALIDATION_SIZE = 240
FEW_SHOT_PER_CLASS = 20
TRAIN_PER_CLASS = 400


def split_of(passage: Passage) -> str:
    """Name of the split to which the passage's owner belongs."""
    place = fraction(f"{passage.library}/{passage.owner}")
    return next(split for split, bound in BOUNDS.items() if place < bound)


def near_key(text: str) -> str:
    """What near-duplicates share: the first 80 letters, in lower case."""
    return re.sub(r"[^a-z]", "", text.lower())[:80]


def build(rule: Rule, passages: Iterable[Passage]) -> dict[str, tuple[Example, ...]]:
    """The splits of one task: no two near-duplicates, every class equally often.

    Texts that occur with two labels are dropped, since neither is the right answer.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    first: dict[str, tuple[Passage, Example]] = {}
    for passage in passages:
        label = rule.label(passage)
        text = rule.text(passage) if label is not None else None
        if label is None or text is None:
            continue
        key = near_key(text)
        labels[key].add(label)
        first.setdefault(key, (passage, Example(text, label)))
    pools: dict[str, list[Example]] = {split: [] for split in BOUNDS}
    # The order within a split is pseudo-random, so that a prefix is a fair sample.
    for key in sorted((key for key in first if len(labels[key]) == 1), key=fraction):
        passage, example = first[key]
        pools[split_of(passage)].append(example)
    return {split: balanced(pool, rule.labels, split) for split, pool in pools.items()}


def balanced(pool: list[Example], labels: tuple[str, ...], split: str) -> tuple[Example, ...]:
    """The first n examples of every class, interleaved class by class."""
    wanted = {
        "test": TEST_SIZE // len(labels),
        "validation": VALIDATION_SIZE // len(labels),
        "few_shot": FEW_SHOT_PER_CLASS,
        "train": TRAIN_PER_CLASS,
    }[split]
    counts = Counter(example.label for example in pool)
    size = min(wanted, *(counts[label] for label in labels))
    by_label = [[example for example in pool if example.label == label][:size] for label in labels]
    return tuple(example for group in zip(*by_label, strict=True) for example in group)
