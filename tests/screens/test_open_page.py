"""Open: what a merge needs and what is free, the base that fits, pickles only on request, locks."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

import awd_core as awd
from awd_core.checkpoints import estimate as estimates
from tests.helpers import Family, base_state, expert_states, family, save
from tests.screens.pages import done, on, press
from tests.unit.test_locks import CONFIG, attention, locked, trained

pytestmark = pytest.mark.usefixtures("roots")


def given(base: Path, experts: Sequence[Path]) -> AppTest:
    test = on("open")
    test.text_input(key="base").set_value(str(base)).run()
    test.text_area(key="expert_lines").set_value("\n".join(map(str, experts))).run()
    assert not test.exception
    return test


def test_the_estimate_is_that_of_the_preflight(tmp_path: Path) -> None:
    made = family(tmp_path, n_experts=2)
    expected = awd.preflight(made.base, made.experts).estimate
    shown = {one.label: one for one in given(made.base_path, made.expert_paths).metric}
    assert shown["Memory"].value == f"{expected.memory.needed / 1e9:,.1f} GB"
    assert expected.memory.verdict in shown["Memory"].delta
    assert shown["Disk"].delta.startswith(expected.disk.verdict)
    assert f"{expected.bytes_to_read / 1e6:,.0f} MB to read" in shown["Time, roughly"].delta
    assert shown["Parameters"].value == f"{expected.parameters:,}"


def test_what_will_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = family(tmp_path, n_experts=2)
    monkeypatch.setattr(estimates, "_free_disk", lambda out: 10)
    test = given(made.base_path, made.expert_paths)
    assert "will not fit" in {one.label: one for one in test.metric}["Disk"].delta
    assert any("not enough room" in one.value for one in test.warning)


def test_another_base_is_seen_before_anything_is_collected(tmp_path: Path) -> None:
    made = family(tmp_path, n_experts=2)
    other = save(tmp_path / "other", base_state(seed=77))
    test = given(other, made.expert_paths)
    assert any("**Base**" in one.value for one in test.markdown)
    right = given(made.base_path, made.expert_paths)
    assert any("from its base" in one.value for one in right.caption)


def test_pickled_weights_are_opened_only_when_allowed_and_then_everywhere(tmp_path: Path) -> None:
    base = base_state()
    made = Family(tmp_path, base, expert_states(base, 2))
    for folder, state in zip(
        [made.base_path, *made.expert_paths], [base, *made.expert_states], strict=True
    ):
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    test = given(made.base_path, made.expert_paths)
    assert test.error
    assert not [button for button in test.button if button.label == "Collect"]
    test.toggle(key="allow_pickle").set_value(True).run()
    assert not test.error
    press(test, "Collect")
    assert "--allow-pickle" in done(test).command
    press(test, "Look at it")
    test.switch_page("views/merge.py").run()
    assert not any("nothing can be written" in info.value for info in test.info)
    press(test, "Export")
    assert "--allow-pickle" in done(test).command
    test.switch_page("views/open.py").run()
    assert test.toggle(key="allow_pickle").value is True


@pytest.mark.parametrize("is_locked", [True, False])
def test_locks_are_looked_for_on_request(tmp_path: Path, is_locked: bool) -> None:
    base = attention()
    expert = locked(trained(base)) if is_locked else trained(base)
    states = {"base": base, "one": trained(base, 0.05), "two": expert}
    paths = [save(tmp_path / name, state, CONFIG) for name, state in states.items()]
    test = given(paths[0], paths[1:])
    test.button(key="locks").click().run()
    done(test)
    told = "\n".join(code.value for code in test.code)
    assert ("merging will fail" in told) == is_locked
    assert f"{4 if is_locked else 0} look locked" in told.replace("\n", " ")
