"""What the executors hand to a method, and what the declarations allow."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core import method_docs
from awd_core.errors import RecipeError
from awd_core.final_type import joined, numbers
from awd_core.knobs import Preset, knob
from awd_core.merge import merged_tensors
from awd_core.method import GramMethod, MatrixMethod, build
from awd_core.vectors import Piece, TensorVectors, Vectors
from tests.helpers import BIAS, SHAPES, Family, family


@dataclass(frozen=True)
class Recorded(MatrixMethod):
    """A sum of whole matrices that looks at everything it is given."""

    key: ClassVar[str] = "recorded"
    title: ClassVar[str] = "Recorded"
    source: ClassVar[str] = "-"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = "-"
    presets: ClassVar[dict[str, Preset]] = {"none": Preset({"others": "keep-base"}, 0.5, "-")}
    rank: int = knob(2, low=1, high=9, help="Unused.")

    def solve(self, survey: Any, matrix: TensorVectors) -> torch.Tensor:
        assert survey is None
        swept = torch.cat(list(matrix.task_vectors()), dim=1)
        whole = torch.stack(list(matrix.matrices()))
        assert torch.equal(swept, whole)
        return whole

    def rows(
        self, solved: torch.Tensor, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        scale = torch.from_numpy(coefficients)[:, None, None]
        return (solved[:, start:stop] * scale).sum(0)


def state_of(one: Family, method: type[Recorded], **fields: Any) -> dict[str, torch.Tensor]:
    knobs = fields.pop("knobs", {})
    plan = awd.plan_merge(one.recipe(**fields), device="cpu")
    plan = replace(plan, method=build(method, knobs))
    return {
        tensor.name: numbers(joined(blocks), tensor.dtype).reshape(tensor.shape)
        for tensor, blocks in merged_tensors(plan)
        if tensor.is_float
    }


IN_SPAN = [{"granularity": g, "steps": 10} for g in ("model", "block", "tensor", "row")]
AWD: list[dict[str, Any]] = [
    {},
    {"equalise_norms": True},
    *({"disentangle": settings} for settings in IN_SPAN),
    *({"disentangle": settings, "equalise_norms": True} for settings in IN_SPAN),
    {"disentangle": {"granularity": "spectral", "steps": 10}},
    {"disentangle": {"granularity": "tensor", "steps": 3, "penalty": "l1"}},
]


@pytest.mark.parametrize("fields", AWD, ids=str)
def test_a_matrix_is_the_same_whole_and_in_pieces(tmp_path: Path, fields: dict[str, Any]) -> None:
    one = family(tmp_path, 3)
    sums = one.state(method="task_arithmetic", coefficient=0.3, **fields)
    found = state_of(one, Recorded, knobs={"others": "sum"}, coefficient=0.3, **fields)
    for name in SHAPES:
        torch.testing.assert_close(found[name], sums[name])


def test_policies_say_what_happens_to_what_is_no_matrix(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    base, tau = one.base_state, one.task_vectors()
    names = ["embeddings.word_embeddings.weight", "patch.conv.weight", "logit_scale", BIAS]
    expected = {"average": 1 / 3, "sum": 1.0, "keep-base": 0.0}
    for choice, share in expected.items():
        found = state_of(
            one, Recorded, knobs={"others": choice, "embeddings": choice}, coefficient=0.7
        )
        for name in names:
            update = 0.7 * share * tau[name].sum(0)
            np.testing.assert_allclose(found[name], base[name].numpy() + update, atol=1e-6)


@dataclass(frozen=True)
class Seen(GramMethod):
    """Writes down the Gram it is given."""

    key: ClassVar[str] = "seen"
    title: ClassVar[str] = "Seen"
    source: ClassVar[str] = "-"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = "-"

    def multipliers(self, gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        return np.concatenate([[gram[0, 1]], gram[0, 0] * coefficients])


def test_a_gram_has_the_base_first_and_multipliers_apply_to_both() -> None:
    rng = np.random.default_rng(0)
    base, tau = rng.standard_normal((4, 5)), rng.standard_normal((3, 4, 5))

    def pieces() -> Iterator[Piece]:
        for start in (0, 3):
            rows = slice(start, start + 3)
            yield Piece("w", start, torch.from_numpy(base[rows]), torch.from_numpy(tau[:, rows]))

    tensor = TensorVectors("w", (4, 5), 3, pieces, lambda k: torch.from_numpy(tau[k]), pieces)
    every = np.concatenate([base[None], tau]).reshape(4, -1)
    np.testing.assert_allclose(tensor.gram, every @ every.T, rtol=1e-14)
    coefficients = np.array([0.5, -1.0, 2.0])
    method = Seen()
    prepared = method.prepare(method.survey(Vectors(3, 20, lambda: iter([tensor]))), tensor)
    found = torch.cat(
        [torch.as_tensor(method.combine(prepared, p, coefficients)) for p in pieces()]
    )
    products = every @ every.T
    expected = products[0, 1] * base + products[0, 0] * np.einsum("k,kij->ij", coefficients, tau)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_preset_gives_knobs_and_further_knobs_win() -> None:
    assert build(Recorded, {}, "none") == Recorded(others="keep-base")
    assert build(Recorded, {"others": "sum"}, "none") == Recorded(others="sum")
    with pytest.raises(RecipeError, match=r"no preset 'nome'.*Did you mean 'none'"):
        build(Recorded, {}, "nome")
    with pytest.raises(RecipeError, match=r"no preset 'x'.*no presets at all"):
        build(awd.find_method("task_arithmetic"), {}, "x")


@pytest.mark.parametrize("value", [2.5, True, "2", 0, 10, float("nan")])
def test_a_whole_number_knob_takes_whole_numbers_in_its_range(value: Any) -> None:
    assert build(Recorded, {"rank": 3.0}) == Recorded(rank=3)
    with pytest.raises(RecipeError, match=r"'rank' of method.*a whole number from 1 to 9"):
        build(Recorded, {"rank": value})


@pytest.mark.parametrize("kind", awd.METHODS, ids=lambda kind: kind.key)
def test_every_declaration_is_complete(kind: Any) -> None:
    assert all((kind.title, kind.source, kind.formula))
    assert 1970 < kind.year < 2100
    assert kind.passes >= 1
    assert kind.memory.n_bytes(8, 4096, 4096) > kind.memory.n_bytes(2, 64, 64) > 0
    for knob_ in kind.knobs():
        assert knob_.metadata["help"].endswith(".")
        build(kind, {knob_.name: knob_.default})
    for key, preset in kind.presets.items():
        assert preset.note
        build(kind, {}, key)
    assert hasattr(build(kind, {}), "task") == kind.needs_task


def test_docs_are_those_of_the_declarations() -> None:
    assert method_docs.FILE.read_text(encoding="utf-8") == method_docs.markdown(), (
        "run `python -m awd_core.method_docs`"
    )


def test_docs_are_written_whole(tmp_path: Path) -> None:
    method_docs.write(tmp_path / "docs" / "methods.md")
    written = (tmp_path / "docs" / "methods.md").read_text(encoding="utf-8")
    for kind in awd.METHODS:
        assert kind.formula in written
        assert all(f"`{knob_.name}`" in written for knob_ in kind.knobs())


def test_keys_and_titles_are_unique() -> None:
    assert len({kind.key for kind in awd.METHODS}) == len(awd.METHODS)
    assert len({kind.title for kind in awd.METHODS}) == len(awd.METHODS)
