"""The one pass: exact statistics, whatever the chunks, files and types; and what it refuses."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core import sweeps
from awd_core.elements import DENSITIES
from tests.helpers import (
    BLOCKS,
    QUERY,
    SHAPES,
    Family,
    base_state,
    cancel_after,
    expert_states,
    family,
    tree,
)
from tests.reference import merging

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_experts", [1, 3, 8])
def test_statistics_equal_sums_over_explicit_vectors(
    tmp_path: Path, n_experts: int, dtype: torch.dtype
) -> None:
    one = family(tmp_path, n_experts, dtype)
    study = one.study(out=tmp_path / "study")
    assert set(study.index) == set(SHAPES)
    for name, tau in one.task_vectors().items():
        flat = tau.reshape(n_experts, -1)
        np.testing.assert_allclose(study.gram(name), merging.gram(flat), rtol=1e-12, atol=1e-15)
        norm = float((one.base_state[name].double() ** 2).sum())
        assert study.base_squared_norms[study.index[name]] == pytest.approx(norm, rel=1e-12)


def test_row_grams_are_the_grams_of_rows_and_add_up(tmp_path: Path) -> None:
    one = family(tmp_path, 4)
    study = one.study(out=tmp_path / "study")
    for name, tau in one.task_vectors().items():
        rows = tau.reshape(4, SHAPES[name][0] if tau.ndim > 2 else 1, -1) if tau.size else tau
        grams = study.row_gram(name)
        np.testing.assert_allclose(grams.sum(0), study.gram(name), rtol=1e-13, atol=1e-16)
        for row, gram in enumerate(grams):
            np.testing.assert_allclose(gram, merging.gram(rows[:, row]), rtol=1e-12, atol=1e-15)
        assert len(grams) == (SHAPES[name][0] if len(SHAPES[name]) > 1 else 1)


def test_grams_are_exactly_symmetric(tmp_path: Path) -> None:
    study = family(tmp_path, 5).study(out=tmp_path / "study")
    np.testing.assert_array_equal(study.grams, study.grams.transpose(0, 2, 1))
    rows = study.row_gram(QUERY)
    np.testing.assert_array_equal(rows, rows.transpose(0, 2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sign_counts_equal_counts_over_explicit_vectors(tmp_path: Path, dtype: torch.dtype) -> None:
    one = family(tmp_path, 4, dtype)
    study = one.study(out=tmp_path / "study")
    for name, tau in one.task_vectors().items():
        position = study.index[name]
        for level, density in enumerate(DENSITIES if tau.size else ()):
            agreement, overlap = merging.sign_counts(tau.reshape(4, -1), density)
            np.testing.assert_array_equal(study.elements.agreement[position, level], agreement)
            np.testing.assert_array_equal(study.elements.overlap[position, level], overlap)


def test_a_study_says_what_the_tensors_are(tmp_path: Path) -> None:
    study = family(tmp_path, 2, torch.bfloat16).study(out=tmp_path / "study")
    found = {tensor.name: (tensor.shape, tensor.dtype, tensor.block) for tensor in study.tensors}
    assert found == {name: (SHAPES[name], "bfloat16", BLOCKS[name]) for name in SHAPES}
    assert study.experts == ("expert-0", "expert-1")


def statistics(study: awd.Study) -> list[str]:
    """A hash of every array of a study."""
    arrays = [study.grams, study.base_squared_norms, *vars(study.elements).values()]
    rows = [study.row_gram(tensor.name) for tensor in study.tensors]
    return [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays + rows]


@pytest.mark.parametrize("n_experts", [1, 2, 3, 5, 8, 24, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_grams_equal_products_of_explicit_vectors(
    tmp_path: Path, n_experts: int, dtype: torch.dtype
) -> None:
    shapes = {"long.weight": (3, 1025), "short.weight": (131, 5), "column.weight": (7, 1)}
    base = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    one = Family(tmp_path, base, expert_states(base, n_experts))
    study = one.study(out=tmp_path / "study")
    for name, tau in one.task_vectors().items():
        expected = np.einsum("irc,jrc->rij", tau, tau)
        found = study.row_gram(name)
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13 * expected.max())


@pytest.mark.parametrize("n_experts", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neither_chunks_nor_threads_change_a_bit(
    tmp_path: Path, n_experts: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {
        "wide.weight": (3, 9001),
        "tall.weight": (131, 3),
        "norm": (7,),
        "long": (10_001,),
        "scale": (),
    }
    base = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    one = Family(tmp_path, base, expert_states(base, n_experts))
    found = []
    for workers in (1, 2):
        monkeypatch.setattr(sweeps, "WORKERS", workers)
        for size in (1, *(1 << power for power in (12, 13, 14, 17, 20, 22))):
            out = tmp_path / f"{workers}-{size}"
            found.append(statistics(one.study(out=out, chunk_elements=size)))
    assert all(one == found[0] for one in found)


def test_shards_never_change_a_number(tmp_path: Path) -> None:
    one = family(tmp_path / "one", 3).study(out=tmp_path / "a")
    three = family(tmp_path / "three", 3, shards=3).study(out=tmp_path / "b")
    assert set(one.index) == set(three.index)
    for name in one.index:
        np.testing.assert_array_equal(one.gram(name), three.gram(name))


def test_experts_equal_to_the_base_give_an_empty_study(tmp_path: Path) -> None:
    base = base_state()
    study = Family(tmp_path, base, [base, base]).study(out=tmp_path / "study")
    assert not study.grams.any()
    assert not study.row_gram(QUERY).any()
    solved = awd.disentangle(study, "row")
    assert not solved.span_coefficients.any()
    assert np.isnan(solved.cosine_before).all()


def test_excluded_tensors_are_left_out(tmp_path: Path) -> None:
    study = family(tmp_path, 2).study(out=tmp_path / "study", exclude=["*.bias", "column.*"])
    assert set(study.index) == {n for n in SHAPES if not n.endswith(".bias") and "column" not in n}


def test_a_study_needs_no_weights_and_no_second_pass(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    seen: list[str] = []
    out = tmp_path / "study"
    study = one.study(out=out, progress=lambda progress: seen.append(progress.what))
    assert seen == [tensor.name for tensor in study.tensors]
    again = one.study(out=out, progress=lambda progress: pytest.fail("the pass was done again"))
    assert again.digest == study.digest
    for path in (one.base_path, *one.expert_paths):
        (path / "model.safetensors").unlink()
    alone = awd.open_study(out)
    assert statistics(alone) == statistics(study)
    assert alone.sources == study.sources


def test_the_default_place_is_named_by_content(tmp_path: Path, awd_home: Path) -> None:
    one = family(tmp_path, 2)
    study = one.study()
    assert study.path is not None
    assert study.path.parent == awd_home / "studies"
    assert one.study().path == study.path
    assert one.study(exclude=["*.bias"]).path != study.path


def test_a_folder_of_another_study_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "study"
    family(tmp_path / "one", 2).study(out=out)
    before = tree(out)
    with pytest.raises(awd.AwdError, match=r"output exists already.*Choose another name"):
        family(tmp_path / "other", 3).study(out=out)
    assert tree(out) == before


@pytest.mark.parametrize("calls", [1, 2, len(SHAPES)])
def test_cancelling_leaves_nothing_behind(tmp_path: Path, calls: int) -> None:
    one = family(tmp_path, 2)
    before = tree(tmp_path)
    with pytest.raises(awd.Cancelled):
        one.study(out=tmp_path / "study", cancel=cancel_after(calls))
    assert tree(tmp_path) == before


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    steps: list[awd.Progress] = []
    family(tmp_path, 2).study(out=tmp_path / "study", progress=steps.append)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].fraction == 1.0
    assert steps[-1].seconds_left == 0.0


def no_marker(study: Path) -> None:
    (study / "complete").unlink()


def not_json(study: Path) -> None:
    (study / "study.json").write_text("{")


def no_tensors(study: Path) -> None:
    description = json.loads((study / "study.json").read_text())
    del description["tensors"]
    (study / "study.json").write_text(json.dumps(description))


def newer(study: Path) -> None:
    description = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps(description | {"schema": 99}))


def no_gram(study: Path) -> None:
    (study / "gram.safetensors").unlink()


def half_gram(study: Path) -> None:
    file = study / "gram.safetensors"
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_marker, r"not a complete study.*no file named 'complete'.*awd collect"),
        (not_json, r"study is damaged.*JSONDecodeError.*Collect it again"),
        (no_tensors, r"study is damaged.*KeyError: 'tensors'.*Collect it again"),
        (newer, r"another version.*schema 99.*Collect it again"),
        (no_gram, r"study is damaged.*Collect it again"),
        (half_gram, r"study is damaged.*Collect it again"),
    ],
)
def test_a_damaged_study_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    out = tmp_path / "study"
    family(tmp_path, 2).study(out=out)
    damage(out)
    with pytest.raises(awd.AwdError, match=message):
        awd.open_study(out)


def test_a_study_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(awd.AwdError, match=r"not a complete study.*no such folder.*awd collect"):
        awd.open_study(tmp_path / "nothing")


def test_an_unknown_tensor_is_refused_with_the_nearest(tmp_path: Path) -> None:
    study = family(tmp_path, 2).study(out=tmp_path / "study")
    with pytest.raises(awd.AwdError, match=r"No tensor of this name.*Did you mean 'logit_scale'"):
        study.gram("logit_scales")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("culprit", ["base", "expert-1"])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, culprit: str, value: float) -> None:
    base = base_state()
    experts = [{name: tensor.clone() for name, tensor in base.items()} for _ in range(3)]
    damaged = base if culprit == "base" else experts[1]
    damaged[QUERY][2, 3] = value
    who = "the base" if culprit == "base" else "expert 'expert-1'"
    message = rf"NaN or infinite.*tensor '{QUERY}' of {who}\..*list the tensor under `exclude`"
    one = Family(tmp_path, base, experts)
    with pytest.raises(awd.AwdError, match=message):
        one.study(out=tmp_path / "study")
    assert not (tmp_path / "study").exists()
    one.study(out=tmp_path / "without", exclude=[QUERY])  # the remedy works


def test_experts_of_one_folder_name_get_distinct_labels(tmp_path: Path) -> None:
    one = family(tmp_path, 4)
    labels = ("math", "math", "math-2", "math")
    experts = [
        replace(expert, label=label) for expert, label in zip(one.experts, labels, strict=True)
    ]
    study = awd.collect(one.base, experts, out=tmp_path / "study", device="cpu")
    assert study.experts == ("math", "math-3", "math-2", "math-4")


def test_folders_of_one_name_get_distinct_labels(tmp_path: Path) -> None:
    one, other = family(tmp_path / "a", 1), family(tmp_path / "b", 2)
    experts = [*one.experts, other.experts[0]]
    study = awd.collect(one.base, experts, out=tmp_path / "study", device="cpu")
    assert study.experts == ("expert-0", "expert-0-2")


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "no GPU to use.*--device auto or cpu"), ("tpu", "Unknown device")],
)
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str, message: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    one = family(tmp_path, 1)
    with pytest.raises(awd.AwdError, match=message):
        awd.collect(one.base, one.experts, out=tmp_path / "study", device=device)
    assert not (tmp_path / "study").exists()


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    one = family(tmp_path, 1)
    with pytest.raises(awd.AwdError, match=r"under `exclude` matches no tensor.*\*\.bais"):
        one.study(out=tmp_path / "study", exclude=["*.bais"])


def test_what_decides_the_numbers_decides_the_digest(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    options: list[dict[str, Any]] = [{}, {"rows": False}, {"exclude": ["*.bias"]}]
    digests = {one.study(**option).digest for option in options}
    digests.add(awd.collect(one.base, one.experts[::-1], device="cpu").digest)
    digests.add(awd.collect(one.base, one.experts[:1], device="cpu").digest)
    assert len(digests) == 5


def test_a_merge_finds_the_study_that_was_collected_with_patterns(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    patterns = ["*.bias", "column*"]
    one.study(exclude=patterns)
    recipe = one.recipe(exclude=patterns, disentangle={"granularity": "model"})
    awd.plan_merge(recipe, progress=lambda progress: pytest.fail("the pass was done again"))
