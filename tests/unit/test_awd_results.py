"""What a user reads off a solution: settings, sentences, weights, norms, the alpha path."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import awd_core as awd
from awd_core.disentangle import PRESETS, Granularity, alpha_path, critical_alphas, match_norm
from awd_core.disentangle.gram_solver import Descent, descend
from awd_core.errors import RecipeError
from tests.analysis_studies import SHAPES, collected, random_vectors
from tests.reference import full_space


def short_vectors() -> dict[str, np.ndarray]:
    """Of norms around 2, for which the paper's alpha lies below alpha_crit."""
    return {name: tau / 4 for name, tau in random_vectors(4, seed=3, shared=1.0).items()}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> awd.Study:
    return collected(tmp_path_factory.mktemp("plain"), short_vectors())


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    return short_vectors()


def flat(vectors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tau.reshape(len(tau), -1) for tau in vectors.values()], axis=1)


@pytest.mark.parametrize("key", PRESETS)
def test_every_preset_solves_and_says_how_it_ended(study: awd.Study, key: str) -> None:
    preset = PRESETS[key]
    solved = awd.solve(study, preset.settings)
    assert preset.explanation.endswith(".")
    assert solved.outcome.startswith(("Ended after", "Converged after"))
    assert solved.losses[-1] < solved.losses[0]
    assert awd.Settings.preset(key) == preset.settings


def test_preset_with_changes_and_unknown_names() -> None:
    assert awd.Settings.preset("paper", steps=7).steps == 7
    with pytest.raises(RecipeError, match="Did you mean 'paper'"):
        awd.Settings.preset("papers")
    with pytest.raises(RecipeError, match="Unknown field 'step'"):
        awd.Settings.preset("paper", step=7)


