"""Evaluation on texts of one's own, against transformers itself."""

import json
from math import exp, isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import awd_core as awd
from awd_core.__main__ import app
from awd_core.errors import AwdError
from awd_core.evaluation import own
from awd_core.evaluation.own import evaluate_own, metric_of, quiz
from awd_core.evaluation.own_results import as_fields, evaluated, read_evaluated, write_evaluated
from awd_core.evaluation.own_texts import OwnText, read_texts
from awd_core.progress import Progress
from tests.own_models import ANIMALS, TRAFFIC, own_family, own_recipe, own_texts

FIRST, SECOND = "the cat sleeps on a red car and", "a bird sings"


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return own_family(tmp_path_factory.mktemp("causal"), "causal")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return own_family(tmp_path_factory.mktemp("encoder"), "encoder")


# --- texts ---------------------------------------------------------------------------------------


def test_files_of_every_kind_give_the_same_texts(tmp_path: Path) -> None:
    lines, table = tmp_path / "mine.jsonl", tmp_path / "mine.csv"
    lines.write_text('{"text": "one, two", "label": "x"}\n\n{"text": "three", "label": 2}\n')
    table.write_text('label,text\nx,"one, two"\n2,three\n')
    expected = (OwnText("one, two", "x", "mine"), OwnText("three", "2", "mine"))
    assert read_texts(lines) == read_texts(table) == expected
    plain = tmp_path / "mine.txt"
    plain.write_text("one\nline more\n\n\nthree\n")
    assert [text.text for text in read_texts(plain)] == ["one\nline more", "three"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"label": "x"}', "line 1"),
        ("a.jsonl", "not json", "line 1"),
        ("a.csv", "words,label\none,x\n", "line 2"),
        ("a.txt", "\n\n", "no text"),
        ("a.parquet", "x", "another kind"),
        ("a.jsonl", b"\xff\xfe", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_say_where(
    tmp_path: Path, name: str, content: Any, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AwdError, match=said):
        read_texts(file)


# --- language models -----------------------------------------------------------------------------


def loss_by_transformers(folder: Path, texts: list[str]) -> float:
    """Mean over tokens, one text after the other."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nats, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            loss = model(input_ids=ids, labels=ids).loss
        nats += float(loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return nats / count


def test_losses_are_those_of_transformers(causal: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, experts = causal
    recipe = own_recipe(base, experts, coefficient=0.4)
    texts = [OwnText(text, None, "mine") for text in (FIRST, SECOND)]
    told: list[Progress] = []
    scores = evaluate_own(recipe, texts, progress=told.append)
    merged = awd.merge(recipe, tmp_path / "merged")
    assert [one.model for one in scores] == ["base", "expert-0", "expert-1", "merge"]
    for score, folder in zip(scores, (base, *experts, merged), strict=True):
        expected = loss_by_transformers(folder, [FIRST, SECOND])
        assert score.value == pytest.approx(expected, rel=1e-5)
        assert score.perplexity == pytest.approx(exp(expected), rel=1e-4)
        assert (score.metric, score.n, score.tokens) == ("loss", 2, 9)
    assert len({score.value for score in scores}) == 4
    assert told[-1].fraction == 1.0
    assert told[-1].total == 2 * 4


def test_a_long_text_is_read_in_windows(causal: tuple[Path, list[Path]]) -> None:
    base, experts = causal
    words = (" ".join([FIRST] * 5)).split()
    windows = [" ".join(words[:24]), " ".join(words[24:])]
    long = [OwnText(" ".join(words), None, "mine")]
    (score, *_) = evaluate_own(own_recipe(base, experts), long)
    assert score.value == pytest.approx(loss_by_transformers(base, windows), rel=1e-5)
    assert isnan(score.standard_error)


def test_the_error_of_a_loss_is_that_of_its_texts(causal: tuple[Path, list[Path]]) -> None:
    base, experts = causal
    sentences = [*ANIMALS, *TRAFFIC, FIRST]
    recipe = own_recipe(base, experts)
    (score, *_) = evaluate_own(recipe, [OwnText(one, None, "mine") for one in sentences])
    each = [loss_by_transformers(base, [one]) for one in sentences]
    counts = [len(one.split()) - 1 for one in sentences]
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(each), (20_000, len(each)))
    nats = np.array(each) * counts
    resampled = nats[draws].sum(1) / np.array(counts)[draws].sum(1)
    assert score.standard_error == pytest.approx(resampled.std(), rel=0.15)


# --- encoders ------------------------------------------------------------------------------------


def accuracy_by_transformers(folder: Path, base: Path, task: own.Quiz) -> float:
    """Nearest prototype of the base, straight from the formula."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def features(of: Path, texts: list[str]) -> np.ndarray:
        model = AutoModel.from_pretrained(of).eval()
        found = []
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.inference_mode():
                mean = model(input_ids=ids).last_hidden_state[0].double().mean(0)
            found.append((mean / mean.norm()).numpy())
        return np.stack(found)

    shots = features(base, [text.text for text in task.shots])
    heads = []
    for label in task.labels:
        mean = shots[[text.label == label for text in task.shots]].mean(0)
        heads.append(mean / np.linalg.norm(mean))
    answers = (features(folder, [text.text for text in task.asked]) @ np.array(heads).T).argmax(1)
    right = [task.labels[a] == text.label for a, text in zip(answers, task.asked, strict=True)]
    return float(np.mean(right))


def test_accuracies_are_those_of_the_nearest_prototype(
    encoder: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    base, experts = encoder
    recipe = own_recipe(base, experts, coefficient=0.4, disentangle={"granularity": "row"})
    texts = read_texts(own_texts(tmp_path / "mine.jsonl"))
    scores = evaluate_own(recipe, texts)
    merged = awd.merge(recipe, tmp_path / "merged")
    quizzes = {
        task: quiz(task, [text for text in texts if text.task == task])
        for task in ("topic", "verb")
    }
    names: list[str] = ["base", "expert-0", "expert-1", "merge"]
    folders = dict(zip(names, (base, *experts, merged), strict=True))
    assert [(one.model, one.task) for one in scores] == [
        (model, task) for model in folders for task in quizzes
    ]
    for score in scores:
        task = quizzes[score.task]
        assert score.value == accuracy_by_transformers(folders[score.model], base, task)
        assert score.n == len(task.asked)
    assert len({score.value for score in scores}) > 1


def test_prototypes_and_questions_share_no_text() -> None:
    texts = [OwnText(f"{label} {n}", label, "t") for label in "ab" for n in range(40)]
    found = quiz("t", texts)
    assert len(found.shots) == 2 * own.MOST_SHOTS
    assert not {text.text for text in found.shots} & {text.text for text in found.asked}
    assert len(found.shots) + len(found.asked) == len(texts)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([None, None], "without a label"),
        (["a", "a", None], "1 of 3 texts"),
        (["a", "a"], "1 labels"),
        (["a", "a", "b"], "one text of label 'b'"),
    ],
)
def test_texts_that_an_encoder_cannot_be_asked_say_why(labels: list[str | None], said: str) -> None:
    texts = [OwnText(f"text {n}", label, "t") for n, label in enumerate(labels)]
    with pytest.raises(AwdError) as refused:
        quiz("t", texts)
    assert said in str(refused.value)


