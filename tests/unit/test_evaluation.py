import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from awd_core import zoo
from awd_core.errors import AwdError, Cancelled
from awd_core.evaluation import (
    SPLITS,
    Encoder,
    TaskAccuracy,
    evaluate,
    load_task,
    mean_accuracy,
    normalised_accuracy,
    recovered_gap,
)
from awd_core.evaluation.tasks import read_examples

TEXTS = ("Sort a list in place.", "x", "Return the mean of an array along one axis of it. " * 9)


@pytest.fixture(scope="module")
def base() -> Encoder:
    return Encoder.from_folder(zoo.base_folder())


def accuracies(*correct: int) -> tuple[TaskAccuracy, ...]:
    return tuple(TaskAccuracy(f"t{i}", "test", 100, n) for i, n in enumerate(correct))


def a_task(folder: Path, lines: list[str]) -> Path:
    described = {"key": "fruit", "title": "Fruit", "question": "Which?", "labels": ["a", "b"]}
    (folder / "task.json").write_text(json.dumps(described))
    (folder / "test.jsonl").write_text("\n".join(lines))
    return folder


def test_features_are_unit_norm_float32_and_in_the_order_of_the_texts(base: Encoder):
    features = base.features(TEXTS)
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=1), torch.ones(3))
    assert torch.allclose(base.features(TEXTS[::-1]).flip(0), features, atol=1e-6)


def test_feature_is_the_masked_mean_of_the_hidden_states(base: Encoder):
    ids = torch.tensor([base.tokens(TEXTS[0])])
    with torch.inference_mode():
        hidden = base.model(input_ids=ids).last_hidden_state[0].mean(dim=0)
    expected = hidden / hidden.norm()
    # The other texts of the batch are longer, so this one is padded.
    assert torch.allclose(base.features(TEXTS)[0], expected, atol=1e-6)


def test_texts_are_cut_at_32_tokens(base: Encoder):
    assert len(base.tokens(TEXTS[2])) == 32
    assert torch.equal(*base.features([TEXTS[2], TEXTS[2] + " And more of it."]))


def test_equal_weights_give_equal_bits_from_folder_and_state(base: Encoder):
    folder = zoo.base_folder()
    from_state = Encoder.from_state(folder, load_file(folder / "model.safetensors"))
    texts = [example.text for example in zoo.tasks()[0].examples("test", 40)]
    assert torch.equal(base.features(texts), from_state.features(texts))
    assert torch.equal(base.features(texts), base.features(texts))


