"""Experts on disk: LoRA adapters in PEFT form, and fully fine-tuned models in Hugging Face form."""

import json
import shutil
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor

from awd_core.evaluation.encoder import WEIGHTS_FILE, Encoder, read_state
from awd_core.zoo import BASE_NAME

# Half precision halves what is shipped; accuracies are always those of the rounded weights.
STORED_DTYPE = torch.float16

# What makes a folder loadable besides its weights.
COMPANION_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def save_adapter(adapted: PeftModel, folder: Path) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, rounded to half precision.

    Args:
        adapted: The trained model with its adapter.
        folder: Receives the files.
    """
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(STORED_DTYPE)
    config = adapted.peft_config["default"]
    assert isinstance(config, PeftConfig)
    config.base_model_name_or_path = BASE_NAME
    # Left to itself, PEFT asks the hub whether the vocabulary was changed.
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    _sort_config(folder / "adapter_config.json")


def load_adapter(base: Path, adapter: Path) -> Encoder:
    """The expert of an adapter folder: W + (alpha / rank) B A in every adapted layer.

    Args:
        base: Hugging Face folder of the base.
        adapter: PEFT folder.
    """
    model = Encoder.from_folder(base).model
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return Encoder(merged, base)


def save_full(encoder: Encoder, base: Path, folder: Path) -> None:
    """Writes a complete Hugging Face folder with exactly the tensors of the base's.

    Args:
        encoder: The fine-tuned encoder.
        base: Hugging Face folder of the base.
        folder: Receives the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMPANION_FILES:
        shutil.copyfile(base / name, folder / name)
    trained = encoder.model.state_dict()
    state: dict[str, Tensor] = {
        name: trained.get(name, value).contiguous() for name, value in read_state(base).items()
    }
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _sort_config(path: Path) -> None:
    """Gives the config one byte form: PEFT keeps its target modules as a set."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
