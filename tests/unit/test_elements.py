"""Counts over elements: the compiled kernel, its twin for the GPU, and plain NumPy agree."""

from pathlib import Path

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core.element_kernels import _same_bfloat16
from awd_core.elements import (
    DENSITIES,
    MASK_SHARES,
    UPDATE_SCALES,
    ElementCounts,
    Magnitudes,
    count_as_tensors,
)
from tests.helpers import Family, base_state, chunk_of, expert_states, family
from tests.reference import elements, merging


def trimmed(vectors: np.ndarray, density: float) -> np.ndarray:
    """Signs of the largest share, with all that lie in the bin of the last one, else 0."""
    magnitudes = np.abs(vectors.astype(np.float32))
    rank = int(np.ceil(density * vectors.shape[1]))
    threshold = np.sort(magnitudes, axis=1)[:, vectors.shape[1] - rank, None]
    floor = (threshold.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where((magnitudes >= floor) | (density == 1), np.sign(vectors), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_count_equals_that_over_explicit_vectors(tmp_path: Path, dtype: torch.dtype) -> None:
    base = base_state(dtype=dtype)
    # Many elements that an expert leaves alone, and many that cancel.
    experts = expert_states(base, 5, size=0.003)
    made = Family(tmp_path, base, experts)
    study = made.study(out=tmp_path / "study")
    for name, tau in made.task_vectors().items():
        if not tau.size:
            continue
        vectors = tau.reshape(5, -1)
        weights = base[name].double().numpy().ravel()
        found = {key: array[study.index[name]] for key, array in vars(study.elements).items()}
        for level, density in enumerate(DENSITIES):
            agreement, overlap = merging.sign_counts(vectors, density)
            np.testing.assert_array_equal(found["agreement"][level], agreement)
            np.testing.assert_array_equal(found["overlap"][level], overlap)
            expected = np.zeros((6, 6), dtype=np.int64)
            for up, down in elements.votes(trimmed(vectors, density)):
                expected[up, down] += 1
            np.testing.assert_array_equal(found["votes"][level], expected)
        for level, share in enumerate(MASK_SHARES):
            masks = elements.tall_masks(vectors, share)
            np.testing.assert_array_equal(
                found["shared_claims"][level], masks.astype(int) @ masks.T.astype(int)
            )
            moved = (vectors != 0).any(0).sum()
            expected = elements.claimed(vectors, share) * moved
            np.testing.assert_allclose(found["claims"][level], expected, atol=1e-9)
        for k, update in enumerate([*vectors, vectors.sum(0)]):
            assert found["moved"][k] == (update != 0).sum()
            for level, scale in enumerate(UPDATE_SCALES):
                share = np.nan_to_num(elements.lost(weights, scale * update))
                expected = share * found["moved"][k]
                np.testing.assert_allclose(found["lost"][level, k], expected, atol=1e-9)


@pytest.mark.parametrize("n", [1, 63, 1024, 4096, 9000])
@pytest.mark.parametrize("n_experts", [1, 3, 9, 17])
def test_tensor_operations_count_what_the_kernel_counts(n: int, n_experts: int) -> None:
    generator = torch.Generator().manual_seed(n)
    base = torch.randn(n, generator=generator, dtype=torch.float64)
    vectors = torch.randn(n_experts, n, generator=generator, dtype=torch.float64) * 0.01
    vectors[torch.rand(n_experts, n, generator=generator) < 0.3] = 0.0
    _same_counts(base, vectors)


def _same_counts(base: torch.Tensor, vectors: torch.Tensor) -> ElementCounts:
    magnitudes, chunk = Magnitudes(len(vectors)), chunk_of(base, vectors)
    magnitudes.add(magnitudes.part(chunk))
    follower = magnitudes.followed_by()
    if follower is None:
        assert not vectors.any()
        return ElementCounts.zeros(len(vectors))
    kernel, operations = follower.part(chunk), ElementCounts.zeros(len(vectors))
    count_as_tensors(base, vectors, follower._floors, operations)
    for name, array in vars(operations).items():
        lower = np.tril if name in ("agreement", "overlap", "shared_claims") else np.array
        np.testing.assert_array_equal(getattr(kernel, name), lower(array), err_msg=name)
    return operations


def test_sums_that_cancel_are_added_in_the_same_order() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(33, 4000, generator=generator, dtype=torch.float64)
    vectors[-1] = -sum(vectors[:-1])
    _same_counts(torch.zeros(4000, dtype=torch.float64), vectors)


@pytest.mark.parametrize("scale", [1e300, 1e-36])
def test_numbers_at_both_ends_of_float32(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 100, generator=generator, dtype=torch.float64)
    vectors[:, :50] *= scale
    counted = _same_counts(torch.zeros(100, dtype=torch.float64), vectors)
    assert (counted.overlap[DENSITIES.index(0.5)].diagonal() >= 50).all()


def test_chunks_of_zeros_do_not_widen_a_histogram() -> None:
    magnitudes = Magnitudes(2)
    vectors = torch.full((2, 8), 1.5, dtype=torch.float64)
    for size in (0.0, 1.0, 0.0):
        magnitudes.add(magnitudes.part(chunk_of(torch.zeros(8), size * vectors)))
    assert magnitudes._found is not None
    assert magnitudes._found.counts.shape == (2, 1)
    assert (magnitudes._found.zeros == 16).all()


def test_a_bfloat16_expert_loses_none_of_its_own_moves(tmp_path: Path) -> None:
    study = family(tmp_path, 2, torch.bfloat16).study(out=tmp_path / "study")
    assert study.elements.moved.sum() > 0
    assert not study.elements.lost[:, UPDATE_SCALES.index(1.0), :-1].any()


def test_an_expert_alone_claims_all_that_it_moves(tmp_path: Path) -> None:
    study: awd.Study = family(tmp_path, 1).study(out=tmp_path / "study")
    counts = study.elements
    np.testing.assert_array_equal(
        counts.claims[:, :, 1], np.broadcast_to(counts.moved[:, :1], counts.claims[:, :, 1].shape)
    )


def test_the_bounds_of_a_bfloat16_are_the_last_numbers_that_become_it() -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 0x7F7FFFFF, 4000).astype(np.int32)
    halfway = (patterns & np.int32(-65536)) | np.int32(0x8000)
    singles = np.concatenate([patterns, halfway, halfway - 1, halfway + 1]).view(np.float32)
    edges = [0.0, 1e-45, 1e-320, 3.3895314e38, 3.4e38, 1e300]
    base = np.concatenate([singles.astype(np.float64), np.array(edges)])
    base = np.concatenate([base, -base])
    lowest, highest = np.empty_like(base), np.empty_like(base)
    _same_bfloat16(base, lowest, highest)

    def rounded(values: np.ndarray) -> np.ndarray:
        return torch.from_numpy(values).to(torch.bfloat16).to(torch.float64).numpy()

    own = rounded(base)
    assert (rounded(lowest) == own).all()
    assert (rounded(highest) == own).all()
    below, above = np.nextafter(lowest, -np.inf), np.nextafter(highest, np.inf)
    assert ((rounded(below) != own) | (below == -np.inf)).all()
    assert ((rounded(above) != own) | (above == np.inf)).all()
