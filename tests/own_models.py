"""Tiny real models with their tokenizers, and texts to ask them."""

import json
from pathlib import Path
from typing import Any

import torch

import awd_core as awd

WORDS = (
    *("the", "a", "cat", "dog", "bird", "sleeps", "runs", "sings", "red", "green", "car", "truck"),
    *("bike", "drives", "stops", "turns", "on", "under", "house", "road", "tree", "and", "not"),
)
ANIMALS = [f"the {who} {does}" for who in ("cat", "dog", "bird") for does in ("sleeps", "sings")]
TRAFFIC = [f"a {what} {does}" for what in ("car", "truck", "bike") for does in ("stops", "turns")]


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", *WORDS])}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)


def _model(kind: str, seed: int) -> Any:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS) + 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
    }
    if kind == "causal":
        return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    return BertForSequenceClassification(BertConfig(**sizes))


def own_family(root: Path, kind: str, n_experts: int = 2) -> tuple[Path, list[Path]]:
    """A base and experts that transformers wrote: `causal` is a Llama, `encoder` a BERT with a
    head of its own."""
    folders = [root / "base", *(root / f"expert-{k}" for k in range(n_experts))]
    generator = torch.Generator().manual_seed(1)
    for folder in folders:
        model = _model(kind, seed=0)
        if folder != folders[0]:
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += 0.05 * noise
        model.save_pretrained(folder)
        _tokenizer(folder)
    return folders[0], folders[1:]


def own_recipe(base: Path, experts: list[Path], **fields: Any) -> awd.Recipe:
    return awd.Recipe(base=str(base), experts=[str(one) for one in experts], **fields)


def own_texts(file: Path) -> Path:
    """Two tasks with two labels each, as JSON lines."""
    rows = [{"text": text, "label": "animals", "task": "topic"} for text in ANIMALS]
    rows += [{"text": text, "label": "traffic", "task": "topic"} for text in TRAFFIC]
    rows += [
        {"text": text, "label": "still" if "s" in text.split()[-1][:2] else "moves", "task": "verb"}
        for text in (*ANIMALS, *TRAFFIC, "the car drives", "a dog runs")
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file
