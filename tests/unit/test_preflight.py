"""What is said about base and experts before a weight is read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import awd_core as awd
from awd_core.checkpoints import common_rows
from awd_core.checkpoints.estimate import Resource
from awd_core.collect import study_digest
from tests.helpers import CONFIG, QUERY, State, base_state, family, load, save


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
        (tensor_of_integers, r"type int8.*floats.*under `exclude`"),
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


def kinds(report: awd.Preflight) -> dict[str, str]:
    return {problem.kind: problem.severity for problem in report.problems}


def llama(rows: int = 7, tied: bool = False, seed: int = 0) -> State:
    """Embedding, a layer and a head with `rows` tokens; the head left out where it is tied."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (rows, 4), "model.layers.0.mlp.up_proj.weight": (6, 4)}
    if not tied:
        shapes["lm_head.weight"] = (rows, 4)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved(folder: Path, state: State, **config: Any) -> awd.Checkpoint:
    return awd.open_checkpoint(save(folder, state, CONFIG | config))


def test_a_vocabulary_of_another_size_is_refused_with_the_three_choices(tmp_path: Path) -> None:
    base, odd = saved(tmp_path / "b", llama(7)), saved(tmp_path / "odd", llama(9, seed=1))
    report = awd.preflight(base, [odd])
    assert kinds(report)["vocabulary"] == "error"
    message = (
        r"tensor 'lm_head\.weight' of expert 'odd'.*\[9, 4\].*\[7, 4\].*common_rows"
        r".*tokens 0 to 6.*exclude: \[lm_head\.weight\].*"
        r"exclude: \[lm_head\.weight, model\.embed_tokens\.weight\].*backbone only"
    )
    with pytest.raises(awd.AwdError, match=message):
        report.require_ok()
    tables = ["model.embed_tokens.weight", "lm_head.weight"]
    assert awd.preflight(base, [odd], exclude=tables).ok
    allowed = awd.preflight(base, [common_rows(odd)])
    assert allowed.ok
    assert kinds(allowed)["vocabulary"] == "warning"


@pytest.mark.parametrize("rows", [5, 9])
def test_common_rows_are_merged_and_the_others_stay(tmp_path: Path, rows: int) -> None:
    states = [llama(7), llama(rows, seed=1), llama(7, seed=2)]
    paths = [str(save(tmp_path / str(k), state)) for k, state in enumerate(states)]
    fields: dict[str, Any] = {"base": paths[0], "experts": paths[1:], "coefficient": 0.5}
    recipe = awd.Recipe(**fields, vocabulary="common_rows")
    merged = awd.merged_state(awd.plan_merge(recipe, device="cpu"))
    for name, base in states[0].items():
        expected = base.double().clone()
        for expert in states[1:]:
            common = min(len(base), len(expert[name]))
            tau = expert[name][:common].double() - base[:common].double()
            expected[:common] += 0.5 * tau
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-7)
    opened = [awd.open_checkpoint(path) for path in paths]
    allowed = [common_rows(one) for one in opened[1:]]
    study = awd.collect(opened[0], allowed, out=tmp_path / "study", device="cpu")
    assert study.vocabulary == awd.open_study(tmp_path / "study").vocabulary == "common_rows"
    assert study.digest != study_digest(opened[0], opened[1:], ())
    with pytest.raises(awd.AwdError, match="common_rows"):
        awd.plan_merge(awd.Recipe(**fields), device="cpu")


def test_a_head_with_other_labels_is_no_vocabulary(tmp_path: Path) -> None:
    states = [llama() | {"classifier.weight": torch.ones(n, 4)} for n in (2, 3)]
    base, odd = (saved(tmp_path / str(k), state) for k, state in enumerate(states))
    for expert in (odd, common_rows(odd)):
        assert kinds(awd.preflight(base, [expert]))["shape"] == "error"


