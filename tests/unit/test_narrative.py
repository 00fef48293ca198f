"""Findings: each rule speaks where it should, is silent where it should, and cites its numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import awd_core as awd
from analysis import narrative
from analysis.measures import measure
from analysis.narrative import Finding, findings
from analysis.view import View
from tests.analysis_studies import Vectors, collected

# Three blocks of one kind, large enough for a cosine of .3 to be no accident.
NAMES = [f"encoder.layer.{n}.output.dense.weight" for n in range(3)]


def vectors(n_experts: int = 3, size: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Independent task vectors: nothing stands out."""
    rng = np.random.default_rng(seed)
    return {
        name: np.round(rng.standard_normal((n_experts, size, size)) * 256) / 256 for name in NAMES
    }


def view_of(folder: Path, tau: Vectors, coefficient: float = 0.3) -> View:
    study = collected(folder, tau)
    solved = awd.no_redundancy(study)
    return View(study, solved, np.full(study.n_experts, coefficient))


def of(view: View, key: str) -> list[Finding]:
    return [finding for finding in findings(view, 50) if finding.measure == key]


def test_independent_experts_have_nothing_to_say_of_cosines(tmp_path: Path) -> None:
    view = view_of(tmp_path, vectors())
    assert not of(view, "cosine_before")
    assert not of(view, "sign_conflict_of_largest")
    assert not of(view, "norm_imbalance")
    assert not of(view, "energy_share")


def test_nothing_found_is_said_with_its_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(tmp_path, vectors())
    monkeypatch.setattr(narrative, "RULES", ())
    (one,) = findings(view)
    assert one.text.startswith("Nothing stands out")
    assert one.threshold >= narrative.LEAST_COSINE


def test_a_pair_that_opposes_in_neighbouring_blocks_is_one_finding(tmp_path: Path) -> None:
    tau = vectors()
    for name in NAMES[1:]:
        tau[name][1] = np.round((-0.6 * tau[name][0] + 0.8 * tau[name][1]) * 256) / 256
    view = view_of(tmp_path, tau)
    (found,) = of(view, "cosine_before")
    flat = [np.concatenate([tau[name][k].ravel() for name in NAMES[1:]]) for k in (0, 1)]
    expected = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert found.value == pytest.approx(expected)
    usual = measure("mean_absolute_cosine_by_energy_before").of(view, "model")[0]
    assert found.threshold == pytest.approx(2 * usual)
    assert found.where == "blocks 1–2, mlp.down"
    assert found.experts == ("task 0", "task 1")
    assert found.blocks == ("block 1", "block 2")
    assert f"cos −{abs(expected):.2f}, {abs(expected) / usual:.1f} × the model's mean" in found.text
    assert "oppose" in found.text
    (conflict, *_) = of(view, "sign_conflict_of_largest")
    assert conflict.experts == ("task 0", "task 1")
    assert conflict.value > narrative.CONFLICT


def test_nobody_is_advised_to_set_what_is_set(tmp_path: Path) -> None:
    tau = vectors()
    for name in NAMES[1:]:
        tau[name][1] = np.round((-0.6 * tau[name][0] + 0.8 * tau[name][1]) * 256) / 256
    view = view_of(tmp_path, tau)
    by_row = View(view.study, awd.disentangle(view.study, granularity="row"), view.multipliers)
    for key, advice in (
        ("cosine_before", "below the model"),
        ("sign_conflict_of_largest", "AWD at granularity row"),
    ):
        assert advice in of(view, key)[0].advice
        assert advice not in of(by_row, key)[0].advice
    assert "granularity row already" in of(by_row, "cosine_before")[0].advice


def test_nobody_is_advised_to_take_the_method_that_is_set(tmp_path: Path) -> None:
    tau = vectors()
    for name in NAMES[1:]:
        tau[name][1] = np.round((-0.6 * tau[name][0] + 0.8 * tau[name][1]) * 256) / 256
    plain = view_of(tmp_path, tau)
    by_row = replace(plain, disentangled=awd.disentangle(plain.study, granularity="row"))
    key = "sign_conflict_of_largest"
    assert "Try TIES" in of(plain, key)[0].advice
    (ties, *_) = of(replace(plain, method=awd.find_method("ties")), key)
    assert ties.advice.startswith("TIES acts on it already. Try AWD at granularity row")
    (both, *_) = of(replace(by_row, method=awd.find_method("dare_ties")), key)
    assert "Try" not in both.advice
    assert both.advice.startswith("DARE, TIES and AWD at granularity row")


def test_of_a_merge_that_needs_weights_nothing_is_said(tmp_path: Path) -> None:
    tau = vectors()
    for name in NAMES:
        tau[name][0] = np.round(-0.5 * (tau[name][1] + tau[name][2]) * 256) / 256
        tau[name][2] *= 8
    linear = view_of(tmp_path, tau)
    ties = replace(linear, method=awd.find_method("ties"))
    for key in ("retained_signal", "energy_share"):
        assert of(linear, key)
        assert not of(ties, key)


