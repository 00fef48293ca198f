"""Every method on checkpoints on disk, against the references of `tests/reference/methods.py`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core.errors import RecipeError
from awd_core.lines import block_scales
from awd_core.method import build
from tests.helpers import BIAS, SHAPES, Family, base_state, family, same_bits
from tests.reference.methods import REFERENCES

# Knobs besides the defaults and the presets, so that every branch is compared.
KNOBS: dict[str, list[dict[str, Any]]] = {
    "metrics_weighted": [{"power": 3.0}, {"better": "lower", "power": 2.0}, {"power": 0.0}],
    "delta_weighted": [{"power": 0.0}, {"power": 2.5}],
    "model_stock": [{"centre": "unequal-norms"}],
    "slerp": [{"t": 0.0}, {"t": 0.8}],
    "karcher": [{"steps": 0}, {"steps": 100, "tolerance": 0.0}],
    "ties": [{"density": 0.5, "merge": "max"}, {"density": 1.0}],
    "ties_mergekit": [{"density": 0.2, "scale": 0.7}, {"normalize": False}, {"density": 1.0}],
    "dare": [{"drop": 0.0}, {"drop": 0.9}],
    "dare_ties": [{"drop": 0.0, "density": 0.4}, {"density": 1.0, "merge": "max"}],
    "della": [
        {"elect": False},
        {"density": 0.4, "rescale": "l1"},
        {"density": 1.0},
    ],
    "breadcrumbs": [{"density": 0.5, "outliers": 0.2}],
    "breadcrumbs_tensor": [{"density": 0.5, "outliers": 0.1}, {"density": 0.9, "outliers": 0.5}],
    "pcb": [{"keep": 0.5, "clip": 0.1}, {"keep": 1.0, "clip": 0.0}],
    "sce": [{"select": 0.3}, {"select": 0.3, "fuse": "all"}, {"select": 0.0}],
    "consensus": [{"agree": 3}, {"agree": 0}, {"threshold": 1.5}],
    "widen": [{"ratio": 1.5, "calibration": 0.3}, {"ratio": 0.0}],
}
CASES = [
    pytest.param(method, knobs, id=f"{method.key}-{knobs}")
    for method in awd.METHODS
    if method.key in REFERENCES
    for knobs in [
        {},
        *({"preset": preset} for preset in method.presets),
        *({"knobs": knobs} for knobs in KNOBS.get(method.key, [])),
    ]
]
KINDS = [method for method in awd.METHODS if method.key in REFERENCES]
EACH = pytest.mark.parametrize("method", KINDS, ids=lambda method: method.key)


def count(method: Any, n_experts: int) -> int:
    return min(n_experts, method.most_experts or n_experts)


def coefficients(method: Any, n_experts: int) -> list[float] | None:
    if not method.takes_coefficients:
        return None
    return [0.3 + 0.25 * k for k in range(n_experts)]


def floats(one: Family) -> dict[str, np.ndarray]:
    return {
        name: tensor.double().numpy()
        for name, tensor in one.base_state.items()
        if tensor.is_floating_point()
    }


def expected(one: Family, method: Any, fields: dict[str, Any]) -> dict[str, np.ndarray]:
    tau = one.task_vectors()
    n_experts = len(one.expert_states)
    lam = np.array(coefficients(method, n_experts) or np.ones(n_experts))
    knobs = asdict(build(method, fields.get("knobs", {}), fields.get("preset")))
    return REFERENCES[method.key](floats(one), tau, lam, **knobs)


@pytest.mark.parametrize(("method", "fields"), CASES)
def test_a_merge_is_the_reference(tmp_path: Path, method: Any, fields: dict[str, Any]) -> None:
    n_experts = count(method, 4)
    one = family(tmp_path, n_experts, torch.float64)
    found = one.state(method=method.key, coefficients=coefficients(method, n_experts), **fields)
    for name, update in expected(one, method, fields).items():
        base = one.base_state[name].numpy()
        np.testing.assert_allclose(
            found[name].numpy() - base, update, rtol=1e-6, atol=1e-9, err_msg=name
        )


@EACH
def test_a_merge_of_one_expert_is_the_reference(tmp_path: Path, method: Any) -> None:
    if method.least_experts > 1:
        with pytest.raises(RecipeError, match=rf"'{method.key}' merges exactly 2 experts, not 1"):
            family(tmp_path, 1).recipe(method=method.key)
        return
    one = family(tmp_path, 1, torch.float64)
    found = one.state(method=method.key, coefficients=coefficients(method, 1))
    for name, update in expected(one, method, {}).items():
        base = one.base_state[name].numpy()
        np.testing.assert_allclose(
            found[name].numpy() - base, update, rtol=1e-6, atol=1e-9, err_msg=name
        )


WITHOUT_LOSS: list[dict[str, Any]] = [
    {"method": "task_arithmetic", "coefficient": 1.0},
    {"method": "average"},
    {"method": "weighted_average"},
    {"method": "metrics_weighted"},
    {"method": "delta_weighted"},
    {"method": "model_stock"},
    {"method": "karcher"},
    {"method": "multi_slerp"},
    {"method": "ties", "knobs": {"density": 1.0}},
    {"method": "ties_mergekit", "knobs": {"density": 1.0}},
    {"method": "dare", "knobs": {"drop": 0.0}, "coefficient": 1.0},
    {"method": "breadcrumbs_tensor", "knobs": {"density": 1.0}, "coefficient": 1.0},
    {"method": "magmax", "coefficient": 1.0},
    {"method": "sce"},
    {"method": "consensus", "coefficient": 1.0},
]


@pytest.mark.parametrize("fields", WITHOUT_LOSS, ids=lambda fields: fields["method"])
def test_one_expert_is_itself_where_nothing_is_dropped(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    one = family(tmp_path, 1)
    found = one.state(**fields)
    for name, tensor in one.expert_states[0].items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


@EACH
def test_a_zero_task_vector_among_others_is_no_trouble(tmp_path: Path, method: Any) -> None:
    base = base_state(dtype=torch.float64)
    other = family(tmp_path / "a", 2, torch.float64).expert_states
    one = Family(tmp_path / "b", base, [base, other[0], other[1]][: count(method, 3)])
    found = one.state(method=method.key, coefficients=coefficients(method, len(one.expert_states)))
    for name, update in expected(one, method, {}).items():
        np.testing.assert_allclose(
            found[name].numpy() - base[name].numpy(), update, rtol=1e-6, atol=1e-9, err_msg=name
        )


@EACH
def test_awd_stands_in_front_where_the_method_takes_task_vectors(
    tmp_path: Path, method: Any
) -> None:
    one = family(tmp_path, count(method, 3), torch.float64)
    fields: dict[str, Any] = {"disentangle": {"granularity": "tensor", "steps": 20}}
    if not method.takes_task_vectors:
        with pytest.raises(RecipeError, match=r"whole weights, not on task vectors"):
            one.recipe(method=method.key, **fields)
        return
    plan = awd.plan_merge(one.recipe(method=method.key, **fields), device="cpu")
    assert plan.redundant is not None
    disentangled = []
    for k, expert in enumerate(one.expert_states):
        moved = dict(expert)
        for name, c in plan.redundant.items():
            tau = one.task_vectors()[name]
            delta = np.tensordot(c[0], tau, 1)
            moved[name] = one.base_state[name] + torch.from_numpy(np.asarray(tau[k] - delta))
        disentangled.append(moved)
    two = Family(tmp_path / "moved", one.base_state, disentangled)
    found, wanted = one.state(method=method.key, **fields), two.state(method=method.key)
    for name in SHAPES:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("key", ["dare", "dare_ties", "della"])
def test_a_seed_decides_what_falls(tmp_path: Path, key: str) -> None:
    one = family(tmp_path, 2)
    first, again, other = (one.state(method=key, seed=seed) for seed in (1, 1, 2))
    assert same_bits(first, again)
    assert not same_bits(first, other)


@pytest.mark.parametrize("rescale", ["unbiased", "l1"])
@pytest.mark.parametrize("key", ["dare", "della"])
def test_dropping_keeps_the_expectation(tmp_path: Path, key: str, rescale: str) -> None:
    base = {"w.weight": torch.zeros(1, 40_000, dtype=torch.float64)}
    values = torch.linspace(-1, 2, 40_000, dtype=torch.float64)[torch.randperm(40_000)]
    one = Family(tmp_path, base, [{"w.weight": values[None]}])
    knobs: dict[str, Any] = {"rescale": rescale} | ({"elect": False} if key == "della" else {})
    merged = one.state(method=key, coefficient=1.0, knobs=knobs)["w.weight"]
    assert float(merged.sum()) == pytest.approx(float(values.sum()), rel=0.05)
    share = {"dare": 0.5, "della": 0.7}[key]
    assert float((merged != 0).double().mean()) == pytest.approx(share, abs=0.02)
    if rescale == "l1":
        assert float(merged.abs().sum()) == pytest.approx(float(values.abs().sum()), rel=1e-12)


def test_model_stock_does_not_depend_on_the_size_of_task_vectors(tmp_path: Path) -> None:
    # A floor of 1e-6 on the product of norms makes the cosine of short vectors .009 instead of .9.
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal(50), rng.standard_normal((2, 50))
    for size in (1.0, 1e-6):
        base = {"w": torch.zeros(50, dtype=torch.float64)}
        tau = size * (3 * common + own)
        one = Family(tmp_path / str(size), base, [{"w": torch.from_numpy(t)} for t in tau])
        merged = one.state(method="model_stock")["w"].numpy()
        np.testing.assert_allclose(merged / size, tau.mean(0) / size, rtol=0.1, atol=0.2)


def test_model_stock_with_opposite_experts_is_the_base(tmp_path: Path) -> None:
    # t has a pole at cos = -1/(K - 1); below 0 the cosine is taken as 0.
    tau = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = {"w": torch.ones(20, dtype=torch.float64)}
    one = Family(tmp_path, base, [{"w": 1 + tau}, {"w": 1 - tau}])
    assert same_bits(one.state(method="model_stock"), base)


def test_sce_weighs_small_task_vectors_as_it_does_large_ones(tmp_path: Path) -> None:
    # An absolute test for 1e-6 would give equal weights at the size of fine-tuned language models.
    rng = np.random.default_rng(0)
    tau = np.abs(rng.standard_normal((2, 40))) * np.array([[1.0], [3.0]])
    merged = {}
    for size in (1.0, 1e-5):
        base = {"w": torch.zeros(40, dtype=torch.float64)}
        experts = [{"w": torch.from_numpy(size * t)} for t in tau]
        merged[size] = Family(tmp_path / str(size), base, experts).state(method="sce")["w"] / size
    torch.testing.assert_close(merged[1e-5], merged[1.0])
    assert (merged[1.0] > torch.from_numpy(tau.mean(0)) - 1e-9)[tau[1] > tau[0]].all()


def test_breadcrumbs_keeps_short_tensors(tmp_path: Path) -> None:
    # int(0.01 * 64) = 0 outliers once made the slice of what is kept empty.
    base = {"w": torch.zeros(64, dtype=torch.float64)}
    tau = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = Family(tmp_path, base, [{"w": tau}])
    for key in ("breadcrumbs", "breadcrumbs_tensor"):
        merged = one.state(method=key, coefficient=1.0, knobs={"density": 0.5})["w"]
        assert int((merged != 0).sum()) == 32


def test_della_copes_with_rows_of_one_entry(tmp_path: Path) -> None:
    base = {"w": torch.zeros(4000, 1, dtype=torch.float64)}
    one = Family(tmp_path, base, [{"w": torch.ones(4000, 1, dtype=torch.float64)}])
    merged = one.state(method="della", coefficient=1.0)["w"]
    assert float((merged != 0).double().mean()) == pytest.approx(0.7, abs=0.03)


def test_della_refuses_probabilities_that_are_none() -> None:
    with pytest.raises(RecipeError, match=r"contradict.*from 0\.75 to 1\.05.*at most 1"):
        awd.Recipe(base="b", experts=["a"], method="della", knobs={"density": 0.9, "epsilon": 0.15})


def test_widen_gives_columns_that_did_not_move_the_lowest_rank(tmp_path: Path) -> None:
    # A column of zeros is 0/0 in the plain formula, and one that did not move is rounding.
    rng = np.random.default_rng(0)
    base = rng.standard_normal((3, 4))
    base[:, 0] = 0
    tau = rng.standard_normal((2, 3, 4))
    tau[:, :, :2] = 0
    state = {"w.weight": torch.from_numpy(base)}
    one = Family(tmp_path, state, [{"w.weight": torch.from_numpy(base + t)} for t in tau])
    merged = one.state(method="widen", coefficient=1.0)["w.weight"].numpy()
    np.testing.assert_allclose(merged[:, 2:], (base + tau.sum(0))[:, 2:])  # important to both
    np.testing.assert_array_equal(merged[:, :2], base[:, :2])


def test_weights_that_cancel_are_refused(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    with pytest.raises(RecipeError, match=r"weights of the experts sum to 0.*\[1\.0, -1\.0\]"):
        one.state(method="weighted_average", coefficients=[1.0, -1.0])


@pytest.mark.parametrize("metrics", [[0.5, 0.0], [-0.1, 0.5]])
def test_metrics_must_be_positive(tmp_path: Path, metrics: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"Metrics must be positive"):
        family(tmp_path, 2).state(method="metrics_weighted", coefficients=metrics)


def test_slerp_is_linear_where_experts_are_close(tmp_path: Path) -> None:
    base = base_state(dtype=torch.float64)
    close = [base | {name: base[name] * (1 + 1e-3 * k) + 1e-4 for name in SHAPES} for k in (1, 2)]
    one = Family(tmp_path, base, close)
    torch.testing.assert_close(one.state(method="slerp"), one.state(method="average"))


# LiNeS


def test_lines_grows_with_the_block() -> None:
    names = ["embed.weight", "layers.0.w", "layers.1.w", "layers.4.w", "norm.weight"]
    scales = block_scales(names, 0.25, 0.6)
    expected_scales = [0.25, 0.25, 0.4, 0.85, 0.25]
    np.testing.assert_allclose([scales[name] for name in names], expected_scales)


def test_lines_counts_every_stack_by_itself() -> None:
    names = ["encoder.layers.0.w", "encoder.layers.2.w", "decoder.layers.0.w", "decoder.layers.1.w"]
    scales = block_scales(names, 0.0, 1.0)
    assert [scales[name] for name in names] == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "magmax"])
def test_lines_scales_what_a_method_merges(tmp_path: Path, method: str) -> None:
    one = family(tmp_path, 3, torch.float64)
    plain = one.state(method=method, coefficient=1.0)
    base, tau = floats(one), one.task_vectors()
    updates = {name: plain[name].numpy() - base[name] for name in SHAPES}
    before = sum(np.abs(tau[name].sum(0)).sum() for name in SHAPES)
    first = before / sum(np.abs(update).sum() for update in updates.values()) / 3
    if method == "task_arithmetic":
        assert first == pytest.approx(1 / 3)
    scales = block_scales(list(SHAPES), first, 0.5)
    assert scales[BIAS] != scales["encoder.layer.1.output.dense.weight"]
    found = one.state(method=method, coefficient=0.8, lines={"slope": 0.5})
    for name, update in updates.items():
        wanted = base[name] + 0.8 * scales[name] * update
        np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_lines_with_lambda_zero_is_the_base(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    assert same_bits(one.state(coefficient=0.0, lines={}), one.base_state)
    assert not same_bits(one.state(coefficients=[1.0, 0.0], lines={}), one.expert_states[0])
