"""Close-ups against the weights themselves: signs, masks, singular values, over-counting."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import awd_core as awd
from analysis import element_figures, spectral_figures
from analysis.drawing import only
from analysis.exhibits import EXHIBITS, exhibits
from analysis.measures import spectral_overcounting
from analysis.report import html, reviewed
from analysis.theme import DARK, LIGHT, Theme
from analysis.view import View, factors_by_tensor
from tests.analysis_studies import Vectors, collected, random_vectors

K, LAMBDA = 3, 0.3
BLOCK = "block 1"
INSIDE = (
    "encoder.layer.1.attention.self.query.weight",
    "encoder.layer.1.intermediate.dense.weight",
)
MATRIX = "encoder.layer.1.intermediate.dense.weight"


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return random_vectors(K, seed=3)


@pytest.fixture(scope="module")
def study(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> awd.Study:
    return awd.collect_spectra(collected(tmp_path_factory.mktemp("close"), vectors))


@pytest.fixture(scope="module")
def view(study: awd.Study) -> View:
    multipliers = np.array([0.2, 0.5, 0.9])
    factors = factors_by_tensor(study, {BLOCK: 0.5})
    return View(study, awd.no_redundancy(study), multipliers, factors)


def traces(figure: Any) -> list[Any]:
    return list(figure.data)


def flat(vectors: Vectors, names: Any) -> np.ndarray:
    return np.concatenate([vectors[name].reshape(K, -1) for name in names], axis=1)


def test_agreement_is_that_of_the_weights(view: View, vectors: Vectors) -> None:
    table = element_figures.agreement(view, "block", BLOCK, density=1.0)
    for column, names in (("share", INSIDE), ("share_of_model", vectors)):
        signs = np.sign(flat(vectors, names))
        votes = np.abs(signs).sum(0)
        agreed = (np.abs(signs.sum(0)) / np.maximum(votes, 1))[votes >= 2]
        expected = np.histogram(np.minimum(agreed + 1e-9, 1.0), bins=10, range=(0, 1))[0]
        np.testing.assert_allclose(table[column], expected / expected.sum())
    figure = element_figures.agreement_bars(table, BLOCK)
    np.testing.assert_allclose(traces(figure)[0].y, table["share"], rtol=1e-6)
    np.testing.assert_allclose(traces(figure)[1].y, table["share_of_model"], rtol=1e-6)
    assert f"{table['share'].iloc[-1]:.1%}" in element_figures.agreement_sentence(table)


def test_masks_are_those_of_the_weights(view: View, vectors: Vectors) -> None:
    table = element_figures.masks(view, LAMBDA)
    densities = element_figures.mask_densities(view, LAMBDA, "block", BLOCK)
    for row, names in ((list(table["block"]).index(BLOCK), INSIDE), (-1, tuple(vectors))):
        tau = flat(vectors, names)
        needed = np.abs(tau) > LAMBDA * np.abs(tau.sum(0) - tau)
        claims, moved = needed.sum(0), tau.any(0)
        expected = [(claims[moved] >= 2).mean(), (claims[moved] == 1).mean()]
        found = table.iloc[row][["general", "selfish", "catastrophic"]].to_numpy(dtype=float)
        np.testing.assert_allclose(found, [*expected, 1 - sum(expected)], atol=1e-12)
        if row != -1:
            np.testing.assert_allclose(densities["density"], needed.mean(1))
    figure = element_figures.mask_bars(table, densities, BLOCK)
    for trace, name in zip(traces(figure)[:3], element_figures.CLASSES, strict=True):
        np.testing.assert_allclose(trace.y, table[name], rtol=1e-6)
    np.testing.assert_allclose(traces(figure)[3].y, densities["density"], rtol=1e-6)


def test_spectra_are_the_singular_values_of_the_matrix(view: View, vectors: Vectors) -> None:
    table = spectral_figures.spectrum(view, MATRIX)
    for k, expert in enumerate(view.experts):
        own = only(table, "expert", expert)
        expected = np.linalg.svd(vectors[MATRIX][k], compute_uv=False)
        np.testing.assert_allclose(own["value"], expected[: len(own)], rtol=1e-5)
        assert len(own) == len(expected)
        assert list(own["kept"]).count(True) == max(1, min(vectors[MATRIX][k].shape) // K)
    figure: Any = spectral_figures.spectrum_lines(table)
    lines = [trace for trace in traces(figure) if trace.mode == "lines"]
    np.testing.assert_allclose(np.concatenate([line.y for line in lines]), table["value"])
    assert figure.layout.yaxis.type == "log"


def scales(vectors: Vectors, multipliers: np.ndarray) -> np.ndarray:
    """s_r^k straight from the formula, (directions, K)."""
    tau = vectors[MATRIX]
    left = np.linalg.svd(tau.sum(0))[0][:, : min(tau.shape[1:])]
    along = np.einsum("or,koc->krc", left, tau)
    merged = np.einsum("k,krc->rc", multipliers, along)
    return np.einsum("rc,krc->rk", merged, along) / np.einsum("krc,krc->rk", along, along)


def test_overcounting_follows_lambda_and_its_factor_in_the_block(
    view: View, vectors: Vectors
) -> None:
    expected = scales(vectors, 0.5 * view.multipliers)
    table = spectral_figures.overcounting(view, MATRIX)
    np.testing.assert_allclose(table["scale"], expected.ravel(), rtol=1e-6)
    figure = spectral_figures.overcounting_heatmap(table)
    np.testing.assert_allclose(traces(figure)[0].z, expected.T, rtol=1e-5)
    # The measure is the same numbers, weighed by energy.
    tau = vectors[MATRIX]
    left = np.linalg.svd(tau.sum(0))[0][:, : min(tau.shape[1:])]
    energies = np.square(np.einsum("or,koc->krc", left, tau)).sum(2).T
    wrong = ((expected - 1) ** 2 * energies).sum(0) / energies.sum(0)
    found = spectral_overcounting.miscounted(view, "tensor")
    at = view.study.index[MATRIX]
    np.testing.assert_allclose(found[at], wrong, rtol=1e-6)


def test_the_matrix_of_a_part_is_the_one_that_moved_most(view: View, vectors: Vectors) -> None:
    energies = {name: np.square(vectors[name]).sum() for name in INSIDE}
    assert spectral_figures.most_moved_matrix(view, "block", BLOCK) == max(
        energies, key=lambda name: energies[name]
    )
    bias = "encoder.layer.0.attention.self.query.bias"
    assert spectral_figures.most_moved_matrix(view, "tensor", bias) is None


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_close_up_is_a_slide_and_in_the_report(view: View, theme: Theme) -> None:
    shown = {one.key: one for one in exhibits(view)}
    assert list(shown) == [one.key for one in EXHIBITS]
    text = html(reviewed(view.study))
    for key in ("agreement", "masks", "spectrum", "overcounting"):
        one = shown[key]
        assert isinstance(one.table(view), pd.DataFrame)
        assert not one.table(view).empty
        assert one.sentence(view).endswith(".")
        drawn: Any = one.draw(view, theme)
        assert drawn.layout.font.color == theme.muted
        assert f'<section id="{key}">' in text


def test_without_spectra_their_slides_are_left_out(tmp_path: Path) -> None:
    study = collected(tmp_path, random_vectors(2, seed=1))
    found = View(study, awd.no_redundancy(study), np.ones(2))
    keys = {one.key for one in exhibits(found)}
    assert {"agreement", "masks"} <= keys
    assert not {"spectrum", "overcounting"} & keys


def test_a_report_sees_lambda_by_block(study: awd.Study) -> None:
    recipe = awd.Recipe(
        base=study.base.source,
        experts=[source.source for source in study.sources],
        block_factors={BLOCK: 0.25},
    )
    view = reviewed(study, recipe).view
    assert view.factors is not None
    blocks = np.array([tensor.block for tensor in study.tensors])
    np.testing.assert_array_equal(view.factors, np.where(blocks == BLOCK, 0.25, 1.0))