@pytest.mark.parametrize(
    "fields",
    [
        {"radius": 0.3},
        {"radius": 0.3, "penalty": "none", "alpha": 0.1},
        {"row_average": True, "alpha": 0.1, "lr": 0.1},
        {"row_average": True, "granularity": "row"},
        {"alpha": 0.1, "alpha_relative": 0.1},
        {"until": "never"},
    ],
)
def test_contradictions_are_refused(study: awd.Study, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        awd.disentangle(study, **fields)


def test_paper_preset_is_the_loop_of_the_paper(
    study: awd.Study, vectors: dict[str, np.ndarray]
) -> None:
    solved = awd.solve(study, PRESETS["paper"].settings)
    theirs = full_space.descend_by_autograd(flat(vectors), alpha=0.1, lr=0.01, steps=300)
    ours = solved.span_coefficients[0] @ flat(vectors)
    assert np.linalg.norm(ours - theirs) <= 1e-12 * np.linalg.norm(theirs)
    assert np.array_equal(awd.disentangle(study).span_coefficients, solved.span_coefficients)


def test_row_preset_is_the_loop_of_the_later_code(
    study: awd.Study, vectors: dict[str, np.ndarray]
) -> None:
    """SGD(momentum .9, weight decay) on mean_rows |cos| + coef * sum_rows ||delta_row||."""
    import torch

    settings = awd.Settings.preset("row", alpha=0.02, lr=0.05, steps=40, weight_decay=1e-2)
    solved = awd.solve(study, settings)
    name = "encoder.layer.0.intermediate.dense.weight"
    tau = torch.from_numpy(vectors[name])
    delta = torch.zeros(tau.shape[1:], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([delta], lr=0.05, momentum=0.9, weight_decay=1e-2)
    i, j = torch.tril_indices(len(tau), len(tau), offset=-1)
    for _ in range(40):
        v = tau - delta
        loss = torch.cosine_similarity(v[i], v[j], dim=2, eps=1e-300).abs().mean()
        loss = loss + 0.02 * torch.linalg.vector_norm(delta, dim=1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    theirs = delta.detach().numpy()
    ours = np.einsum("rk,krn->rn", solved.coefficients_of(list(SHAPES).index(name)), vectors[name])
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_both_forms_of_alpha_and_lr_are_reported(study: awd.Study) -> None:
    solved = awd.disentangle(study, "tensor", alpha_relative=0.2, lr_relative=0.03)
    np.testing.assert_allclose(solved.alpha_relative, 0.2, rtol=1e-12)
    np.testing.assert_allclose(solved.lr_relative, 0.03, rtol=1e-12)
    again = awd.disentangle(study, alpha=float(solved.alpha[0]), lr=float(solved.lr[0]))
    assert again.alpha[0] == solved.alpha[0]


@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
def test_relative_settings_do_not_see_the_unit_of_the_weights(
    tmp_path: Path, granularity: Any
) -> None:
    vectors = random_vectors(4, seed=5)
    doubled = {name: 4 * tau for name, tau in vectors.items()}
    for penalty in ("l2", "l2_squared"):
        fields: dict[str, Any] = {
            "alpha_relative": 0.3,
            "lr_relative": 0.01,
            "penalty": penalty,
            "granularity": granularity,
        }
        plain = awd.disentangle(collected(tmp_path / penalty / "a", vectors), **fields)
        large = awd.disentangle(collected(tmp_path / penalty / "b", doubled), **fields)
        np.testing.assert_allclose(large.span_coefficients, plain.span_coefficients, rtol=1e-8)


def test_weights_norms_and_shares(study: awd.Study, vectors: dict[str, np.ndarray]) -> None:
    solved = awd.disentangle(study)
    tau, c = flat(vectors), solved.span_coefficients[0]
    coefficients = np.array([0.3, 0.1, 0.5, 0.2])
    merged = coefficients @ (tau - c @ tau)
    np.testing.assert_allclose(solved.weights(coefficients)[0] @ tau, merged, rtol=1e-9)
    np.testing.assert_allclose(solved.weights(np.full(4, 0.3))[0], 0.3 * solved.weight_shares[0])
    assert solved.redundant_norms[0] == pytest.approx(np.linalg.norm(c @ tau), rel=1e-12)
    retained = np.linalg.norm((tau - c @ tau).sum(0)) / np.linalg.norm(tau.sum(0))
    assert solved.retained_norm == pytest.approx(retained, rel=1e-12)


@pytest.mark.parametrize("granularity", ["model", "row"])
def test_matched_coefficient_has_the_norm_of_task_arithmetic(
    study: awd.Study, vectors: dict[str, np.ndarray], granularity: Any
) -> None:
    solved = awd.disentangle(study, granularity)
    matched = match_norm(solved, 0.3)
    norm = np.sqrt(solved.model.merged_square(np.full(4, float(matched))))
    assert norm == pytest.approx(np.linalg.norm(0.3 * flat(vectors).sum(0)), rel=1e-12)
    each = match_norm(solved, np.array([0.3, 0.0, 0.1, 0.2]))
    assert isinstance(each, np.ndarray)
    assert each[1] == 0


def test_alpha_path_is_the_solution_at_every_alpha(study: awd.Study) -> None:
    path = alpha_path(study)
    gram = study.grams.sum(0)
    assert len(path.alpha) == 200
    assert path.critical in path.alpha
    assert path.critical == critical_alphas(gram)
    # Just above alpha_crit 0 is a local minimum only: a descent may end in another one.
    assert not path.redundant_norm[path.alpha >= 1.5 * path.critical].any()
    assert (path.weight_shares[path.alpha >= 1.5 * path.critical] == 1).all()
    assert path.knee is not None
    assert 0 < path.redundant_norm[path.knee] < path.redundant_norm.max()
    at = 60
    solved = awd.disentangle(
        study, alpha=float(path.alpha[at]), lr_relative=0.05, steps=1000, until="converged"
    )
    assert solved.redundant_norm == pytest.approx(path.redundant_norm[at], rel=1e-9)
    assert solved.mean_absolute_cosine[1] == pytest.approx(path.mean_absolute_cosine[at], rel=1e-9)
    assert solved.retained_norm == pytest.approx(path.retained_norm[at], rel=1e-9)
    assert np.array_equal(alpha_path(gram).alpha, path.alpha)


def test_alpha_path_where_alpha_decides_nothing() -> None:
    assert alpha_path(np.eye(3)).knee is None
    assert alpha_path(np.zeros((3, 3))).knee is None
    assert alpha_path(np.eye(1)).knee is None


def altered(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Random task vectors in which expert k is a factor times another, for every tensor."""
    vectors = random_vectors(3, seed=9)
    mixing = np.eye(3)
    for name, row in changes.items():
        mixing[int(name[1:])] = row
    return {name: np.einsum("ij,j...->i...", mixing, tau) for name, tau in vectors.items()}


LABELS = ("anna", "bert", "carl")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"e1": np.zeros(3)}, "bert equals the base and takes no part."),
        ({"e1": np.array([2.0, 0, 0])}, "anna and bert are all but the same (cos 1.00000)"),
        (
            {"e1": np.zeros(3), "e2": np.zeros(3)},
            "Fewer than two task vectors differ from 0: there is no pair, so delta is 0.",
        ),
    ],
)
def test_unusual_experts_are_named(
    tmp_path: Path, changes: dict[str, np.ndarray], sentence: str
) -> None:
    solved = awd.disentangle(collected(tmp_path, altered(**changes), LABELS), lr_relative=0.01)
    assert sentence in solved.outcome
    assert np.isfinite(solved.span_coefficients).all()


def test_an_expert_that_delta_swallows_is_named(tmp_path: Path) -> None:
    # The shortest vector is a part of the others: delta moves right onto it.
    name = "encoder.layer.0.intermediate.dense.weight"
    stack = np.zeros((3, 6, 4))
    stack[0, 0, 0] = 1 / 256
    stack[1, 0, :2] = 4, 8
    stack[2, 0, :3] = 4, 0, 8
    study = collected(tmp_path, {name: stack}, LABELS)
    c = np.array([[1.0, 0.0, 0.0]])
    from awd_core.disentangle.descent import as_descent
    from awd_core.disentangle.gram_solver import Descended
    from awd_core.disentangle.groups import groups
    from awd_core.disentangle.outcome import outcome
    from awd_core.disentangle.solution import moments

    cut, settings = groups(study, "model"), awd.Settings()
    found = Descended(c, np.array([0.2, 0.1]), np.array([300]))
    said = outcome(
        study.experts,
        settings,
        cut,
        as_descent(cut, settings),
        found,
        moments(cut, c, study.grams).total(),
    )
    assert "delta swallowed anna: less than 1% of the task vector is left." in said


def test_sentences_of_the_endings(tmp_path: Path, study: awd.Study) -> None:
    def said(**fields: Any) -> str:
        return awd.disentangle(study, **fields).outcome

    assert said(steps=0) == "No step was taken: delta is 0."
    assert said().startswith("Ended after 300 steps; the loss went from")
    assert said(alpha_relative=1.9).startswith("delta stayed 0 but for one step of flicker: alpha")
    assert said(alpha_relative=1.9, until="converged").startswith("delta stayed 0: alpha is at or")
    assert "it rose, because the step is too long" in said(lr_relative=50.0)
    assert said(until="converged", steps=5000).startswith("Converged after")
    assert "still improving after 20 steps" in said(until="converged", steps=20)
    partly = said(granularity="row", alpha=float(critical_alphas(study.grams[0])) * 2)
    assert "groups alpha is at or above alpha_crit" in partly
    single = {name: tau[:1] for name, tau in random_vectors(2, seed=1).items()}
    alone = awd.disentangle(collected(tmp_path / "one", single))
    assert alone.outcome.startswith("One expert: there is no pair")
    orthogonal = {"dense.weight": np.eye(4).reshape(4, 1, 4)[:3]}
    none = awd.disentangle(collected(tmp_path / "orthogonal", orthogonal))
    assert none.outcome == "The task vectors are orthogonal already: delta stayed 0."


def test_descend_keeps_its_short_form() -> None:
    gram = np.array([[[1.0, 0.5], [0.5, 1.0]]])
    c, losses = descend(gram, Descent(np.array([0.1]), np.array([0.01]), 10))
    assert c.shape == (1, 2)
    assert losses.shape == (11,)


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_an_expert_that_is_the_base_has_no_cosine_after_awd_either(
    tmp_path: Path, granularity: Granularity
) -> None:
    study = collected(tmp_path, altered(e1=np.zeros(3)), LABELS)
    solved = awd.disentangle(study, granularity=granularity, alpha_relative=0.1, steps=300)
    assert np.isnan(solved.cosine_after[1]).all()
    assert solved.mean_absolute_cosine[1] == pytest.approx(abs(solved.cosine_after[0, 2]))
    before, after = solved.objective
    assert after < before
    path = alpha_path(study)
    assert (path.mean_absolute_cosine <= path.mean_absolute_cosine[-1] + 1e-9).all()
