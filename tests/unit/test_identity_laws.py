"""What must hold for every kind of input: nothing, one expert, and AWD that subtracts nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import awd_core as awd
from awd_core.checkpoints import Checkpoint
from tests.helpers import CONFIG, State, base_state, expert_states, same_bits, save

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def single(folder: Path, state: State) -> Path:
    return save(folder, state)


def sharded(folder: Path, state: State) -> Path:
    return save(folder, state, shards=3)


def no_index(folder: Path, state: State) -> Path:
    (save(folder, state, shards=3) / INDEX).unlink()
    return folder


def bare_file(folder: Path, state: State) -> Path:
    return save(folder, state) / SINGLE


def pickled(folder: Path, state: State) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def adapter(folder: Path, generator: torch.Generator) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 3}')
    factors = {}
    for name, shape in (("encoder.layer.0.attention.self.query", (5, 12)), ("column", (11, 1))):
        for side, size in (("A", (2, shape[1])), ("B", (shape[0], 2))):
            key = f"base_model.model.{name}.lora_{side}.weight"
            factors[key] = 0.1 * torch.randn(size, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


LAYOUTS: list[Callable[[Path, State], Path]] = [single, sharded, no_index, bare_file, pickled]
DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn,
    torch.float8_e5m2,
]  # fmt: skip
KINDS = [
    *((layout, torch.float32) for layout in LAYOUTS),
    *((single, dtype) for dtype in DTYPES[1:]),
    *((None, dtype) for dtype in DTYPES[:4]),
]


class Inputs:
    """A base and two experts of one kind, opened, and what they hold."""

    def __init__(
        self, root: Path, layout: Callable[[Path, State], Path] | None, dtype: torch.dtype
    ) -> None:
        self.is_lora = layout is None
        self.base_state = base_state(dtype=dtype)
        self.expert_states = expert_states(self.base_state, 2)
        put = layout or single
        generator = torch.Generator().manual_seed(3)
        self.paths = [put(root / "base", self.base_state)]
        for k, state in enumerate(self.expert_states):
            folder = root / f"expert-{k}"
            self.paths.append(put(folder, state) if layout else adapter(folder, generator))

    def merge(self, **fields: Any) -> State:
        opened: list[Checkpoint] = [
            awd.open_checkpoint(path, allow_pickle=True) for path in self.paths
        ]
        recipe = awd.Recipe(
            base=str(self.paths[0]), experts=[str(path) for path in self.paths[1:]], **fields
        )
        plan = awd.plan_merge(recipe, device="cpu", checkpoints=(opened[0], opened[1:]))
        return awd.merged_state(plan)

    def expert(self, index: int) -> State:
        """theta_k by definition; of an adapter, theta_0 + s B A with PEFT's float32 product."""
        if not self.is_lora:
            return self.expert_states[index]
        state = dict(self.base_state)
        factors = load_file(self.paths[1 + index] / "adapter_model.safetensors")
        for key, b in factors.items():
            if ".lora_B." in key:
                name = key.removeprefix("base_model.model.").replace(".lora_B", "")
                product = b @ factors[key.replace("lora_B", "lora_A")] * 1.5
                whole = state[name].double() + product.double()
                state[name] = whole.to(state[name].dtype)
        return state


@pytest.fixture(
    params=KINDS, ids=lambda kind: f"{kind[0].__name__ if kind[0] else 'lora'}-{kind[1]}"
)
def inputs(request: pytest.FixtureRequest, tmp_path: Path) -> Inputs:
    return Inputs(tmp_path, *request.param)


@pytest.mark.parametrize("disentangle", [None, {"granularity": "row", "steps": 5}], ids=["", "awd"])
def test_lambda_zero_is_the_base_bit_for_bit(inputs: Inputs, disentangle: Any) -> None:
    assert same_bits(inputs.merge(coefficient=0.0, disentangle=disentangle), inputs.base_state)


@pytest.mark.parametrize("index", [0, 1])
def test_one_expert_with_lambda_one_is_the_expert_bit_for_bit(inputs: Inputs, index: int) -> None:
    merged = inputs.merge(coefficients=[float(k == index) for k in range(2)])
    assert same_bits(merged, inputs.expert(index))


def test_one_expert_through_the_sum_is_the_expert_within_one_rounding(inputs: Inputs) -> None:
    # AWD without a step takes the long way: theta_0 + sum of lambda_k tau_k.
    merged = inputs.merge(coefficients=[1, 0], disentangle={"steps": 0})
    for name, expert in inputs.expert(0).items():
        if expert.is_floating_point() and expert.numel():
            found, wanted = merged[name].double(), expert.double()
            ulp = torch.finfo(expert.dtype).eps * wanted.abs() + torch.finfo(expert.dtype).tiny
            assert bool(((found - wanted).abs() <= ulp + 1e-7 * inputs.is_lora).all()), name


@pytest.mark.parametrize("granularity", ["model", "block", "tensor", "row"])
def test_awd_that_subtracts_nothing_is_task_arithmetic_bit_for_bit(
    inputs: Inputs, granularity: str
) -> None:
    settings = {"granularity": granularity, "steps": 0}
    with_awd = inputs.merge(coefficient=0.3, disentangle=settings)
    assert same_bits(with_awd, inputs.merge(coefficient=0.3))
    assert not same_bits(with_awd, inputs.base_state)
