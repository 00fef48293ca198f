"""Base, every expert and a merge on texts of one's own.

An encoder answers a text x with argmax_c <f(x), p_c>, f(x) its unit-norm mean-pooled feature, as
on the tasks of the zoo. The prototypes p_c are made from the base on the first texts of each label
and shared by all models; these texts are not asked. A head that a checkpoint brings is not used:
experts have heads of their own, a merge has none.

A causal language model has its mean loss, -1/N sum log p(token | tokens before) in nats, over
windows of at most `WINDOW` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, nan, sqrt
from typing import Literal, TypeAlias

from awd_core.checkpoints import Checkpoint, open_checkpoint
from awd_core.checkpoints.estimate import estimate
from awd_core.errors import AwdError
from awd_core.evaluation.encoder import Encoder
from awd_core.evaluation.language_model import LanguageModel
from awd_core.evaluation.own_texts import OwnText
from awd_core.lazy import torch
from awd_core.merge import merged_state, plan_merge
from awd_core.naming import with_distinct_labels
from awd_core.progress import CancelFn, ProgressFn, Reporter
from awd_core.recipe import Recipe
from awd_core.study import Study

BASE, MERGE = "base", "merge"
MOST_TOKENS = 128  # of a text that an encoder reads
MOST_SHOTS = 16  # texts of a label that make its prototype, at most half of them
CAUSAL = ("ForCausalLM", "LMHeadModel")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")

Metric = Literal["accuracy", "loss"]
State: TypeAlias = "dict[str, torch.Tensor]"
# The name of a model, and what loads its weights.
Models: TypeAlias = "Sequence[tuple[str, Callable[[], State]]]"


@dataclass(frozen=True)
class Score:
    """One number of one model on one task.

    Attributes:
        model: `base`, the label of an expert, or `merge`.
        task: The texts that belong together.
        metric: `accuracy`, or `loss` in nats a token.
        value: The number.
        standard_error: Over texts: sqrt(p (1 - p) / n) of an accuracy, that of a ratio of sums of a
            loss; NaN where there is one text.
        n: Texts that were asked.
        tokens: Tokens that were predicted; 0 for an accuracy.
    """

    model: str
    task: str
    metric: Metric
    value: float
    standard_error: float
    n: int
    tokens: int = 0

    @property
    def perplexity(self) -> float:
        """exp(loss); NaN for an accuracy."""
        return exp(min(self.value, 700.0)) if self.metric == "loss" else nan


@dataclass(frozen=True)
class Quiz:
    """The texts of one task for an encoder.

    Attributes:
        task: Its name.
        labels: The possible answers.
        shots: Texts that make the prototypes.
        asked: Texts that are asked.
    """

    task: str
    labels: tuple[str, ...]
    shots: tuple[OwnText, ...]
    asked: tuple[OwnText, ...]


def metric_of(base: Checkpoint) -> Metric:
    """What this kind of model is measured by.

    Raises:
        AwdError: It is neither a text encoder nor a causal language model.
    """
    config = base.config
    names = config.get("architectures") or [config.get("model_type", "unknown")]
    has_tokenizer = any((base.path / name).exists() for name in TOKENIZERS)
    if not has_tokenizer or "vocab_size" not in config or config.get("is_encoder_decoder"):
        raise AwdError(
            "This kind of model cannot be evaluated here",
            where=base.label,
            received=f"{', '.join(map(str, names))}, {'with' if has_tokenizer else 'no'} tokenizer",
            expected="a text encoder or a causal language model, with its tokenizer",
            remedy="Write the merge and evaluate it with your own tools.",
        )
    return "loss" if any(str(name).endswith(CAUSAL) for name in names) else "accuracy"


def evaluate_own(
    recipe: Recipe,
    texts: Sequence[OwnText],
    *,
    study: Study | None = None,
    checkpoints: tuple[Checkpoint, Sequence[Checkpoint]] | None = None,
    device: str = "auto",
    progress: ProgressFn | None = None,
    cancel: CancelFn | None = None,
) -> tuple[Score, ...]:
    """Every model on every task: base first, then the experts, then the merge.

    Args:
        recipe: The merge; its base and experts are evaluated beside it.
        texts: From `own_texts.read_texts`.
        study: A study of the same inputs, if at hand.
        checkpoints: Base and experts, when the caller has opened them already.
        device: Where merges are computed.
        progress: Called after each batch, in texts of all models.
        cancel: Polled there.

    Raises:
        AwdError: A model of a kind that cannot be evaluated, texts that do not suit it, or more
            memory than there is.
        Cancelled: `cancel` returned True.

    Cost: K + 2 merges in memory, one after the other, each in float32.
    """
    if checkpoints is None:
        checkpoints = open_checkpoint(recipe.base), [open_checkpoint(e) for e in recipe.experts]
    base, experts = checkpoints[0], with_distinct_labels(checkpoints[1])
    metric = metric_of(base)
    _require_memory(base, experts)
    tasks: dict[str, list[OwnText]] = {}
    for text in texts:
        tasks.setdefault(text.task, []).append(text)

    def weights(of: Recipe, among: Sequence[Checkpoint]) -> Callable[[], State]:
        given = study if of is recipe else None
        plan = plan_merge  # planned when it is its turn: AWD may need a pass
        return lambda: merged_state(
            plan(of, study=given, checkpoints=(base, among), device=device, cancel=cancel), cancel
        )

    models: list[tuple[str, Callable[[], State]]] = []
    for name, expert, coefficient in (
        (BASE, experts[0], 0.0),
        *((one.label, one, 1.0) for one in experts),
    ):
        alone = Recipe(
            base=recipe.base,
            experts=(expert.source,),
            coefficient=coefficient,
            exclude=recipe.exclude,
            vocabulary=recipe.vocabulary,
        )
        models.append((name, weights(alone, (expert,))))
    models.append((MERGE, weights(recipe, experts)))
    if metric == "loss":
        report = Reporter("Evaluating", len(texts) * len(models), progress, cancel)
        return tuple(_losses(base, models, tasks, report))
    quizzes = [quiz(task, own) for task, own in tasks.items()]
    n_asked = sum(len(one.asked) for one in quizzes)
    report = Reporter("Evaluating", n_asked * len(models), progress, cancel)
    return tuple(_accuracies(base, models, quizzes, report, cancel))


def quiz(task: str, texts: Sequence[OwnText]) -> Quiz:
    """The first texts of every label make its prototype, the others are asked.

    Raises:
        AwdError: A text without a label, a single label, or a label with a single text.
    """
    labels = tuple(dict.fromkeys(text.label for text in texts if text.label is not None))
    unlabelled = sum(text.label is None for text in texts)
    if unlabelled or len(labels) < 2:
        raise AwdError(
            "An encoder is asked for the labels of texts, and these have none",
            where=f"task {task!r}",
            received=f"{unlabelled} of {len(texts)} texts without a label, {len(labels)} labels",
            expected="a label for every text, and two labels at least",
        )
    shots: list[OwnText] = []
    asked: list[OwnText] = []
    for label in labels:
        own = [text for text in texts if text.label == label]
        n_shots = min(MOST_SHOTS, len(own) // 2)
        if not n_shots:
            raise AwdError(
                "A label needs two texts: one to know it by, one to ask for",
                where=f"task {task!r}",
                received=f"one text of label {label!r}",
                expected=f"two at least; {2 * MOST_SHOTS} or more are better",
            )
        shots += own[:n_shots]
        asked += own[n_shots:]
    return Quiz(task, labels, tuple(shots), tuple(asked))


def _accuracies(
    base: Checkpoint,
    models: Models,
    quizzes: Sequence[Quiz],
    report: Reporter,
    cancel: CancelFn | None,
) -> Iterator[Score]:
    heads: list[torch.Tensor] = []
    for model, load in models:
        encoder = Encoder.from_state(base.path, load(), _max_tokens(base))
        if not heads:  # the base comes first
            heads = [_prototypes(encoder, one, cancel) for one in quizzes]
        for one, head in zip(quizzes, heads, strict=True):
            told = _Told(report, len(one.asked), f"{model} on {one.task}")
            features = encoder.features([text.text for text in one.asked], cancel, told)
            answers = (features @ head.T).argmax(dim=1).tolist()
            right = sum(
                one.labels[answer] == text.label
                for answer, text in zip(answers, one.asked, strict=True)
            )
            n = len(one.asked)
            p = right / n
            yield Score(model, one.task, "accuracy", p, sqrt(p * (1 - p) / n), n)


class _Told:
    """Turns the texts of one encoding, of which equal ones are done together, into steps."""

    def __init__(self, report: Reporter, n_texts: int, what: str) -> None:
        self._report, self._left, self._n, self._what = report, n_texts, n_texts, what

    def __call__(self, done: int, wanted: int) -> None:
        left = self._n - round(self._n * done / wanted)
        self._report.advance(self._left - left, self._what)
        self._left = left


def _prototypes(encoder: Encoder, one: Quiz, cancel: CancelFn | None) -> torch.Tensor:
    features = encoder.features([text.text for text in one.shots], cancel)
    rows = [[text.label == label for text in one.shots] for label in one.labels]
    return torch.stack(
        [torch.nn.functional.normalize(features[torch.tensor(own)].mean(0), dim=0) for own in rows]
    )


def _max_tokens(base: Checkpoint) -> int:
    """RoBERTa counts positions from 2."""
    positions = base.config.get("max_position_embeddings")
    return min(MOST_TOKENS, positions - 2) if isinstance(positions, int) else MOST_TOKENS


def _losses(
    base: Checkpoint, models: Models, tasks: dict[str, list[OwnText]], report: Reporter
) -> Iterator[Score]:
    for model, load in models:
        language_model = LanguageModel.from_state(base.path, load())
        for task, texts in tasks.items():
            found = []
            for text in texts:
                found.append(language_model.surprise(text.text))
                report.advance(1, f"{model} on {task}")
            yield _loss(model, task, found)


def _loss(model: str, task: str, found: Sequence[tuple[float, int]]) -> Score:
    """Mean over tokens, and its standard error over texts.

    Raises:
        AwdError: No text has two tokens.
    """
    nats, tokens = sum(nats for nats, _ in found), sum(count for _, count in found)
    if not tokens:
        raise AwdError(
            "These texts are too short for a language model",
            where=f"task {task!r}",
            received="no text of two tokens",
            expected="texts of a sentence or more",
        )
    loss = nats / tokens
    squares = sum((own - loss * count) ** 2 for own, count in found)
    n = len(found)
    error = sqrt(squares * n / (n - 1)) / tokens if n > 1 else nan
    return Score(model, task, "loss", loss, error, n, tokens)


def _require_memory(base: Checkpoint, experts: Sequence[Checkpoint]) -> None:
    """A model is held in its own type and in float32.

    Raises:
        AwdError: There is less memory.
    """
    sizes = estimate(base, experts)
    needed = sizes.bytes_to_write + 4 * sizes.parameters + sizes.memory.needed
    free = sizes.memory.free
    if free is not None and needed > free:
        raise AwdError(
            "This model is too large to be evaluated on this machine",
            where=base.label,
            received=f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            remedy="Write the merge and evaluate it where there is more memory.",
        )