def test_a_head_that_is_tied_in_an_expert_is_its_embedding(tmp_path: Path) -> None:
    base, expert = llama(), llama(tied=True, seed=1)
    paths = [save(tmp_path / "b", base), save(tmp_path / "e", expert)]
    opened = [awd.open_checkpoint(path) for path in paths]
    report = awd.preflight(opened[0], opened[1:])
    assert report.ok
    assert kinds(report)["tied"] == "warning"
    recipe = awd.Recipe(base=str(paths[0]), experts=[str(paths[1])], coefficient=1.0)
    merged = awd.merged_state(awd.plan_merge(recipe, device="cpu"))
    assert torch.equal(merged["lm_head.weight"], expert["model.embed_tokens.weight"])
    untied = saved(tmp_path / "u", llama(tied=True, seed=1), tie_word_embeddings=False)
    assert kinds(awd.preflight(opened[0], [untied]))["missing"] == "error"


def test_a_head_that_the_base_ties_is_told(tmp_path: Path) -> None:
    base, expert = saved(tmp_path / "b", llama(tied=True)), saved(tmp_path / "e", llama(seed=1))
    report = awd.preflight(base, [expert, expert])
    (row,) = {
        problem.where: problem for problem in report.problems if problem.kind == "tied"
    }.values()
    assert "lm_head.weight" in row.where
    assert "tied to 'model.embed_tokens.weight'" in row.expected


def test_a_head_stored_beside_the_embedding_it_is_tied_to_is_merged_and_written_once(
    tmp_path: Path,
) -> None:
    base = saved(tmp_path / "b", llama(), tie_word_embeddings=True)
    expert = saved(tmp_path / "e", llama(seed=1), tie_word_embeddings=True)
    untied_head = saved(tmp_path / "u", llama(seed=2))
    report = awd.preflight(base, [expert, untied_head])
    assert report.ok
    told = [problem for problem in report.problems if problem.kind == "tied"]
    assert sum("stored beside 'model.embed_tokens.weight'" in one.received for one in told) == 2
    recipe = awd.Recipe(base=base.source, experts=[expert.source], coefficient=1.0)
    out = awd.merge(recipe, tmp_path / "out", device="cpu")
    written = load(out)
    assert "lm_head.weight" not in written
    assert torch.equal(
        written["model.embed_tokens.weight"], llama(seed=1)["model.embed_tokens.weight"]
    )
    untied = saved(tmp_path / "n", llama(), tie_word_embeddings=False)
    assert "lm_head.weight" in untied.stored


QUANTISED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"a.qweight": torch.zeros(2, 2, dtype=torch.int32)}, {}, "GPTQ or AWQ"),
    (
        {"a.qweight": torch.zeros(2, 2, dtype=torch.int32)},
        {"quantization_config": {"quant_method": "awq"}},
        "awq",
    ),
    (
        {"a.weight": torch.zeros(2, 2, dtype=torch.uint8), "a.weight.absmax": torch.ones(2)},
        {"quantization_config": {"load_in_4bit": True}},
        "bitsandbytes",
    ),
    (
        {
            "a.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
            "a.weight_scale_inv": torch.ones(1, 1),
        },
        {"quantization_config": {"quant_method": "fp8"}},
        "fp8",
    ),
]


@pytest.mark.parametrize(("state", "config", "method"), QUANTISED)
def test_quantised_weights_are_refused_by_method(
    tmp_path: Path, state: State, config: dict[str, Any], method: str
) -> None:
    one, plain = saved(tmp_path / "q", state, **config), saved(tmp_path / "p", base_state())
    message = rf"'q'.*quantised weights: {method}.*tensor 'a\..*quantise the merged one"
    for base, expert in ((one, plain), (plain, one)):
        with pytest.raises(awd.AwdError, match=message):
            awd.preflight(base, [expert]).require_ok()


def test_whole_weights_that_load_quantised_are_a_warning(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    base, expert = saved(tmp_path / "b", llama(), **config), saved(tmp_path / "e", llama(seed=1))
    report = awd.preflight(base, [expert])
    assert report.ok
    assert kinds(report)["quantised"] == "warning"


def test_plain_float8_is_not_quantised(tmp_path: Path) -> None:
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in llama().items()}
    assert awd.preflight(saved(tmp_path / "b", state), [saved(tmp_path / "e", state)]).ok


