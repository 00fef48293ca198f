"""From the names of tensors, as real models have them, to block and kind."""

import pytest

from awd_core.layout import Place, blocks, place

NAMES = {
    # BERT
    "embeddings.word_embeddings.weight": ("embedding", "embedding"),
    "embeddings.LayerNorm.weight": ("embedding", "norm"),
    "bert.encoder.layer.3.attention.self.query.weight": ("block 3", "attention.q"),
    "bert.encoder.layer.3.attention.self.key.bias": ("block 3", "bias"),
    "encoder.layer.11.attention.self.value.weight": ("block 11", "attention.v"),
    "encoder.layer.0.attention.output.dense.weight": ("block 0", "attention.o"),
    "encoder.layer.0.attention.output.LayerNorm.bias": ("block 0", "norm"),
    "encoder.layer.0.intermediate.dense.weight": ("block 0", "mlp.up"),
    "encoder.layer.0.output.dense.weight": ("block 0", "mlp.down"),
    "pooler.dense.weight": ("head", "head"),
    "classifier.weight": ("head", "head"),
    # Llama, Qwen, Mistral
    "model.embed_tokens.weight": ("embedding", "embedding"),
    "model.layers.12.self_attn.q_proj.weight": ("block 12", "attention.q"),
    "model.layers.12.self_attn.k_proj.weight": ("block 12", "attention.k"),
    "model.layers.12.self_attn.v_proj.weight": ("block 12", "attention.v"),
    "model.layers.12.self_attn.o_proj.weight": ("block 12", "attention.o"),
    "model.layers.12.mlp.gate_proj.weight": ("block 12", "mlp.gate"),
    "model.layers.12.mlp.up_proj.weight": ("block 12", "mlp.up"),
    "model.layers.12.mlp.down_proj.weight": ("block 12", "mlp.down"),
    "model.layers.12.input_layernorm.weight": ("block 12", "norm"),
    "model.norm.weight": ("other", "norm"),
    "lm_head.weight": ("head", "head"),
    # GPT-2
    "transformer.wte.weight": ("embedding", "embedding"),
    "transformer.h.5.attn.c_attn.weight": ("block 5", "attention.qkv"),
    "transformer.h.5.attn.c_proj.weight": ("block 5", "attention.o"),
    "transformer.h.5.mlp.c_fc.weight": ("block 5", "mlp.up"),
    "transformer.h.5.mlp.c_proj.weight": ("block 5", "mlp.down"),
    "transformer.h.5.ln_1.weight": ("block 5", "norm"),
    # T5
    "shared.weight": ("embedding", "embedding"),
    # CLIP
    "logit_scale": ("other", "other"),
    "vision_model.embeddings.patch_embedding.weight": ("embedding", "embedding"),
    "visual_projection.weight": ("head", "head"),
}


@pytest.mark.parametrize(("name", "where"), NAMES.items(), ids=str)
def test_names_say_where_a_tensor_stands(name: str, where: tuple[str, str]) -> None:
    assert place(name) == Place(*where)


def test_blocks_of_one_stack_keep_their_plain_names() -> None:
    names = ["embed.weight", "model.layers.0.mlp.weight", "model.layers.1.mlp.weight"]
    assert blocks(names) == ["embedding", "block 0", "block 1"]


def test_blocks_of_two_stacks_are_told_apart() -> None:
    names = ["shared.weight", "encoder.block.0.q.weight", "decoder.block.0.q.weight", "lm_head.w"]
    assert blocks(names) == ["embedding", "encoder block 0", "decoder block 0", "head"]
