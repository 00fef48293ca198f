"""What is said about base and experts before a weight is read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import awd_core as awd
from tests.helpers import CONFIG, QUERY, State, base_state, family, save


def shapes_differ(expert: State) -> None:
    expert[QUERY] = torch.zeros(5, 11)


def transposed(expert: State) -> None:
    expert[QUERY] = expert[QUERY].T.contiguous()


def tensor_missing(expert: State) -> None:
    del expert[QUERY]


def tensor_of_integers(expert: State) -> None:
    expert[QUERY] = torch.zeros(5, 12, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shapes_differ, r"\[5, 11\].*\[5, 12\], as in the base.*under `exclude`"),
        (transposed, r"\[12, 5\].*\[5, 12\], as in the base.*under `exclude`"),
        (tensor_missing, r"no such tensor.*\[5, 12\].*under `exclude`"),
        (tensor_of_integers, r"type torch\.int8.*floats.*under `exclude`"),
    ],
)
def test_an_expert_that_does_not_match_is_refused_with_its_tensor(
    tmp_path: Path, change: Callable[[State], None], message: str
) -> None:
    expert = base_state(seed=1)
    change(expert)
    base = awd.open_checkpoint(save(tmp_path / "base", base_state()))
    experts = [awd.open_checkpoint(save(tmp_path / "odd", expert))]
    report = awd.preflight(base, experts)
    assert not report.ok
    where = rf"tensor '{QUERY}' of expert 'odd'"
    with pytest.raises(awd.AwdError, match=rf"do not match.*{where}.*{message}"):
        report.require_ok()
    with pytest.raises(awd.AwdError, match=where):
        awd.collect(base, experts, out=tmp_path / "study", device="cpu")
    assert not (tmp_path / "study").exists()
    assert awd.preflight(base, experts, exclude=[QUERY]).ok  # the remedy works


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    expert = {name: tensor for name, tensor in base_state().items() if "encoder" not in name}
    base = awd.open_checkpoint(save(tmp_path / "base", base_state()))
    report = awd.preflight(base, [awd.open_checkpoint(save(tmp_path / "odd", expert))])
    assert sum(problem.severity == "error" for problem in report.problems) == 4
    with pytest.raises(awd.AwdError, match=r"do not match \(3 more like this\)"):
        report.require_ok()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    base = awd.open_checkpoint(save(tmp_path / "base", base_state()))
    config = CONFIG | {"model_type": "bert", "architectures": ["BertModel"]}
    expert = awd.open_checkpoint(save(tmp_path / "odd", base_state(), config))
    message = r"architecture bert.*BertModel.*architecture tiny.*Merge only experts"
    with pytest.raises(awd.AwdError, match=message):
        awd.preflight(base, [expert]).require_ok()


def test_no_expert_is_refused(tmp_path: Path) -> None:
    base = awd.open_checkpoint(save(tmp_path / "base", base_state()))
    with pytest.raises(awd.AwdError, match=r"experts.*none.*two or more.*Give at least two"):
        awd.collect(base, [], out=tmp_path / "study", device="cpu")


def warnings(report: awd.Preflight) -> list[str]:
    return [f"{p.where}: {p.received}. {p.remedy}" for p in report.problems if report.ok]


def test_one_expert_only_is_a_warning(tmp_path: Path) -> None:
    one = family(tmp_path, 1)
    (found,) = warnings(awd.preflight(one.base, one.experts))
    assert "expert 'expert-0': one expert only" in found
    assert "AWD does nothing" in found


def test_the_same_expert_twice_is_a_warning(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    copy = awd.open_checkpoint(save(tmp_path / "copy", one.expert_states[1]))
    (found,) = warnings(awd.preflight(one.base, [*one.experts, copy]))
    assert "expert 'copy': the same weights as expert 'expert-1'. Remove one" in found


def test_a_tensor_that_the_base_has_not_is_a_warning(tmp_path: Path) -> None:
    one = family(tmp_path, 2)
    expert = one.expert_states[0] | {"classifier.weight": torch.ones(2, 2)}
    odd = awd.open_checkpoint(save(tmp_path / "odd", expert))
    (found,) = warnings(awd.preflight(one.base, [odd, one.experts[1]]))
    assert "tensor 'classifier.weight' of expert 'odd'" in found
    assert "left out of the merge" in found


def test_a_match_has_no_problems_and_the_sizes_of_the_work(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    report = awd.preflight(one.base, one.experts)
    assert report.ok
    assert not report.problems
    n_bytes = sum(tensor.nbytes for tensor in one.base_state.values())
    floats = [tensor for tensor in one.base_state.values() if tensor.is_floating_point()]
    assert report.estimate.parameters == sum(tensor.numel() for tensor in floats)
    assert report.estimate.bytes_to_read == 4 * n_bytes
    assert report.estimate.bytes_to_write == n_bytes


def test_an_adapter_of_quantised_weights_is_refused(tmp_path: Path) -> None:
    base = base_state() | {"layer.weight": torch.zeros(4, 6, dtype=torch.int8)}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 2}')
    factors = {"A": torch.ones(2, 6), "B": torch.ones(4, 2)}
    save_file(
        {f"base_model.model.layer.lora_{side}.weight": t for side, t in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    opened = awd.open_checkpoint(save(tmp_path / "base", base))
    with pytest.raises(
        awd.AwdError, match=r"'layer\.weight'.*int8.*floats.*before it was quantised"
    ):
        awd.preflight(opened, [awd.open_checkpoint(adapter)]).require_ok()