def test_a_pair_that_shares_a_direction_is_not_called_opposed(tmp_path: Path) -> None:
    tau = vectors()
    tau[NAMES[0]][2] = np.round((0.5 * tau[NAMES[0]][0] + 0.8 * tau[NAMES[0]][2]) * 256) / 256
    (found,) = of(view_of(tmp_path, tau), "cosine_before")
    assert "share a direction" in found.text
    assert found.where == "block 0, mlp.down"


def test_the_same_expert_twice_comes_first(tmp_path: Path) -> None:
    tau = vectors()
    for name in NAMES:
        tau[name][2] = tau[name][0]
    first = findings(view_of(tmp_path, tau))[0]
    assert "nearly one expert" in first.text
    assert first.experts == ("task 0", "task 2")


def test_a_long_expert_is_named_with_the_shortest(tmp_path: Path) -> None:
    tau = vectors()
    for name in NAMES:
        tau[name][1] *= 8
    view = view_of(tmp_path, tau)
    (imbalance,) = of(view, "norm_imbalance")
    assert imbalance.experts[0] == "task 1"
    assert imbalance.value == pytest.approx(8, rel=0.1)
    (energy,) = of(view, "energy_share")
    assert energy.experts == ("task 1",)
    assert energy.value > energy.threshold


def test_an_expert_that_the_others_undo_is_named(tmp_path: Path) -> None:
    tau = vectors()
    for name in NAMES:
        tau[name][0] = np.round(-0.5 * (tau[name][1] + tau[name][2]) * 256) / 256
    (found, *_) = of(view_of(tmp_path, tau), "retained_signal")
    assert found.experts == ("task 0",)
    assert found.value < found.threshold == pytest.approx(0.15)


def test_awd_that_helps_and_a_descent_that_went_wrong_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tau = vectors()
    for name in NAMES:
        tau[name][:] += np.round(tau[name].mean(0) * 256) / 256
    view = view_of(tmp_path, tau)
    assert not of(view, "mean_absolute_cosine_after")
    solved = awd.disentangle(view.study, alpha_relative=0.05, lr_relative=0.02)
    (found,) = of(View(view.study, solved, view.multipliers), "mean_absolute_cosine_after")
    assert "AWD lowers" in found.text
    monkeypatch.setattr(type(solved), "objective", property(lambda self: (0.1, 0.2)))
    worse = View(view.study, solved, view.multipliers)
    (found,) = of(worse, "mean_absolute_cosine_after")
    assert "AWD raises" in found.text


def test_directions_that_collide_need_spectra(tmp_path: Path) -> None:
    tau = vectors()
    tau[NAMES[2]][:] = np.round(tau[NAMES[2]] * 16) / 256
    rng = np.random.default_rng(5)
    left, right = rng.standard_normal((40, 3)), rng.standard_normal((3, 40))
    for k in range(3):
        tau[NAMES[1]][k] = np.round(left @ np.diag(rng.standard_normal(3) + 2) @ right * 64) / 256
    view = view_of(tmp_path, tau)
    assert not of(view, "singular_task_interference")
    study = awd.collect_spectra(view.study)
    with_spectra = View(study, awd.no_redundancy(study), view.multipliers)
    values = measure("singular_task_interference").of(with_spectra, "block")
    usual = measure("singular_task_interference").of(with_spectra, "model")[0]
    blocks = [one.blocks[0] for one in of(with_spectra, "singular_task_interference")]
    expected = np.array(with_spectra.labels("block"))[values >= narrative.COLLIDES * usual]
    assert sorted(blocks) == sorted(expected)


def test_every_finding_cites_a_measure_a_threshold_and_a_source(tmp_path: Path) -> None:
    tau = vectors()
    for name in NAMES:
        tau[name][1] *= 4
        tau[name][2] = -tau[name][0]
    found = findings(view_of(tmp_path, tau), 20)
    assert len(found) > 2
    assert [one.strength for one in found] == sorted((one.strength for one in found), reverse=True)
    for one in found:
        assert measure(one.measure)
        assert np.isfinite([one.value, one.threshold]).all()
        assert "threshold" in one.source
        assert one.why.endswith(".")
        assert one.advice.endswith(".")
    table = narrative.table(found)
    assert len(table) == len(found)
    assert not table.isna().to_numpy().any()


def test_a_block_that_nobody_moved_is_not_talked_of(tmp_path: Path) -> None:
    tau = vectors()
    tau[NAMES[1]][:] = 0.0
    found = findings(view_of(tmp_path, tau), 50)
    assert found
    assert all(np.isfinite(one.value) for one in found)
    assert not any("block 1" in one.blocks for one in found)


def test_one_expert_is_no_reason_to_fail(tmp_path: Path) -> None:
    assert findings(view_of(tmp_path, vectors(1)))
