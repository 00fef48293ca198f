"""What a GPU computes is what the CPU computes, to the rounding of float64 sums."""

from pathlib import Path

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core.stream import chunks
from tests.helpers import family, load, methods_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_study_on_gpu_is_that_of_the_cpu(tmp_path: Path) -> None:
    made = family(tmp_path, n_experts=3)
    cpu = awd.collect(made.base, made.experts, tmp_path / "cpu", device="cpu")
    gpu = awd.collect(made.base, made.experts, tmp_path / "gpu", device="cuda")
    np.testing.assert_allclose(gpu.grams, cpu.grams, rtol=1e-12, atol=1e-12 * cpu.grams.max())
    for name, counts in vars(cpu.elements).items():
        np.testing.assert_array_equal(getattr(gpu.elements, name), counts)


@pytest.mark.parametrize("method", methods_for(3))
def test_merge_on_gpu_is_that_of_the_cpu(tmp_path: Path, method: str) -> None:
    made = family(tmp_path, n_experts=3)
    recipe = awd.Recipe(
        base=made.base.source, experts=[e.source for e in made.experts], method=method
    )
    awd.merge(recipe, tmp_path / "cpu", device="cpu")
    awd.merge(recipe, tmp_path / "gpu", device="cuda")
    cpu, gpu = load(tmp_path / "cpu"), load(tmp_path / "gpu")
    for name, tensor in cpu.items():
        torch.testing.assert_close(gpu[name], tensor, rtol=1e-6, atol=1e-7)


def test_chunks_of_the_gpu_are_those_of_the_cpu_bit_for_bit(tmp_path: Path) -> None:
    made = family(tmp_path, 3, torch.bfloat16)
    for tensor in made.base.stored.values():
        if tensor.is_float:
            both = [
                chunks(tensor, made.experts, device, chunk_elements=8) for device in ("cpu", "cuda")
            ]
            for cpu, gpu in zip(*both, strict=True):
                assert torch.equal(gpu.base.cpu(), cpu.base)
                assert torch.equal(gpu.task_vectors.cpu(), cpu.task_vectors)
