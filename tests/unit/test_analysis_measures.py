"""Every measure against explicit vectors: tau_k, delta and tau_M themselves, never their Grams."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import awd_core as awd
from analysis import measure_docs
from analysis.measure import Measure
from analysis.measures import MEASURES, measure
from analysis.view import SCOPES, Scope, View
from awd_core.disentangle import GRANULARITIES
from awd_core.elements import DENSITIES
from tests.analysis_studies import SHAPES, base_weights, collected, random_vectors
from tests.reference import elements

MULTIPLIERS = np.array([0.3, 0.5, 0.2, 0.4])
# Those of spectra are in test_spectra.py.
PLAIN = [one for one in MEASURES if one.needs != "spectra"]
VECTORS = random_vectors(len(MULTIPLIERS), seed=1)

PARTS: dict[Scope, dict[str, list[str]]] = {
    "model": {"model": list(SHAPES)},
    "block": {
        "embedding": [name for name in SHAPES if name.startswith("embeddings")],
        "block 0": [name for name in SHAPES if ".layer.0." in name],
        "block 1": [name for name in SHAPES if ".layer.1." in name],
    },
    "kind": {
        "embedding": ["embeddings.word_embeddings.weight"],
        "attention.q": [name for name in SHAPES if name.endswith("query.weight")],
        "bias": ["encoder.layer.0.attention.self.query.bias"],
        "mlp.up": [name for name in SHAPES if "intermediate" in name],
        "norm": ["encoder.layer.0.output.LayerNorm.weight"],
    },
    "tensor": {name: [name] for name in SHAPES},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> awd.Study:
    return collected(tmp_path_factory.mktemp("measures"), VECTORS)


@pytest.fixture(scope="module", params=GRANULARITIES)
def view(study: awd.Study, request: pytest.FixtureRequest) -> View:
    solved = awd.disentangle(study, request.param, alpha_relative=0.1, lr_relative=0.02, steps=40)
    return View(study, solved, MULTIPLIERS)


def redundant(view: View, name: str) -> np.ndarray:
    """delta of one tensor, summed up from the coefficients of each of its rows or of the whole."""
    c = view.disentangled.coefficients_of(view.study.index[name])
    tau = VECTORS[name]
    if len(c) == 1:
        return np.tensordot(c[0], tau, 1)
    return np.stack([np.tensordot(c[r], tau[:, r], 1) for r in range(len(c))])


@dataclass(frozen=True)
class Part:
    """The vectors of some tensors, laid out flat."""

    view: View
    names: list[str]

    @cached_property
    def tau(self) -> np.ndarray:
        return np.concatenate([VECTORS[name].reshape(4, -1) for name in self.names], axis=1)

    @cached_property
    def delta(self) -> np.ndarray:
        return np.concatenate([redundant(self.view, name).ravel() for name in self.names])

    @cached_property
    def base(self) -> np.ndarray:
        weights = base_weights(VECTORS)
        return np.concatenate([weights[name].ravel() for name in self.names])

    @cached_property
    def v(self) -> np.ndarray:
        return self.tau - self.delta

    @cached_property
    def merged(self) -> np.ndarray:
        return MULTIPLIERS @ self.v

    @cached_property
    def task_arithmetic(self) -> np.ndarray:
        return MULTIPLIERS @ self.tau

    @cached_property
    def trimmed(self) -> np.ndarray:
        """The largest fifth of each tensor, else 0."""
        kept = [np.stack([largest(tau, 0.2) for tau in tensor.tau]) for tensor in self.tensors]
        return np.concatenate(kept, axis=1)

    @cached_property
    def tensors(self) -> list["Part"]:
        return [Part(self.view, [name]) for name in self.names]

    @cached_property
    def mean_c(self) -> np.ndarray:
        """c_k weighted by the energy of its group, group after group."""
        weighted, energy = np.zeros(4), np.zeros(4)
        for name in self.names:
            c = self.view.disentangled.coefficients_of(self.view.study.index[name])
            groups = VECTORS[name].reshape(4, len(c), -1)
            for k in range(4):
                for g in range(len(c)):
                    square = float((groups[k, g] ** 2).sum())
                    weighted[k] += c[g, k] * square
                    energy[k] += square
        return weighted / energy


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def cosines(vectors: np.ndarray) -> np.ndarray:
    return np.array([[cosine(a, b) for b in vectors] for a in vectors])


def mean_cosine(vectors: np.ndarray) -> float:
    return float(np.mean([abs(cosine(a, b)) for a, b in combinations(vectors, 2)]))


def signed_mean(vectors: np.ndarray) -> float:
    return float(np.mean([cosine(a, b) for a, b in combinations(vectors, 2)]))


def participation(vectors: np.ndarray) -> float:
    """From the spectrum instead of the Gram: (sum s^2)^2 / sum s^4."""
    squares = np.linalg.svd(vectors, compute_uv=False) ** 2
    return float(squares.sum() ** 2 / (squares**2).sum())


def by_parameters(tensors: list[np.ndarray]) -> float:
    sizes = [vectors.shape[1] for vectors in tensors]
    return float(np.average([mean_cosine(vectors) for vectors in tensors], weights=sizes))


def by_energy(tensors: list[np.ndarray]) -> float:
    shared = sum(abs(float(a @ b)) for vectors in tensors for a, b in combinations(vectors, 2))
    whole = sum(
        float(np.linalg.norm(a) * np.linalg.norm(b))
        for vectors in tensors
        for a, b in combinations(vectors, 2)
    )
    return shared / whole


def largest(vector: np.ndarray, density: float) -> np.ndarray:
    """Signs of the largest entries, with everything in the bin of the last one, else 0."""
    bits = np.abs(vector).astype(np.float32).view(np.uint32)
    last = np.sort(bits)[::-1][int(np.ceil(density * bits.size)) - 1]
    kept = bits >= (last >> 16 << 16) if density < 1 else np.ones(bits.shape, bool)
    return np.where(kept, np.sign(vector), 0.0)


def conflicts(part: Part, density: float) -> np.ndarray:
    trimmed = np.concatenate(
        [np.stack([largest(tau, density) for tau in tensor.tau]) for tensor in part.tensors], axis=1
    )
    found = np.full((4, 4), np.nan)
    for i in range(4):
        for j in range(4):
            both = (trimmed[i] != 0) & (trimmed[j] != 0)
            if both.any():
                found[i, j] = np.mean(trimmed[i][both] != trimmed[j][both])
    return found


def norms(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1)


ORACLES: dict[str, Callable[[Part], np.ndarray | float]] = {
    "cosine_before": lambda part: cosines(part.tau),
    "cosine_after": lambda part: cosines(part.v),
    "absolute_cosine_before": lambda part: np.abs(cosines(part.tau)),
    "absolute_cosine_after": lambda part: np.abs(cosines(part.v)),
    "mean_cosine_before": lambda part: signed_mean(part.tau),
    "mean_cosine_after": lambda part: signed_mean(part.v),
    "mean_absolute_cosine_by_tensors_before": lambda part: float(
        np.mean([mean_cosine(tensor.tau) for tensor in part.tensors])
    ),
    "mean_absolute_cosine_by_tensors_after": lambda part: float(
        np.mean([mean_cosine(tensor.v) for tensor in part.tensors])
    ),
    "element_conflict": lambda part: elements.conflict(part.trimmed),
    "element_agreement": lambda part: elements.agreement(part.trimmed),
    "catastrophic_fraction": lambda part: elements.claimed(part.tau, 0.4)[0],
    "selfish_fraction": lambda part: elements.claimed(part.tau, 0.4)[1],
    "general_fraction": lambda part: elements.claimed(part.tau, 0.4)[2:].sum(),
    "mask_density": lambda part: elements.tall_masks(part.tau, 0.4).mean(1),
    "mask_overlap": lambda part: elements.overlap(elements.tall_masks(part.tau, 0.4)),
    "exact_zero_fraction": lambda part: (part.tau == 0).mean(1),
    "lost_update_fraction": lambda part: np.array(
        [elements.lost(part.base, tau) for tau in part.tau]
    ),
    "lost_update_fraction_of_merge": lambda part: elements.lost(part.base, 0.3 * part.tau.sum(0)),
    "energy_share": lambda part: MULTIPLIERS * (part.v @ part.merged) / (part.merged @ part.merged),
    "norm_imbalance": lambda part: norms(part.tau).max() / norms(part.tau).min(),
    "effective_directions_before": lambda part: participation(part.tau),
    "effective_directions_after": lambda part: participation(part.v),
    "mean_absolute_cosine_before": lambda part: mean_cosine(part.tau),
    "mean_absolute_cosine_after": lambda part: mean_cosine(part.v),
    "mean_absolute_cosine_by_parameters_before": lambda part: by_parameters(
        [tensor.tau for tensor in part.tensors]
    ),
    "mean_absolute_cosine_by_parameters_after": lambda part: by_parameters(
        [tensor.v for tensor in part.tensors]
    ),
    "mean_absolute_cosine_by_energy_before": lambda part: by_energy(
        [tensor.tau for tensor in part.tensors]
    ),
    "mean_absolute_cosine_by_energy_after": lambda part: by_energy(
        [tensor.v for tensor in part.tensors]
    ),
    "sign_conflict": lambda part: conflicts(part, 1.0),
    "sign_conflict_of_largest": lambda part: conflicts(part, 0.2),
    "task_vector_norm": lambda part: norms(part.tau),
    "relative_task_vector_norm": lambda part: norms(part.tau) / norms(part.base),
    "task_vector_rms": lambda part: np.sqrt((part.tau**2).mean(1)),
    "redundant_norm": lambda part: norms(part.delta),
    "relative_redundant_norm": lambda part: norms(part.delta) / norms(part.tau).mean(),
    "multiplier_share": lambda part: 1 - 4 * part.mean_c,
    "effective_multiplier": lambda part: MULTIPLIERS - MULTIPLIERS.sum() * part.mean_c,
    "retained_signal": lambda part: part.tau @ part.merged / norms(part.tau) ** 2,
    "alignment": lambda part: np.array([cosine(part.merged, tau) for tau in part.tau]),
    "merged_norm": lambda part: norms(part.merged),
    "merged_norm_relative_to_experts": lambda part: norms(part.merged) / norms(part.tau).mean(),
    "merged_norm_relative_to_task_arithmetic": lambda part: (
        norms(part.merged) / norms(part.task_arithmetic)
    ),
}


def test_every_measure_has_an_oracle() -> None:
    assert set(ORACLES) == {one.key for one in PLAIN}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("one", PLAIN, ids=lambda one: one.key)
def test_measure_equals_its_definition_on_the_vectors(
    view: View, one: Measure, scope: Scope
) -> None:
    assert set(view.labels(scope)) == set(PARTS[scope])
    found = one.of(view, scope)
    for position, label in enumerate(view.labels(scope)):
        expected = ORACLES[one.key](Part(view, PARTS[scope][label]))
        np.testing.assert_allclose(found[position], expected, rtol=1e-9, atol=1e-12)


def test_parts_stand_in_file_order(view: View) -> None:
    names = [tensor.name for tensor in view.study.tensors]
    assert list(view.labels("tensor")) == names
    for scope in SCOPES:
        parts = [view.labels(scope)[position] for position in view.positions(scope)]
        assert list(dict.fromkeys(parts)) == list(view.labels(scope))
        assert all(name in PARTS[scope][part] for name, part in zip(names, parts, strict=True))


def test_without_awd_nothing_is_taken_away(view: View) -> None:
    plain = view.plain
    np.testing.assert_array_equal(plain.cosines("block", "after"), view.cosines("block", "before"))
    assert (measure("redundant_norm").of(plain, "tensor") == 0).all()
    np.testing.assert_array_equal(measure("multiplier_share").of(plain, "block"), 1.0)
    expected = np.broadcast_to(MULTIPLIERS, (3, 4))
    np.testing.assert_array_equal(measure("effective_multiplier").of(plain, "block"), expected)
    ratio = measure("merged_norm_relative_to_task_arithmetic").of(plain, "model")
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-12)


def test_squared_norms_add_up_over_parts(view: View) -> None:
    for key in ("task_vector_norm", "redundant_norm", "merged_norm"):
        of = measure(key).of
        whole = of(view, "model")[0] ** 2
        for scope in SCOPES:
            np.testing.assert_allclose((of(view, scope) ** 2).sum(0), whole, rtol=1e-12)


def test_weights_of_the_equal_task_arithmetic_at_model_granularity(study: awd.Study) -> None:
    view = View(study, awd.disentangle(study, "model", steps=50), MULTIPLIERS)
    weights = measure("effective_multiplier").of(view, "model")[0]
    equal = View(study, awd.no_redundancy(study), weights)
    np.testing.assert_allclose(
        measure("merged_norm").of(view, "tensor"),
        measure("merged_norm").of(equal, "tensor"),
        rtol=1e-9,
    )


def test_orthogonal_experts_score_as_no_interference(tmp_path: Path) -> None:
    vectors = {name: np.zeros((3, *shape)) for name, shape in SHAPES.items()}
    for tau in vectors.values():
        for k in range(3):
            tau[k].reshape(-1)[k] = 0.25 * (k + 1)
    study = collected(tmp_path, vectors)
    view = View(study, awd.disentangle(study, "row"), np.full(3, 0.7))
    off_diagonal = ~np.eye(3, dtype=bool)
    for key in ("cosine_before", "cosine_after"):
        assert (measure(key).of(view, "block")[:, off_diagonal] == 0).all()
    for one in MEASURES:
        if one.key.startswith("mean_absolute_cosine"):
            assert (one.of(view, "block") == 0).all()
    # Each expert is then in the merge with exactly its coefficient.
    np.testing.assert_allclose(measure("retained_signal").of(view, "block"), 0.7, rtol=1e-12)
    assert np.isnan(measure("sign_conflict").of(view, "block")[:, off_diagonal]).all()


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_scale_of_the_experts_changes_no_cosine(tmp_path: Path, factor: float) -> None:
    one = collected(tmp_path / "one", VECTORS)
    other = collected(tmp_path / "other", {name: tau * factor for name, tau in VECTORS.items()})
    views = [
        View(study, awd.disentangle(study, "tensor", steps=60), MULTIPLIERS)
        for study in (one, other)
    ]
    for key in (
        "cosine_before",
        "cosine_after",
        "relative_redundant_norm",
        "multiplier_share",
        "retained_signal",
        "sign_conflict_of_largest",
    ):
        small, large = (measure(key).of(view, "block") for view in views)
        np.testing.assert_allclose(small, large, rtol=1e-9, atol=1e-12)


@pytest.fixture
def with_gaps(tmp_path: Path) -> View:
    """Expert 1 leaves block 0 alone, nobody touches the embedding, expert 3 is the base."""
    vectors = {name: tau.copy() for name, tau in VECTORS.items()}
    for name, tau in vectors.items():
        tau[3] = 0
        if ".layer.0." in name:
            tau[1] = 0
        if name.startswith("embeddings"):
            tau[:] = 0
    study = collected(tmp_path, vectors)
    return View(study, awd.disentangle(study, "model", steps=50), MULTIPLIERS)


def test_zero_vectors_have_no_cosine_before_or_after(with_gaps: View) -> None:
    block = {name: number for number, name in enumerate(with_gaps.labels("block"))}
    for key in ("cosine_before", "cosine_after"):
        found = measure(key).of(with_gaps, "block")
        assert np.isnan(found[block["embedding"]]).all()
        assert np.isnan(found[block["block 0"], 1]).all()
        assert np.isnan(found[:, 3]).all()
        assert np.isfinite(found[block["block 0"], 0, 2])
        assert np.isfinite(found[block["block 1"], :3, :3]).all()
    for when in ("before", "after"):
        mean = measure(f"mean_absolute_cosine_{when}").of(with_gaps, "block")
        assert np.isnan(mean[block["embedding"]])
        single_pair = abs(measure(f"cosine_{when}").of(with_gaps, "block")[block["block 0"], 0, 2])
        assert mean[block["block 0"]] == pytest.approx(single_pair, rel=1e-12)


@pytest.mark.parametrize("one", PLAIN, ids=lambda one: one.key)
def test_missing_numbers_are_nan_and_warn_of_nothing(with_gaps: View, one: Measure) -> None:
    for scope in SCOPES:  # a warning is an error here
        found = one.of(with_gaps, scope)
        assert not np.isinf(found).any()
    # Of an expert that is the base only these exist; its share of energy is that of -delta.
    if one.per == "expert" and one.key != "energy_share":
        lengths = ("task_vector_norm", "relative_task_vector_norm", "task_vector_rms")
        known = {"exact_zero_fraction": 1, "mask_density": 0, **dict.fromkeys(lengths, 0)}
        expected = known.get(one.key, np.nan)
        np.testing.assert_equal(one.of(with_gaps, "model")[0, 3], expected)


@pytest.mark.parametrize("one", PLAIN, ids=lambda one: one.key)
def test_one_expert_has_no_pairs_and_keeps_all_it_has(tmp_path: Path, one: Measure) -> None:
    study = collected(tmp_path, random_vectors(1, seed=4))
    view = View(study, awd.disentangle(study), np.ones(1))
    found = one.of(view, "model")
    if one.key.startswith("mean_absolute_cosine"):
        assert np.isnan(found).all()
    if one.key in ("multiplier_share", "retained_signal", "alignment"):
        np.testing.assert_allclose(found, 1.0, rtol=1e-12)


def test_sign_conflict_by_hand(tmp_path: Path) -> None:
    tau = np.array([[1, 1, 1, 1, 0, 0.25], [1, -1, -1, 0, 1, -0.25]])
    study = collected(tmp_path, {"layer.0.weight": tau.reshape(2, 1, 6)})
    view = View(study, awd.no_redundancy(study), np.ones(2))
    # Both move entries 0, 1, 2 and 5; they agree in the first only.
    assert measure("sign_conflict").of(view, "model")[0, 0, 1] == pytest.approx(3 / 4)
    # The largest two of each, with all that are as large: 0, 1 and 2 are left in common.
    assert measure("sign_conflict_of_largest").of(view, "model")[0, 0, 1] == pytest.approx(2 / 3)
    assert {1.0, 0.2} <= set(DENSITIES)


def test_measures_are_declared_in_full() -> None:
    assert len({one.key for one in MEASURES}) == len(MEASURES)
    assert len({one.title for one in MEASURES}) == len(MEASURES)
    for one in MEASURES:
        assert one.key.isidentifier()
        assert one.formula.count("{") == one.formula.count("}")
        assert one.reading.endswith(".")
        assert one.source
        assert one.unit in ("1", "weight units")
        assert one.better in ("lower", "higher", None)


def test_docs_are_those_of_the_declarations() -> None:
    assert measure_docs.FILE.read_text(encoding="utf-8") == measure_docs.markdown(), (
        "run `python -m analysis.measure_docs`"
    )


def test_docs_are_written_whole(tmp_path: Path) -> None:
    measure_docs.write(tmp_path / "docs" / "measures.md")
    written = (tmp_path / "docs" / "measures.md").read_text(encoding="utf-8")
    assert all(one.formula in written and one.title in written for one in MEASURES)
