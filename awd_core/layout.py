"""Tensor name -> block and kind. Driven by names, no table per architecture.

A block is one transformer block, or `embedding`, `head`, `other`. A kind says what the tensor does
in its block. The rules are ordered; the first that matches decides.
"""

import re
from dataclasses import dataclass

EMBEDDING, HEAD, OTHER = "embedding", "head", "other"

_EMBEDDING_WORDS = r"(embed|wte|wpe|\bshared\b)"
_HEAD_WORDS = r"(lm_head|classifier|\bscore\b|pooler|\bhead\b|projection)"

# Words that name the kind, as they stand in parameter names of Hugging Face models.
KIND_RULES: tuple[tuple[str, str], ...] = (
    (r"(layer_?norm|layernorm|\bln_?\w*|norm\d*|rms)\b", "norm"),
    (r"\bbias$", "bias"),
    (r"\b(c_attn|in_proj|qkv|query_key_value|qkv_proj|Wqkv)\b", "attention.qkv"),
    (r"\b(q_proj|query|q|wq|q_lin|to_q)\b", "attention.q"),
    (r"\b(k_proj|key|k|wk|k_lin|to_k)\b", "attention.k"),
    (r"\b(v_proj|value|v|wv|v_lin|to_v)\b", "attention.v"),
    (r"\battention\.output\.dense\b", "attention.o"),
    (r"\b(o_proj|out_proj|wo|out_lin|attn\.c_proj|to_out|o)\b", "attention.o"),
    (r"\b(gate_proj|w1|wi_0|gate)\b", "mlp.gate"),
    (r"\b(up_proj|intermediate\.dense|fc1|c_fc|w3|wi|wi_1|lin1|dense_h_to_4h)\b", "mlp.up"),
    (r"\b(down_proj|output\.dense|fc2|mlp\.c_proj|w2|lin2|dense_4h_to_h)\b", "mlp.down"),
    (_EMBEDDING_WORDS, EMBEDDING),
    (_HEAD_WORDS, HEAD),
    (r"conv", "conv"),
)

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")
_STACK = re.compile(r"(encoder|decoder|vision|text|visual)")


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in the model."""

    block: str
    kind: str


def place(name: str) -> Place:
    """Block and kind of a tensor, from its name.

    >>> place("encoder.layer.3.attention.self.query.weight")
    Place(block='block 3', kind='attention.q')
    """
    kind = next((kind for rule, kind in KIND_RULES if re.search(rule, name, re.I)), OTHER)
    return Place(_block(name), kind)


def _block(name: str) -> str:
    number = _NUMBER.search(name)
    if number:
        return f"block {number[1]}"
    if re.search(_EMBEDDING_WORDS, name, re.I):
        return EMBEDDING
    if re.search(_HEAD_WORDS, name, re.I):
        return HEAD
    return OTHER


def blocks(names: list[str]) -> list[str]:
    """The block of every tensor, told apart where a model has several numbered stacks.

    A model with an encoder and a decoder has two blocks 0; theirs become `encoder block 0` and
    `decoder block 0`.
    """
    plain = [place(name).block for name in names]
    stacks = [_stack(name) for name in names]
    numbered = {stack for stack, block in zip(stacks, plain, strict=True) if " " in block}
    if len(numbered) < 2:
        return plain
    return [
        f"{stack} {block}".strip() if " " in block else block
        for stack, block in zip(stacks, plain, strict=True)
    ]


def _stack(name: str) -> str:
    number = _NUMBER.search(name)
    match = _STACK.search(name[: number.start()]) if number else None
    return match[1] if match else ""