# --- what cannot be evaluated --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"is_encoder_decoder": True}, "with tokenizer"),
        ({"vocab_size": None}, "BertForSequenceClassification"),
        ("tokenizer", "no tokenizer"),
    ],
)
def test_other_kinds_of_models_are_refused_in_a_sentence(
    tmp_path: Path, change: Any, said: str
) -> None:
    base, _ = own_family(tmp_path, "encoder")
    config = json.loads((base / "config.json").read_text())
    if change == "tokenizer":
        (base / "tokenizer.json").unlink()
    else:
        config |= change
        (base / "config.json").write_text(
            json.dumps({key: value for key, value in config.items() if value is not None})
        )
    with pytest.raises(AwdError, match="cannot be evaluated here") as refused:
        metric_of(awd.open_checkpoint(base))
    assert said in str(refused.value)


def test_too_little_memory_is_said_before_anything_is_read(
    causal: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, experts = causal
    monkeypatch.setattr("awd_core.checkpoints.estimate.free_memory", lambda: 1000)
    with pytest.raises(AwdError, match="too large"):
        evaluate_own(own_recipe(base, experts), [OwnText(FIRST, None, "t")])


def test_it_stops_when_it_is_told(causal: tuple[Path, list[Path]]) -> None:
    base, experts = causal
    with pytest.raises(awd.Cancelled):
        evaluate_own(own_recipe(base, experts), [OwnText(FIRST, None, "t")], cancel=lambda: True)


# --- what is kept --------------------------------------------------------------------------------


def test_results_are_read_as_they_were_written(
    causal: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    base, experts = causal
    recipe = own_recipe(base, experts)
    texts = tmp_path / "mine.txt"
    texts.write_text(FIRST)
    found = evaluated(recipe, texts, evaluate_own(recipe, read_texts(texts)))
    out = tmp_path / "kept" / "a.json"
    write_evaluated(found, out)
    assert as_fields(read_evaluated(out)) == as_fields(found)
    assert awd.Recipe.from_yaml(found.recipe).digest == recipe.digest == found.recipe_digest
    out.write_text("{}")
    with pytest.raises(AwdError, match="cannot be read"):
        read_evaluated(out)


def test_the_command_writes_and_prints_the_same_scores(
    causal: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    base, experts = causal
    recipe, texts, out = tmp_path / "recipe.yaml", tmp_path / "mine.txt", tmp_path / "own.json"
    recipe.write_text(own_recipe(base, experts, coefficient=0.3).to_yaml())
    texts.write_text(f"{FIRST}\n\n{SECOND}")
    arguments = ["evaluate", str(recipe), "--texts", str(texts), "-o", str(out), "--json"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    kept = read_evaluated(out)
    assert json.loads(said.stdout) == json.loads(json.dumps(as_fields(kept)))
    assert [one.model for one in kept.scores] == ["base", "expert-0", "expert-1", "merge"]