def test_another_type_is_told_once_an_expert(tmp_path: Path) -> None:
    base = saved(tmp_path / "b", llama())
    half = {name: tensor.half() for name, tensor in llama(seed=1).items()}
    report = awd.preflight(base, [saved(tmp_path / "half", half)])
    (row,) = [problem for problem in report.problems if problem.kind == "dtype"]
    assert row.where == "3 tensors of expert 'half'"
    assert (row.received, row.expected) == ("type float16", "type float32, as in the base")


def with_card(folder: Path, text: str) -> awd.Checkpoint:
    one = saved(folder, llama())
    (folder / "README.md").write_text(text)
    return one


def test_licences_that_differ_are_told(tmp_path: Path) -> None:
    cards = {
        "b": "---\nlicense: apache-2.0\n---\n",
        "e": "---\nlicense: other\nlicense_name: own-terms\n---\n",
        "none": "no metadata",
        "broken": "---\nlicense: [\n---\n",
        "deep": f"---\nlicense: {'[' * 5000}\n---\n",
        "list": "---\n- license\n---\n",
        "windows": "\n---\r\nlicense: mit\r\n---\r\n# Card\r\n---\r\nlicense: no\r\n---\r\n",
        "unended": "---\nlicense: mit\n",
    }
    base, *experts = (with_card(tmp_path / name, text) for name, text in cards.items())
    report = awd.preflight(base, experts)
    assert dict(report.licences) == {
        "base b": "apache-2.0",
        "expert e": "own-terms",
        "expert none": None,
        "expert broken": None,
        "expert deep": None,
        "expert list": None,
        "expert windows": "mit",
        "expert unended": None,
    }
    (row,) = [problem for problem in report.problems if problem.kind == "licence"]
    assert row.received == "apache-2.0: base b; own-terms: expert e; mit: expert windows"


@pytest.mark.parametrize(
    ("needed", "free", "verdict"),
    [
        (10, 100, "fits"),
        (80, 100, "fits"),
        (81, 100, "tight"),
        (101, 100, "will not fit"),
        (1, None, "unknown"),
    ],
)
def test_a_resource_is_compared_with_what_is_free(
    needed: int, free: int | None, verdict: str
) -> None:
    assert Resource(needed, free).verdict == verdict


def test_the_worse_resource_decides(tmp_path: Path) -> None:
    estimate = awd.preflight(family(tmp_path, 2).base, family(tmp_path / "x", 2).experts).estimate
    assert estimate.disk.free is not None
    short = replace(estimate, disk=Resource(10, 9), memory=Resource(9, 10))
    assert short.verdict == "will not fit"
    assert replace(short, disk=Resource(1, 10)).verdict == "tight"


def test_the_fit_of_a_base_is_its_formula(tmp_path: Path) -> None:
    one = family(tmp_path, 3)
    found = awd.base_fit(one.base, one.experts)
    tau, theta = [], []
    for name, base in one.base_state.items():
        if base.is_floating_point() and base.dim() >= 2 and base.numel():
            rows = slice(None, None, max(1, len(base) // 4))
            theta.append(base.double().numpy()[rows][:4].ravel())
            experts = np.stack([e[name].double().numpy()[rows][:4] for e in one.expert_states])
            tau.append(experts.reshape(3, -1) - theta[-1])
    tau, theta = np.concatenate(tau, axis=1), np.concatenate(theta)
    norms = np.linalg.norm(tau, axis=1)
    np.testing.assert_allclose(
        list(found.relative_norms.values()), norms / np.linalg.norm(theta), rtol=1e-12
    )
    cosines = (tau @ tau.T / np.outer(norms, norms))[np.triu_indices(3, 1)]
    assert found.mean_cosine == pytest.approx(cosines.mean(), rel=1e-12)


def test_the_right_base_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    right = family(tmp_path / "right", 3)
    wrong = saved(tmp_path / "wrong", base_state(seed=5))
    fits = [awd.base_fit(base, right.experts) for base in (right.base, wrong)]
    assert not awd.base_problems(fits)
    (row,) = awd.base_problems(fits[::-1])
    assert row.kind == "base"
    assert row.remedy == "Use 'base' as the base."
    (row,) = awd.base_problems(fits[1:])
    assert "another base" in row.remedy
