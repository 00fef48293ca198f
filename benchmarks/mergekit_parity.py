"""The exported recipe, run by mergekit itself, against our merge of the same recipe.

    python -m benchmarks.mergekit_parity [--mergekit PATH/TO/mergekit-yaml]

A Llama-shaped bfloat16 model with three experts is drawn at random; mergekit 0.1.5 is installed
into a virtual environment of its own, outside this project's, and runs the YAML of
`awd convert --to mergekit`. The difference is counted in units in the last place of bfloat16.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import awd_core as awd
from awd_core.mergekit import to_mergekit

MERGEKIT = "mergekit==0.1.5"
SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


def draw(folder: Path, n_experts: int) -> list[Path]:
    """Base and experts as folders, bfloat16."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    common = {name: torch.randn(tensor.shape) for name, tensor in base.items()}
    folders = []
    for k in range(n_experts + 1):
        for name, tensor in model.state_dict().items():
            change = 0.0 if k == 0 else 0.01 * k * (0.5 * common[name] + torch.randn(tensor.shape))
            tensor.copy_((base[name].float() + change).to(torch.bfloat16))
        folders.append(folder / ("base" if k == 0 else f"expert-{k}"))
        model.save_pretrained(folders[-1])
    return folders


def installed(folder: Path) -> Path:
    """mergekit in a virtual environment of its own; its command."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "pip", "install", "--quiet", MERGEKIT, f"torch=={torch.__version__}"]
    subprocess.run(pip, check=True)
    return folder / "bin" / "mergekit-yaml"


def ulps(ours: torch.Tensor, theirs: torch.Tensor, scale: torch.Tensor) -> float:
    """Largest difference in bfloat16 units in the last place of `scale` or of the result.

    Where base and task vectors cancel, mergekit's float32 sum has an error of the size of what was
    summed, which is many units of the tiny result and far less than one of the base weight.
    """
    larger = torch.maximum(ours.float().abs(), scale.float().abs()).clamp(min=1e-30)
    unit = 2.0 ** (larger.log2().floor() - 7)
    return float(((ours.float() - theirs.float()).abs() / unit).max())


def compare(folder: Path, command: Path) -> None:
    """Print the table."""
    base, *experts = draw(folder, 3)
    study = awd.collect(
        awd.open_checkpoint(str(base)),
        [awd.open_checkpoint(str(expert)) for expert in experts],
        folder / "study",
    )
    weights = load_file(base / "model.safetensors")
    print("| AWD | tensors | elements that differ | largest difference (bf16 ulp) |")
    print("|---|---|---|---|")
    for granularity in (None, "model", "block", "tensor"):
        fields = {} if granularity is None else {"disentangle": {"granularity": granularity}}
        recipe = awd.Recipe(
            base=str(base),
            experts=[str(expert) for expert in experts],
            coefficients=(0.3, 0.5, 0.2),
            **fields,
        )
        name = granularity or "none"
        file, out = folder / f"{name}.yaml", folder / f"theirs-{name}"
        file.write_text(to_mergekit(recipe, study), encoding="utf-8")
        subprocess.run([command, file, out, "--no-copy-tokenizer", "--quiet"], check=True)
        theirs = {}
        for part in out.glob("*.safetensors"):
            theirs |= load_file(part)
        ours = load_file(
            awd.merge(recipe, folder / f"ours-{name}", study=study) / "model.safetensors"
        )
        assert ours.keys() == theirs.keys()
        differ = sum(int((ours[key] != theirs[key]).sum()) for key in ours)
        total = sum(tensor.numel() for tensor in ours.values())
        largest = max(ulps(ours[key], theirs[key], weights[key]) for key in ours)
        assert largest <= 1
        print(f"| {name} | {len(ours)} | {differ} of {total:,} | {largest:.2g} |", flush=True)


def main() -> None:
    """Install, merge twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mergekit", type=Path, help="mergekit-yaml, where it is installed already"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = arguments.mergekit or installed(Path(folder) / "mergekit")
        compare(Path(folder), command)


if __name__ == "__main__":
    main()
