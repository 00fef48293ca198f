"""Preflight of a base and eight experts of 7B shape: 300 tensors in 30 shards each.

    python -m benchmarks.preflight

Budget: 2 s. The files are sparse: their headers are real and their weights are zeros that take no
space, so nothing but headers can be read at such a speed.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import awd_core as awd
from awd_core import zoo  # its import, as that of torch, is not what is measured

RUNS, N_EXPERTS, SHARDS, LAYERS = 5, 8, 30, 33
HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 11008, 32000


def shapes() -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of a Llama of 33 layers: 300 tensors."""
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            yield f"{prefix}.self_attn.{name}_proj.weight", [HIDDEN, HIDDEN]
        for name in ("gate", "up"):
            yield f"{prefix}.mlp.{name}_proj.weight", [INTERMEDIATE, HIDDEN]
        yield f"{prefix}.mlp.down_proj.weight", [HIDDEN, INTERMEDIATE]
        for name in ("input", "post_attention"):
            yield f"{prefix}.{name}_layernorm.weight", [HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCABULARY, HIDDEN]


def write(folder: Path, seed: int) -> None:
    """A model folder whose weights are holes, but for one number that tells experts apart."""
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    config |= {"vocab_size": VOCABULARY, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    tensors, weight_map = list(shapes()), {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        header, offset = {}, 0
        for name, shape in tensors[number::SHARDS]:
            end = offset + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            weight_map[name], offset = file, end
        raw = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(raw).to_bytes(8, "little") + raw + bytes([seed, 63]))
            stream.truncate(8 + len(raw) + offset)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def measure(folders: list[Path]) -> tuple[tuple[float, float, float], awd.Preflight]:
    """Seconds of opening, comparing and looking at the base; and the report."""
    start = time.perf_counter()
    base, *experts = (awd.open_checkpoint(folder) for folder in folders)
    opened = time.perf_counter()
    report = awd.preflight(base, experts)
    checked = time.perf_counter()
    awd.base_fit(base, experts)
    return (opened - start, checked - opened, time.perf_counter() - checked), report


def main() -> None:
    """Measure and print."""
    assert zoo
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / f"model-{k}" for k in range(N_EXPERTS + 1)]
        for k, folder in enumerate(folders):
            write(folder, k)
        runs = [measure(folders) for _ in range(RUNS)]
    report = runs[0][1]
    assert report.ok
    parameters, n_bytes = report.estimate.parameters, report.estimate.bytes_to_read
    print(
        f"Base and {N_EXPERTS} experts, {len(list(shapes()))} tensors in {SHARDS} shards each,"
        f" {parameters / 1e9:.1f}e9 parameters, {n_bytes / 1e9:.0f} GB in all; seconds,"
        f" {RUNS} runs:\n\n| | median | slowest |\n|---|---|---|"
    )
    table = np.array([times for times, _ in runs])
    rows = {"open": table[:, 0], "compare": table[:, 1], "base fit": table[:, 2]}
    for name, values in {**rows, "all": table.sum(1)}.items():
        print(f"| {name} | {np.median(values):.2f} | {values.max():.2f} |")


if __name__ == "__main__":
    main()
