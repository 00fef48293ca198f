"""What holds for every measure of MEASURES, whatever the vectors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analysis import tables
from analysis.measure import Measure
from analysis.measures import MEASURES
from analysis.view import SCOPES, View
from awd_core.disentangle import Granularity, Settings, solve
from awd_core.elements import DENSITIES, ElementCounts, count_as_tensors
from awd_core.study import SourceInfo, Study, TensorInfo

TENSORS = (
    ("layer.0.attention.q_proj.weight", "block 0", "attention.q"),
    ("layer.1.attention.q_proj.weight", "block 1", "attention.q"),
    ("layer.1.mlp.up_proj.weight", "block 1", "mlp.up"),
)
# Zeros are common, so that zero vectors are; no number is so small that its square is not.
NUMBERS = st.one_of(st.just(0.0), st.integers(-512, 512).map(lambda n: n / 256))
# Spectra need matrices on disk: tests/unit/test_spectra.py.
every_measure = pytest.mark.parametrize(
    "one", [one for one in MEASURES if one.needs != "spectra"], ids=lambda one: one.key
)


def counts_of(vectors: np.ndarray) -> ElementCounts:
    """Counts of (tensors, K, n) task vectors, without a trim, over a base of ones."""
    n_tensors, n_experts, n = vectors.shape
    counted = ElementCounts.zeros(n_experts, n_tensors)
    floors = np.zeros((len(DENSITIES), n_experts), dtype=np.int32)
    for position, tau in enumerate(vectors):
        one = ElementCounts(**{name: array[position] for name, array in vars(counted).items()})
        count_as_tensors(torch.ones(n, dtype=torch.float64), torch.from_numpy(tau), floors, one)
        one.claims[:, 0] -= one.votes[0, 0, 0]
    return counted


def study_of(vectors: np.ndarray) -> Study:
    """A study of (tensors, K, n) task vectors, made in memory."""
    source = SourceInfo("", "", "", "", "")
    inner = np.einsum("tin,tjn->tij", vectors, vectors)
    n_elements = vectors.shape[2]
    return Study(
        path=None,
        base=source,
        sources=tuple(replace(source, label=f"e{k}") for k in range(vectors.shape[1])),
        tensors=tuple(
            TensorInfo(name, (1, n_elements), "float32", block, kind)
            for name, block, kind in TENSORS
        ),
        exclude=(),
        grams=inner,
        base_squared_norms=np.array([4.0, 0.0, 1.0]),
        elements=counts_of(vectors),
        digest=vectors.tobytes().hex(),
    )


@st.composite
def views(draw: st.DrawFn, least: int = 1) -> View:
    n_experts = draw(st.integers(least, 4))
    vectors = draw(arrays(np.float64, (len(TENSORS), n_experts, 5), elements=NUMBERS))
    multipliers = draw(
        arrays(np.float64, n_experts, elements=st.sampled_from([0.0, 0.3, 0.5, 1.0, -0.2]))
    )
    # Row Grams lie on disk only; the tests of the measures themselves have them.
    granularities: list[Granularity] = ["model", "block", "tensor"]
    study = study_of(vectors)
    chosen = Settings(
        granularity=draw(st.sampled_from(granularities)),
        alpha_relative=0.2,
        lr_relative=0.02,
        steps=draw(st.integers(0, 8)),
    )
    return View(study, solve(study, chosen), multipliers)


@every_measure
@settings(max_examples=20)
@given(view=views())
def test_shape_and_range(one: Measure, view: View) -> None:
    k = view.n_experts
    for scope in one.scopes:
        found = one.of(view, scope)
        parts = len(view.labels(scope))
        expected = {"part": (parts,), "expert": (parts, k), "pair": (parts, k, k)}[one.per]
        assert found.shape == expected
        known = found[~np.isnan(found)]
        assert np.isfinite(known).all()
        if one.key.endswith(("fraction", "density", "overlap", "agreement", "conflict")):
            assert ((known >= 0) & (known <= 1)).all()
        if "cosine" in one.key or one.key == "alignment":
            assert (np.abs(known) <= 1 + 1e-9).all()
        if one.key.startswith("sign_conflict"):
            assert ((known >= 0) & (known <= 1)).all()
        if "norm" in one.key or "absolute" in one.key:
            assert (known >= 0).all()


@every_measure
@settings(max_examples=15)
@given(view=views(least=2), seed=st.integers(0, 99))
def test_the_order_of_the_experts_does_not_matter(one: Measure, view: View, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(view.n_experts)
    solved = view.disentangled
    moments = replace(
        solved.by_tensor,
        grams=solved.by_tensor.grams[:, order][:, :, order],
        products=solved.by_tensor.products[:, order],
    )
    counts = view.study.elements
    with_sum = [*order, view.n_experts]
    shuffled = replace(
        counts,
        agreement=counts.agreement[..., order, :][..., order],
        overlap=counts.overlap[..., order, :][..., order],
        shared_claims=counts.shared_claims[..., order, :][..., order],
        moved=counts.moved[..., with_sum],
        lost=counts.lost[..., with_sum],
    )
    other = View(
        replace(view.study, elements=shuffled),
        replace(solved, span_coefficients=solved.span_coefficients[:, order], by_tensor=moments),
        view.multipliers[order],
    )
    for scope in SCOPES:
        expected = one.of(view, scope)
        if one.per != "part":
            expected = expected[:, order]
        if one.per == "pair":
            expected = expected[:, :, order]
        # Vectors that nearly cancel leave rounding, whose cosine is anything.
        np.testing.assert_allclose(one.of(other, scope), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=25)
@given(view=views(least=2))
def test_pairs_are_symmetric(view: View) -> None:
    for one in MEASURES:
        if one.per == "pair" and one.needs != "spectra":
            found = one.of(view, "block")
            np.testing.assert_allclose(found, found.transpose(0, 2, 1), rtol=1e-12)


@settings(max_examples=25)
@given(view=views())
def test_every_table_can_be_made(view: View) -> None:
    n_pairs = view.n_experts * (view.n_experts - 1) // 2
    assert len(tables.pair_by_block(view, "after")) == n_pairs * len(view.labels("block"))
    assert len(tables.pair_sign_by_block(view)) == n_pairs * len(view.labels("block"))
    assert len(tables.tensor_table(view)) == len(TENSORS)
    for table in (
        tables.summary(view),
        tables.norms_by_block(view),
        tables.redundant_by_block(view),
        tables.merged_norm_by_block(view),
        tables.shares_by_block(view),
        tables.retained(view),
        tables.loss_trace(view),
    ):
        assert not np.isinf(table.select_dtypes("number").to_numpy()).any()


@every_measure
def test_declared_in_full(one: Measure) -> None:
    assert one.formula.strip()
    assert one.title
    assert one.reading
    assert one.source
    assert one.unit
    assert one.scopes == SCOPES
    assert one.better in ("lower", "higher", None)
    assert one.baseline is None or 0 <= one.baseline <= 1
