"""LoRA adapters as PEFT writes them: the same bits as PEFT's own merge, and named refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

import awd_core as awd
from awd_core.checkpoints import StoredTensor
from awd_core.dtypes import FLOAT32
from tests.helpers import State, load, methods_for, same_bits, save_bert

pytestmark = pytest.mark.filterwarnings(
    # PEFT 0.21 reads an attribute that transformers 5.23 renamed.
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)

QUERY = "encoder.layer.0.attention.self.query.weight"
LINEAR = ["query", "key", "value", "dense"]


def save_base(folder: Path, dtype: torch.dtype) -> Path:
    AutoModel.from_pretrained(save_bert(folder)).to(dtype).save_pretrained(str(folder))
    return folder


def save_adapter(folder: Path, base: Path, seed: int = 1, **options: Any) -> Path:
    config = {"r": 3, "lora_alpha": 7, "target_modules": LINEAR} | options
    model = peft.get_peft_model(AutoModel.from_pretrained(base), peft.LoraConfig(**config))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(str(folder))
    return folder


def merged_by_peft(base: Path, adapter: Path) -> State:
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter)
    return dict(model.merge_and_unload().state_dict())


def merged(base: Path, *adapters: Path, **fields: Any) -> State:
    recipe = awd.Recipe(base=str(base), experts=[str(path) for path in adapters], **fields)
    return awd.merged_state(awd.plan_merge(recipe, device="cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"r": 5, "rank_pattern": {"query": 2}, "alpha_pattern": {"layer.1.*.dense": 3, "value": 9}},
        {"target_modules": ["query"], "init_lora_weights": "gaussian"},
    ],
    ids=["plain", "rslora", "patterns", "one-module"],
)
def test_one_adapter_at_lambda_one_is_what_peft_merges_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    base = save_base(tmp_path / "base", dtype)
    adapter = save_adapter(tmp_path / "adapter", base, **options)
    expected = merged_by_peft(base, adapter)
    assert not same_bits(expected, load(base))
    assert same_bits(merged(base, adapter, coefficient=1.0), expected)


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Conv1D of GPT-2, attn.c_proj square": (
        lambda: GPT2Model(
            GPT2Config(
                n_embd=8,
                n_layer=1,
                n_head=2,
                vocab_size=13,
                n_positions=10,
                bos_token_id=1,
                eos_token_id=1,
            )
        ),
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "Conv1D of GPT-2 beside an embedding": (
        lambda: GPT2Model(
            GPT2Config(
                n_embd=8,
                n_layer=1,
                n_head=2,
                vocab_size=8,
                n_positions=10,
                bos_token_id=1,
                eos_token_id=1,
            )
        ),
        {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True},
    ),
    "whole modules beside factors": (
        lambda: BertModel(small_bert()),
        {"target_modules": ["query"], "modules_to_save": ["pooler", "LayerNorm"]},
    ),
    "embedding": (
        lambda: BertModel(small_bert()),
        {"target_modules": ["word_embeddings", "value"], "use_rslora": True},
    ),
    "embedding and head, saved whole with factors on top": (
        lambda: LlamaForCausalLM(
            LlamaConfig(
                hidden_size=8,
                intermediate_size=12,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=13,
            )
        ),
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    ),
}


def small_bert() -> BertConfig:
    return BertConfig(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=10,
    )


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_adapted_layer_is_what_peft_merges(
    tmp_path: Path, model: str, dtype: torch.dtype
) -> None:
    build, options = MODELS[model]
    torch.manual_seed(0)
    build().to(dtype).save_pretrained(tmp_path / "base")
    kind = type(build())
    adapted = peft.get_peft_model(
        kind.from_pretrained(tmp_path / "base"), peft.LoraConfig(r=3, lora_alpha=7, **options)
    )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(
        kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    expected = dict(again.merge_and_unload().state_dict())
    found = merged(tmp_path / "base", tmp_path / "adapter", coefficient=1.0)
    before = load(tmp_path / "base")
    changed = {name for name in before if not same_bits({"": found[name]}, {"": before[name]})}
    assert len(changed) >= 2
    expected = {name: expected[name] for name in found}
    if dtype == torch.float32 or "embedding" not in model:
        assert same_bits(found, expected)
    else:  # of an embedding, PEFT rounds the product to bfloat16 before it adds it
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=2.0**-7, atol=2.0**-11)


def test_adapters_merge_as_their_products(tmp_path: Path) -> None:
    base = save_bert(tmp_path / "base")
    adapters = [save_adapter(tmp_path / f"adapter-{k}", base, seed=k) for k in range(3)]
    coefficients = [0.3, -0.4, 1.1]
    found, expected = merged(base, *adapters, coefficients=coefficients), load(base)
    for coefficient, adapter in zip(coefficients, adapters, strict=True):
        factors = load_file(adapter / "adapter_model.safetensors")
        for name, b in factors.items():
            if "lora_B" in name:
                a = factors[name.replace("lora_B", "lora_A")]
                weight = name.removeprefix("base_model.model.").replace(".lora_B", "")
                product = 7 / 3 * b.double() @ a.double()
                expected[weight] = expected[weight].double() + coefficient * product
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=1e-6, atol=1e-7)


def test_an_adapter_and_whole_weights_mix(tmp_path: Path) -> None:
    base = save_bert(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    whole = tmp_path / "whole"
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(whole)
    study = awd.collect(
        awd.open_checkpoint(base),
        [awd.open_checkpoint(adapter), awd.open_checkpoint(whole)],
        out=tmp_path / "study",
        device="cpu",
    )
    total = study.grams.sum(0)
    assert total[0, 0] > 0
    np.testing.assert_allclose(total, total[0, 0], rtol=1e-5)
    assert [source.kind for source in study.sources] == ["lora", "weights"]


def test_tensors_that_no_adapter_touches_have_no_task_vector(tmp_path: Path) -> None:
    base = save_bert(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["query"])
    experts = [awd.open_checkpoint(adapter)]
    study = awd.collect(awd.open_checkpoint(base), experts, out=tmp_path / "study", device="cpu")
    touched = {tensor.name for tensor in study.tensors if study.gram(tensor.name).any()}
    assert touched == {f"encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1)}
    squares = {name: float((t.double() ** 2).sum()) for name, t in load(base).items()}
    for name, position in study.index.items():
        assert study.base_squared_norms[position] == pytest.approx(squares[name], rel=1e-12)


@pytest.mark.parametrize("method", methods_for(2))
@pytest.mark.parametrize("disentangle", [None, {"granularity": "row", "steps": 10}])
def test_untouched_tensors_stay_the_base_s_bit_for_bit(
    tmp_path: Path, method: str, disentangle: dict[str, Any] | None
) -> None:
    base = save_bert(tmp_path / "base")
    adapters = [
        save_adapter(tmp_path / f"adapter-{k}", base, seed=k, target_modules=["query"])
        for k in range(2)
    ]
    found = merged(base, *adapters, method=method, disentangle=disentangle)
    before = load(base)
    same = {name for name in before if same_bits({"": found[name]}, {"": before[name]})}
    changed = set(before) - same
    assert changed <= {f"encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1)}
    assert len(changed) == 2 or method == "model_stock"  # the base, where cosines are below 0


@pytest.mark.parametrize("method", methods_for(2))
def test_a_merge_of_nothing_that_was_touched_is_the_base(tmp_path: Path, method: str) -> None:
    base = save_bert(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["query"])
    found = merged(base, adapter, adapter, method=method, exclude=["*.query.weight"])
    assert same_bits(found, load(base))


def test_the_scaling_in_the_configuration_tells_adapters_apart(tmp_path: Path) -> None:
    base = save_bert(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    first = awd.open_checkpoint(adapter)
    change_config(adapter, lora_alpha=70)
    second = awd.open_checkpoint(adapter)
    assert first.fingerprint != second.fingerprint
    one = awd.collect(awd.open_checkpoint(base), [first], device="cpu")
    ten = awd.collect(awd.open_checkpoint(base), [second], device="cpu")
    np.testing.assert_allclose(ten.grams, 100 * one.grams, rtol=1e-5)


def test_provenance_holds_the_adapter_s_configuration(tmp_path: Path) -> None:
    base = save_bert(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    recipe = awd.Recipe(base=str(base), experts=[str(adapter)])
    out = awd.merge(recipe, tmp_path / "out", device="cpu")
    assert awd.verify(out, load=False).ok
    change_config(adapter, lora_alpha=70)
    failed = [check.name for check in awd.verify(out, load=False).checks if check.ok is False]
    assert "inputs are as they were" in failed


def change_config(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


PLAIN = r"cannot be opened as an expert: .*{}.* not supported.*merge_and_unload"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, PLAIN.format("DoRA")),
        ({"lora_bias": True}, PLAIN.format("biases of the factors")),
        ({"peft_type": "LOHA"}, PLAIN.format("'LOHA'")),
        ({"peft_type": "PREFIX_TUNING"}, PLAIN.format("'PREFIX_TUNING'")),
        ({"peft_type": None}, PLAIN.format("None")),
        ({"bias": "lora_only"}, PLAIN.format("trained biases")),
        ({"use_qalora": True}, PLAIN.format("QALoRA")),
        ({"trainable_token_indices": [1, 2]}, PLAIN.format("trained tokens")),
        ({"layer_replication": [[0, 1], [0, 1]]}, PLAIN.format("layer replication")),
        ({"init_lora_weights": "pissa"}, PLAIN.format("'pissa'")),
        ({"init_lora_weights": "pissa_niter_4"}, PLAIN.format("'pissa_niter_4'")),
        ({"init_lora_weights": "olora"}, PLAIN.format("'olora'")),
    ],
)
def test_adapters_that_are_more_than_a_product_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_bert(tmp_path / "base"))
    awd.open_checkpoint(adapter)
    change_config(adapter, **changes)
    with pytest.raises(awd.AwdError, match=message):
        awd.open_checkpoint(adapter)


def test_dora_as_peft_saves_it_is_refused(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_bert(tmp_path / "base"), use_dora=True)
    with pytest.raises(awd.AwdError, match=PLAIN.format("DoRA")):
        awd.open_checkpoint(adapter)


A, B = (f"base_model.model.{QUERY[:-7]}.lora_{side}.weight" for side in "AB")


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({A: (3, 8)}, r"pair is incomplete.*A \[3, 8\].*Save the adapter again"),
        ({A: (3, 8), B: (8, 4)}, r"ranks differ.*A \[3, 8\], B \[8, 4\]"),
        ({A: (3, 8), B: (8, 3), "base_model.model.x.lora_magnitude_vector": (8,)},
         r"not a LoRA matrix.*lora_magnitude_vector.*merge_and_unload"),
        ({A: (3, 8, 1), B: (8, 3, 1)}, r"not a LoRA matrix.*\[3, 8, 1\].*merge_and_unload"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_pair_are_refused(
    tmp_path: Path, factors: dict[str, tuple[int, ...]], message: str
) -> None:
    tmp_path.joinpath("adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 3}')
    state = {name: torch.ones(shape) for name, shape in factors.items()}
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(awd.AwdError, match=message):
        awd.open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 4}, r"rank 4 for 'encoder.*Expected: 3, as stored"),
        ({"rank_pattern": {"query": 2}}, r"rank 2 for 'encoder.*query'"),
        ({"rank_pattern": [1]}, r"rank_pattern of type list"),
        ({"alpha_pattern": "x"}, r"alpha_pattern of type str"),
        ({"lora_alpha": None}, r"lora_alpha None"),
        ({"lora_alpha": "7"}, r"lora_alpha '7'"),
        ({"lora_alpha": True}, r"lora_alpha True"),
        ({"lora_alpha": float("nan")}, r"lora_alpha nan"),
        ({"lora_alpha": 10**400}, r"lora_alpha 1000"),
        ({"alpha_pattern": {"(a|a)*(b|b)*": 1}}, r"alpha_pattern with .*at most two wildcards"),
        ({"alpha_pattern": {".*.*.*.*x": 1}}, r"alpha_pattern with .*at most two wildcards"),
        ({"alpha_pattern": {"(query": 1}}, r"alpha_pattern with '\(query'"),
        ({"alpha_pattern": {"(?P<x>query)": 1}}, r"alpha_pattern with "),
    ],
)  # fmt: skip
def test_a_configuration_that_contradicts_the_factors_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_bert(tmp_path / "base"))
    change_config(adapter, **changes)
    with pytest.raises(awd.AwdError, match=rf"makes no sense with its factors.*{message}"):
        awd.open_checkpoint(adapter)


def test_the_rows_asked_for_never_change_a_bit(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "lora_alpha": 3}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = {"A": (16, 3000), "B": (70, 16)}
    factors = {side: torch.randn(shape, generator=generator) for side, shape in shapes.items()}
    save_file(
        {f"base_model.model.layer.lora_{side}.weight": t for side, t in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    stored = StoredTensor("layer.weight", (70, 3000), FLOAT32, adapter, 0)
    tensor = awd.open_checkpoint(adapter).tensor(stored)
    base = torch.zeros(70, 3000, dtype=torch.float64)
    whole = tensor.task_vector(0, 70, base)
    expected = 3 / 16 * factors["B"].double() @ factors["A"].double()
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)
    for start, stop in [(0, 1), (9, 12), (10, 20), (69, 70), (3, 68)]:
        rows = tensor.task_vector(start, stop, base[start:stop])
        assert same_bits({"": rows}, {"": whole[start:stop]})
    assert tensor.task_vector(5, 5, base[:0]).shape == (0, 3000)


def test_an_adapter_without_safetensors_is_refused(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_bert(tmp_path / "base"))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(awd.AwdError, match=r"no safetensors weights.*pickled.*save_pretrained"):
        awd.open_checkpoint(adapter)


def test_an_adapter_in_a_bin_file_is_read_when_allowed(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_bert(tmp_path / "base"))
    base = awd.open_checkpoint(tmp_path / "base")
    safe = awd.collect(base, [awd.open_checkpoint(adapter)], out=tmp_path / "safe", device="cpu")
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    opened = awd.open_checkpoint(adapter, allow_pickle=True)
    pickled = awd.collect(base, [opened], out=tmp_path / "pickled", device="cpu")
    np.testing.assert_array_equal(safe.grams, pickled.grams)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"hidden_size": 16}, r"shape \[8, 8\].*shape \[16, 16\], as in the base.*Use the base"),
        ({"num_hidden_layers": 1}, r"encoder\.layer\.1.*no such weight in the base.*Use the base"),
    ],
)
def test_an_adapter_for_another_base_is_refused(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_bert(tmp_path / "its-base"))
    save_bert(tmp_path / "base", **other)
    base, expert = awd.open_checkpoint(tmp_path / "base"), awd.open_checkpoint(adapter)
    assert not awd.preflight(base, [expert]).ok
    with pytest.raises(awd.AwdError, match=message + r".*its-base"):
        awd.collect(base, [expert], out=tmp_path / "study", device="cpu")


def test_excluded_tensors_of_an_adapter_may_differ(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_bert(tmp_path / "its-base"))
    save_bert(tmp_path / "base", intermediate_size=20)
    message = r"intermediate\.dense\.weight.*list the tensor under `exclude`"
    with pytest.raises(awd.AwdError, match=message):
        merged(tmp_path / "base", adapter)
    merged(tmp_path / "base", adapter, exclude=["*.intermediate.*", "*.output.dense.*"])


def test_an_adapter_cannot_be_the_base(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_bert(tmp_path / "base"))
    one = awd.open_checkpoint(adapter)
    with pytest.raises(awd.AwdError, match=r"base 'adapter'.*whole weights.*as the base"):
        awd.preflight(one, [one]).require_ok()
