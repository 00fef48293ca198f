"""The kernel of linear merges against the plain definition, operation by operation in torch."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import awd_core as awd
from awd_core import parallel
from awd_core.stream import CODES
from tests.helpers import Family, State, expert_states, family, same_bits
from tests.unit.test_lora import save_adapter, save_base

TYPES = [*(one.torch for one in CODES), torch.float8_e4m3fn, torch.float8_e5m2]


def plainly(one: Family, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> State:
    with monkeypatch.context() as patch:
        patch.setattr(import_module("awd_core.merge"), "is_weighted_sum", lambda plan: False)
        return one.state(**fields)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("out", ["base", "float32", "bfloat16", "float16"])
def test_a_weighted_sum_is_the_plain_definition_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"a.weight": torch.randn(40, 700).to(dtype), "b": torch.randn(1234).to(dtype)}
    one = Family(tmp_path, base, expert_states(base, 3))
    fields = {"coefficients": [0.3, -0.7, 1.1], "dtype": out}
    assert same_bits(one.state(**fields), plainly(one, monkeypatch, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"disentangle": {"granularity": "row", "steps": 30}},
        {"disentangle": {"granularity": "tensor", "steps": 30}, "equalise_norms": True},
        {"equalise_norms": True},
    ],
    ids=str,
)
def test_weights_of_rows_and_tensors_give_the_plain_definition(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = family(tmp_path, 5, torch.float64)
    found, expected = one.state(**fields), plainly(one, monkeypatch, **fields)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-13, atol=1e-14)


def test_experts_of_other_types_than_the_base_are_read_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"a.weight": torch.randn(40, 700)}
    kinds = (torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
    experts = [{"a.weight": (base["a.weight"] * (1 + k / 9)).to(d)} for k, d in enumerate(kinds)]
    one = Family(tmp_path, base, experts)
    assert same_bits(one.state(), plainly(one, monkeypatch))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_threads_changes_no_bit(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"a.weight": torch.randn(900, 700), "b": torch.randn(300_000)}
    one = Family(tmp_path, base, expert_states(base, 3))
    expected = one.state()
    monkeypatch.setattr(parallel, "WORKERS", workers)
    assert same_bits(one.state(), expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "fields",
    [{}, {"disentangle": {"granularity": "row", "steps": 30}, "equalise_norms": True}],
    ids=str,
)
def test_adapters_as_one_product_give_the_plain_definition(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base", torch.float32)
    adapters = [str(save_adapter(tmp_path / str(seed), base, seed)) for seed in (1, 2, 3)]
    recipe = awd.Recipe(base=str(base), experts=adapters, coefficient=0.4, **fields)
    found = awd.merged_state(awd.plan_merge(recipe, device="cpu"))
    monkeypatch.setattr(import_module("awd_core.merge"), "is_weighted_sum", lambda plan: False)
    for name, tensor in awd.merged_state(awd.plan_merge(recipe, device="cpu")).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
        assert (found[name] == tensor).float().mean() > 0.99
