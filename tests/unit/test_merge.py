"""What a merge must be, bit for bit where arithmetic allows it."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core import stream
from tests.helpers import (
    BIAS,
    QUERY,
    SHAPES,
    Family,
    State,
    base_state,
    bits,
    cancel_after,
    expert_states,
    family,
    load,
    methods_for,
    redundant_vectors,
    same_bits,
    tree,
)
from tests.reference import merging as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
GRANULARITIES = ("model", "block", "tensor", "row")
AWD: list[dict[str, Any] | None] = [None, *({"granularity": g, "steps": 30} for g in GRANULARITIES)]
ENCODER = {name for name in SHAPES if name.startswith("encoder.")}
WITH_COEFFICIENTS = [
    method.key
    for method in awd.METHODS
    if method.takes_coefficients and method.coefficients_are == "scales"
]


def flat(state: State) -> np.ndarray:
    """Every merged weight in one float64 vector."""
    return np.concatenate([state[name].double().numpy().ravel() for name in SHAPES])


@pytest.mark.parametrize("disentangle", AWD, ids=str)
@pytest.mark.parametrize("method", WITH_COEFFICIENTS)
def test_lambda_zero_is_the_base_bit_for_bit(
    tmp_path: Path, method: str, disentangle: dict[str, Any] | None
) -> None:
    one = family(tmp_path, 3)
    merged = one.state(method=method, coefficient=0.0, disentangle=disentangle)
    assert same_bits(merged, one.base_state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shards", [None, 3])
def test_lambda_zero_is_the_base_in_every_type(
    tmp_path: Path, dtype: torch.dtype, shards: int | None
) -> None:
    one = family(tmp_path, 3, dtype, shards=shards)
    assert same_bits(one.state(coefficient=0.0), one.base_state)


@pytest.mark.parametrize("coefficient", [0.3, 1.0])
@pytest.mark.parametrize("method", WITH_COEFFICIENTS)
def test_experts_equal_to_the_base_give_the_base_bit_for_bit(
    tmp_path: Path, method: str, coefficient: float
) -> None:
    base = base_state()
    one = Family(tmp_path, base, [base, base])
    assert same_bits(one.state(method=method, coefficient=coefficient), base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_expert_at_lambda_one_is_the_expert_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    # Float64 keeps theta_0 + (theta - theta_0) exact only down to 2^-29 of theta_0.
    base = base_state(dtype=dtype)
    expert = {name: tensor.clone() for name, tensor in base.items()}
    expert[QUERY] = (base[QUERY].double() * 2.0**-40 * 1.2345).to(dtype)
    expert[BIAS] = -base[BIAS]
    one = Family(tmp_path, base, [expert])
    assert same_bits(one.state(coefficient=1.0), expert)
    assert same_bits(one.state(method="average"), expert)


def test_one_of_three_experts_at_lambda_one_is_that_expert_bit_for_bit(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    assert same_bits(one.state(coefficients=[0, 1, 0]), one.expert_states[1])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_awd_without_a_step_is_the_method_itself_bit_for_bit(
    tmp_path: Path, granularity: str
) -> None:
    one = family(tmp_path, 5)
    for method in methods_for(5):
        none = one.state(method=method, disentangle={"granularity": granularity, "steps": 0})
        assert same_bits(none, one.state(method=method))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_task_arithmetic_equals_the_formula(tmp_path: Path, dtype: torch.dtype) -> None:
    one = family(tmp_path, 5, dtype)
    coefficients = [0.3, -0.5, 1.0, 0.0, 2.5]
    merged = one.state(coefficients=coefficients)
    expected = flat(one.base_state) + reference.task_arithmetic(
        one.flat_task_vectors(), np.array(coefficients)
    )
    np.testing.assert_allclose(flat(merged), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_average_equals_the_mean_of_the_experts(tmp_path: Path) -> None:
    one = family(tmp_path, 4, torch.float64)
    expected = np.mean([flat(expert) for expert in one.expert_states], axis=0)
    np.testing.assert_allclose(flat(one.state(method="average")), expected, rtol=1e-13, atol=1e-14)


def coarse(states: list[State]) -> list[State]:
    """Weights rounded to quarters: many magnitudes tie, and sums cancel exactly."""
    return [
        {n: (t * 4).round() / 4 if t.is_floating_point() else t for n, t in state.items()}
        for state in states
    ]


@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 0.2, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("n_experts", [1, 2, 5])
@pytest.mark.parametrize("rounded", [False, True])
def test_ties_equals_the_paper(
    tmp_path: Path, n_experts: int, density: float, rounded: bool
) -> None:
    base = base_state()
    experts = expert_states(base, n_experts, size=0.5)
    if rounded:
        base, *experts = coarse([base, *experts])
    one = Family(tmp_path, base, experts)
    tau = one.flat_task_vectors()
    merged = one.state(method="ties", coefficient=0.7, knobs={"density": density})
    expected = flat(base) + 0.7 * reference.ties(tau, density)
    np.testing.assert_allclose(flat(merged), expected, rtol=3e-7, atol=1e-7)
    if rounded and n_experts > 1 and density > 0.4:
        trimmed = reference.trim(tau, density)
        assert ((trimmed != 0).any(0) & (trimmed.sum(0) == 0)).any()  # signs that tie are there


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_awd_subtracts_the_redundant_vector_from_every_expert(
    tmp_path: Path, granularity: Any
) -> None:
    base = base_state(dtype=torch.float64)
    one = Family(tmp_path, base, expert_states(base, 4))
    settings = {"granularity": granularity, "steps": 20, "alpha": 0.0, "lr_relative": 0.01}
    study = one.study(out=tmp_path / "study")
    delta = redundant_vectors(one, study, awd.disentangle(study, **settings))
    names = [tensor.name for tensor in study.tensors]
    tau_of, merged = one.task_vectors(), one.state(coefficient=0.4, disentangle=settings)
    tau = np.concatenate([tau_of[name].reshape(4, -1) for name in names], axis=1)
    found = np.concatenate([(merged[n] - base[n]).numpy().ravel() for n in names])
    assert np.linalg.norm(delta) > 1e-2
    np.testing.assert_allclose(found, 0.4 * (tau - delta).sum(0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("n_experts", [1, 5, 8])
def test_chunk_size_never_changes_a_bit(
    tmp_path: Path, n_experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside a base of 0 every bit of what is added shows.
    shapes = {"column.weight": (3, 1), "b.weight": (3, 40), "norm": (4,), "long.weight": (2, 1100)}
    base = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    one = Family(tmp_path, base, expert_states(base, n_experts))
    recipes: list[dict[str, Any]] = [
        {"method": method, "disentangle": disentangle}
        for method in methods_for(n_experts)
        for disentangle in (None, {"granularity": "row", "steps": 20})
    ]
    whole = [one.state(**recipe) for recipe in recipes]
    for module, function in (
        ("merge", "row_blocks"),
        ("planned_vectors", "chunks"),
        ("planned_vectors", "spans"),
    ):
        small = partial(getattr(stream, function), chunk_elements=1)
        monkeypatch.setattr(import_module(f"awd_core.{module}"), function, small)
    monkeypatch.setattr(import_module("awd_core.weighted"), "PIECE_ELEMENTS", 1)
    for recipe, expected in zip(recipes, whole, strict=True):
        assert same_bits(one.state(**recipe), expected)


@pytest.mark.parametrize("shards", [None, 3])
@pytest.mark.parametrize("dtype", ["base", "float32", "bfloat16", "float16"])
def test_what_is_written_is_what_is_merged(tmp_path: Path, dtype: str, shards: int | None) -> None:
    one = family(tmp_path, 3, shards=shards)
    recipe = one.recipe(coefficient=0.3, dtype=dtype)
    out = awd.merge(recipe, tmp_path / "out", device="cpu")
    state = awd.merged_state(awd.plan_merge(recipe, device="cpu"))
    assert same_bits(load(out), state)
    wanted = torch.float32 if dtype == "base" else getattr(torch, dtype)
    assert {tensor.dtype for name, tensor in state.items() if name in SHAPES} == {wanted}


def test_another_type_is_one_rounding_of_the_merge(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    wide, narrow = one.state(coefficient=0.3), one.state(coefficient=0.3, dtype="bfloat16")
    for name in SHAPES:
        error = (narrow[name].double() - wide[name].double()).abs()
        assert (error <= wide[name].double().abs() * 2.0**-8).all()
    for name in ("position_ids", "mask"):
        assert bits(narrow[name]) == bits(one.base_state[name])


def test_buffers_that_are_not_floats_are_the_base_s(tmp_path: Path) -> None:
    base = base_state()
    expert = base | {"position_ids": base["position_ids"] + 5, "mask": ~base["mask"]}
    merged = Family(tmp_path, base, [expert, expert]).state(coefficient=1.0)
    assert bits(merged["position_ids"]) == bits(base["position_ids"])
    assert bits(merged["mask"]) == bits(base["mask"])


@pytest.mark.parametrize(
    ("filters", "changed"),
    [
        ({"exclude": ["*.bias", "log*"]}, set(SHAPES) - {BIAS, "logit_scale"}),
        ({"include": ["encoder.*"]}, ENCODER),
        ({"include": ["encoder.*"], "exclude": ["*.bias"]}, ENCODER - {BIAS}),
    ],
)
@pytest.mark.parametrize("disentangle", [None, {"granularity": "tensor", "steps": 5}])
def test_what_is_filtered_out_stays_as_in_the_base(
    tmp_path: Path, filters: dict[str, list[str]], changed: set[str], disentangle: Any
) -> None:
    one = family(tmp_path, 3)
    merged = one.state(disentangle=disentangle, **filters)
    differ = {name for name in SHAPES if bits(merged[name]) != bits(one.base_state[name])}
    assert differ == changed - {"empty.weight"}


def test_ties_ranks_only_what_is_merged(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    names = [name for name in SHAPES if name != QUERY]
    merged = one.state(method="ties", coefficient=1.0, exclude=[QUERY], knobs={"density": 0.2})
    tau = np.concatenate([one.task_vectors()[name].reshape(3, -1) for name in names], axis=1)
    found = np.concatenate([(merged[n] - one.base_state[n]).numpy().ravel() for n in names])
    np.testing.assert_allclose(found, reference.ties(tau, 0.2), atol=1e-6)


def test_a_study_at_hand_saves_the_pass(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    study = one.study(out=tmp_path / "study")
    recipe = one.recipe(disentangle={"granularity": "row", "steps": 5})
    stages: list[str] = []
    plan = awd.plan_merge(
        recipe, study=study, device="cpu", progress=lambda progress: stages.append(progress.stage)
    )
    assert not stages
    assert plan.disentangled is not None
    np.testing.assert_array_equal(
        plan.disentangled.span_coefficients,
        awd.disentangle(study, "row", steps=5).span_coefficients,
    )


def test_a_study_of_other_inputs_is_not_used(tmp_path: Path) -> None:
    one, other = family(tmp_path / "one", 3), family(tmp_path / "other", 2)
    recipe = one.recipe(disentangle={"granularity": "model", "steps": 5})
    wrong = other.study(out=tmp_path / "study")
    plan = awd.plan_merge(recipe, study=wrong, device="cpu")
    assert same_bits(awd.merged_state(plan), awd.merged_state(awd.plan_merge(recipe, device="cpu")))


@pytest.mark.parametrize("calls", [1, 3, len(SHAPES)])
@pytest.mark.parametrize("disentangle", [None, {"granularity": "row", "steps": 3}])
def test_cancelling_leaves_nothing_behind(
    tmp_path: Path, calls: int, disentangle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWD_HOME", str(tmp_path / "home"))
    one = family(tmp_path / "inputs", 2)
    (tmp_path / "place").mkdir()
    before = tree(tmp_path)
    with pytest.raises(awd.Cancelled):
        awd.merge(
            one.recipe(disentangle=disentangle),
            tmp_path / "place" / "out",
            device="cpu",
            cancel=cancel_after(calls),
        )
    after = {path for path in tree(tmp_path) if not path.startswith("home")}
    assert after == set(before)


def test_progress_counts_every_byte_written(tmp_path: Path) -> None:
    steps: list[awd.Progress] = []
    one = family(tmp_path, 2)
    awd.merge(one.recipe(), tmp_path / "out", device="cpu", progress=steps.append)
    n_bytes = sum(tensor.nbytes for tensor in one.base_state.values())
    assert steps[-1].total == steps[-1].done == n_bytes


@pytest.fixture
def one(tmp_path: Path) -> Family:
    return family(tmp_path / "inputs", 2)


def test_a_folder_that_exists_is_not_written_over(tmp_path: Path, one: Family) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(awd.AwdError, match=r"output exists already.*a folder.*Choose another name"):
        awd.merge(one.recipe(), out)
    assert set(tree(out)) == {"precious"}


def test_a_file_that_exists_is_not_written_over(tmp_path: Path, one: Family) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(awd.AwdError, match=r"output exists already.*Received: a file"):
        awd.merge(one.recipe(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("inside", ["base/out", "base/deep/er/out", "expert-1/out"])
def test_nothing_is_written_inside_an_input(tmp_path: Path, one: Family, inside: str) -> None:
    before = tree(tmp_path)
    with pytest.raises(awd.AwdError, match=r"lies inside one of the inputs.*Choose another output"):
        awd.merge(one.recipe(), one.root / inside)
    assert tree(tmp_path) == before


def test_an_input_is_recognised_behind_a_link(tmp_path: Path, one: Family) -> None:
    (tmp_path / "link").symlink_to(one.base_path)
    with pytest.raises(awd.AwdError, match=r"lies inside one of the inputs"):
        awd.merge(one.recipe(), tmp_path / "link" / "out")


def test_a_weight_that_is_not_finite_stops_the_merge(tmp_path: Path) -> None:
    base = base_state()
    experts = expert_states(base, 2)
    experts[1][QUERY][1, 2] = torch.nan
    one = Family(tmp_path, base, experts)
    message = rf"NaN or infinite.*tensor '{QUERY}' of expert 'expert-1'"
    with pytest.raises(awd.AwdError, match=message):
        awd.merge(one.recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    awd.merge(one.recipe(exclude=[QUERY]), tmp_path / "out")  # the remedy works


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(one: Family, field: str) -> None:
    with pytest.raises(awd.AwdError, match=rf"under `{field}` matches no tensor.*no\.such"):
        awd.plan_merge(one.recipe(**{field: ["no.such.*"]}))


def test_experts_and_base_that_do_not_match_are_refused(tmp_path: Path) -> None:
    base = base_state()
    expert = dict(base)
    expert[QUERY] = torch.zeros(5, 11)
    one = Family(tmp_path, base, [expert])
    with pytest.raises(awd.AwdError, match=rf"{QUERY}.*\[5, 11\].*\[5, 12\].*under `exclude`"):
        awd.merge(one.recipe(), tmp_path / "out")
    merged = one.state(exclude=[QUERY])  # the remedy works
    assert bits(merged[QUERY]) == bits(base[QUERY])
