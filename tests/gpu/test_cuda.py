"""What a GPU computes is what the CPU computes, to the rounding of float64 sums.

On a machine without one the same tests run on a pretended GPU: see `tests.pretended_gpu`.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import awd_core as awd
from awd_core import devices
from awd_core.spectra import Spectra
from awd_core.stream import chunks
from tests import pretended_gpu
from tests.helpers import QUERY, family, load, methods_for
from tests.own_models import own_recipe
from tests.unit.test_lora import save_adapter, save_base


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pretended_gpu.install(monkeypatch)


def merge_on_both(recipe: awd.Recipe, root: Path) -> None:
    """Merge on both and compare."""
    awd.merge(recipe, root / "on-cpu", device="cpu")
    awd.merge(recipe, root / "on-gpu", device="cuda")
    cpu, gpu = load(root / "on-cpu"), load(root / "on-gpu")
    assert set(cpu) == set(gpu)
    for name, tensor in cpu.items():
        assert gpu[name].dtype == tensor.dtype
        step = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
        torch.testing.assert_close(gpu[name], tensor, rtol=max(1e-6, step), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_study(tmp_path: Path, dtype: torch.dtype) -> None:
    made = family(tmp_path, 3, dtype)
    cpu, gpu = (
        awd.collect(made.base, made.experts, tmp_path / device, device=device, spectral=True)
        for device in ("cpu", "cuda")
    )
    largest = cpu.grams.max()
    np.testing.assert_allclose(gpu.grams, cpu.grams, rtol=1e-12, atol=1e-12 * largest)
    np.testing.assert_allclose(gpu.base_squared_norms, cpu.base_squared_norms, rtol=1e-12)
    for name, counts in vars(cpu.elements).items():
        np.testing.assert_array_equal(getattr(gpu.elements, name), counts)
    for tensor in cpu.tensors:
        if tensor.is_matrix:
            for level in (awd.Study.row_gram, awd.Study.spectral_gram):
                expected = level(cpu, tensor.name)
                np.testing.assert_allclose(
                    level(gpu, tensor.name), expected, rtol=1e-9, atol=1e-9 * largest
                )


def test_spectra(tmp_path: Path) -> None:
    made = family(tmp_path, 3)
    studies = []
    for device in ("cpu", "cuda"):
        study = awd.collect(made.base, made.experts, tmp_path / device, device=device)
        studies.append(awd.collect_spectra(study, made.base, made.experts, device=device))
    cpu, gpu = (study.spectra[1] for study in studies)
    for field in fields(Spectra):
        numbers = getattr(cpu, field.name)
        found = getattr(gpu, field.name)
        np.testing.assert_allclose(found, numbers, rtol=1e-6, atol=1e-7, err_msg=field.name)


@pytest.mark.parametrize("method", methods_for(3))
def test_every_method(tmp_path: Path, method: str) -> None:
    merge_on_both(family(tmp_path, 3).recipe(method=method), tmp_path)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare", "tsv_m"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_types(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    merge_on_both(family(tmp_path, 3, dtype).recipe(method=method), tmp_path)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("method", methods_for(2))
def test_adapters(tmp_path: Path, method: str) -> None:
    base = save_base(tmp_path / "base", torch.float32)
    adapters = [save_adapter(tmp_path / str(seed), base, seed) for seed in (1, 2)]
    merge_on_both(own_recipe(base, adapters, method=method), tmp_path)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "iso_c"])
@pytest.mark.parametrize(
    "settings",
    [
        *({"granularity": granularity} for granularity in ("model", "block", "tensor", "row")),
        {"granularity": "spectral"},
        {"granularity": "row", "row_average": True, "alpha": 0.1, "lr": 0.01},
        {"granularity": "tensor", "penalty": "l1", "steps": 20},
        {"granularity": "model", "optimizer": "adam", "steps": 20},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_awd(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    merge_on_both(family(tmp_path, 3).recipe(method=method, disentangle=settings), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"equalise_norms": True},
        {"lines": {}},
        {"block_factors": {"block 0": 0.5}},
        {"exclude": ("*.bias",)},
        {"dtype": "bfloat16"},
    ],
    ids=lambda options: "-".join(options),
)
def test_options(tmp_path: Path, options: dict[str, Any]) -> None:
    merge_on_both(family(tmp_path, 3).recipe(**options), tmp_path)


def test_chunks_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    made = family(tmp_path, 3, torch.bfloat16)
    for tensor in made.base.stored.values():
        if tensor.is_float:
            both = [
                chunks(tensor, made.experts, device, chunk_elements=8) for device in ("cpu", "cuda")
            ]
            for cpu, gpu in zip(*both, strict=True):
                assert torch.equal(gpu.base.cpu(), cpu.base)
                assert torch.equal(gpu.task_vectors.cpu(), cpu.task_vectors)


def test_a_merge_made_on_a_gpu_is_verified_on_it_and_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = family(tmp_path, 3).recipe(method="tsv_m")
    out = awd.merge(recipe, tmp_path / "out", device="cuda")
    assert "bit for bit" in _derived(out)
    weights = load(out)
    weights[QUERY][1, 1] = torch.nextafter(weights[QUERY][1, 1], torch.tensor(torch.inf))
    save_file(weights, out / "model.safetensors")
    assert "but for their last digits" in _derived(out)
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    assert "1 of them to rounding" in _derived(out)
    # One weight off by a thousandth is no rounding.
    weights[QUERY][1, 1] *= 1.001
    save_file(weights, out / "model.safetensors")
    assert "the folder or an input was changed" in _derived(out)


def test_a_merge_made_on_a_cpu_has_the_same_bits_everywhere(tmp_path: Path) -> None:
    out = awd.merge(family(tmp_path, 3).recipe(), tmp_path / "out", device="cpu")
    weights = load(out)
    weights[QUERY][1, 1] = torch.nextafter(weights[QUERY][1, 1], torch.tensor(torch.inf))
    save_file(weights, out / "model.safetensors")
    assert "but for their last digits" in _derived(out)


def _derived(out: Path) -> str:
    checks = {check.name: check.detail for check in awd.verify(out, load=False).checks}
    return checks["tensors follow from the recipe"]