def test_weights_in_half_precision_are_evaluated_in_float32(base: Encoder):
    folder = zoo.base_folder()
    state = load_file(folder / "model.safetensors")
    rounded = {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
    features = Encoder.from_state(folder, rounded).features(TEXTS)
    assert features.dtype == torch.float32
    assert (features * base.features(TEXTS)).sum(dim=1).min() > 0.99


def test_shards_are_read_as_one(base: Encoder, tmp_path: Path):
    source = zoo.base_folder()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    state = load_file(source / "model.safetensors")
    where = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(sorted(state))}
    for shard in sorted(set(where.values())):
        save_file({name: state[name] for name in state if where[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert torch.equal(Encoder.from_folder(tmp_path).features(TEXTS), base.features(TEXTS))


def test_weights_that_do_not_fit_are_refused():
    folder = zoo.base_folder()
    state = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    with pytest.raises(AwdError, match=rf"lack tensors.*{name}"):
        Encoder.from_state(folder, {n: t for n, t in state.items() if n != name})
    with pytest.raises(AwdError, match=r"does not have.*classifier"):
        Encoder.from_state(folder, {**state, "classifier.weight": torch.zeros(2, 2)})
    with pytest.raises(AwdError, match="do not fit the model's config"):
        Encoder.from_state(folder, {**state, name: torch.zeros(2, 2)})


def test_folders_without_config_or_weights_are_refused(tmp_path: Path):
    with pytest.raises(AwdError, match="holds no weights"):
        Encoder.from_folder(tmp_path)
    with pytest.raises(AwdError, match="no model config"):
        Encoder.from_state(tmp_path, {})


def test_a_sample_is_balanced_fixed_and_nested():
    for task in zoo.tasks():
        small, large = task.examples("test", 2 * len(task.labels)), task.examples("test", 40)
        assert small == large[: len(small)] == task.examples("test", len(small))
        assert sorted(example.label for example in small) == sorted(task.labels * 2)


def test_evaluation_counts_the_nearest_prototypes(base: Encoder):
    tasks = zoo.tasks()[:2]
    found = evaluate(base, tasks, "test", 24)
    for task, one in zip(tasks, found, strict=True):
        examples = task.examples("test", 24)
        scores = base.features([example.text for example in examples]) @ task.head.T
        answers = [task.labels[row.argmax()] for row in scores]
        right = sum(a == e.label for a, e in zip(answers, examples, strict=True))
        assert (one.task, one.split, one.n) == (task.key, "test", 24)
        # Other texts in a batch move the last bit, which may move a tie.
        assert abs(one.correct - right) <= 1
    assert found == evaluate(base, tasks, "test", 24)


def test_evaluation_reports_progress_and_can_be_cancelled(base: Encoder):
    steps: list[tuple[int, int]] = []
    evaluate(base, zoo.tasks()[:1], "test", 40, progress=lambda *step: steps.append(step))
    assert steps == [(32, 40), (40, 40)]
    with pytest.raises(Cancelled):
        evaluate(base, zoo.tasks()[:1], "test", 40, cancel=lambda: True)


def test_accuracy_and_its_standard_error():
    one = TaskAccuracy("t", "test", n=100, correct=80)
    assert one.accuracy == 0.8
    assert one.standard_error == pytest.approx(0.04)


def test_relative_accuracies():
    base, experts = accuracies(40, 60), accuracies(80, 90)
    assert mean_accuracy(experts) == pytest.approx(0.85)
    assert normalised_accuracy(accuracies(40, 90), experts) == pytest.approx(0.75)
    assert recovered_gap(base, base, experts) == 0
    assert recovered_gap(experts, base, experts) == 1
    assert recovered_gap(accuracies(60, 75), base, experts) == pytest.approx(0.5)


def test_unknown_split_and_empty_sample_are_refused():
    task = zoo.tasks()[0]
    with pytest.raises(AwdError, match="Did you mean 'test'"):
        task.examples("tests")
    with pytest.raises(AwdError, match="at least one example"):
        task.examples("test", 0)


def test_unreadable_tasks_and_examples_are_refused(tmp_path: Path):
    heads = tmp_path / "heads.safetensors"
    with pytest.raises(AwdError, match="cannot be read"):
        load_task(tmp_path, heads)
    task = load_task(a_task(tmp_path, ['{"text": "one", "label": "c"}']), heads)
    with pytest.raises(AwdError, match=r"line 1\. Received: c"):
        task.examples("test")
    with pytest.raises(AwdError, match="missing"):
        task.examples("validation")
    (tmp_path / "validation.jsonl").write_text('{"text": "one", "label": "a"}\n{"text"')
    with pytest.raises(AwdError, match="line 2"):
        read_examples(tmp_path / "validation.jsonl", task.labels)


def test_missing_and_misfitting_heads_are_refused(tmp_path: Path):
    heads = tmp_path / "heads.safetensors"
    with pytest.raises(AwdError, match="heads is missing"):
        _ = load_task(a_task(tmp_path, []), heads).head
    save_file({"vegetable": torch.zeros(2, 4)}, heads)
    with pytest.raises(AwdError, match="no head for the task fruit"):
        _ = load_task(tmp_path, heads).head
    save_file({"fruit": torch.zeros(3, 4)}, heads)
    with pytest.raises(AwdError, match="Received: 3 rows"):
        _ = load_task(tmp_path, heads).head


def test_every_split_of_every_task_loads():
    for task in zoo.tasks():
        for split in SPLITS:
            assert task.examples(split)
