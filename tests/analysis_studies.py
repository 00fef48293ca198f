"""Tiny checkpoints with known task vectors, and the study of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import awd_core as awd

# Names as in a BERT: two blocks, an embedding, matrices, a bias and a norm.
SHAPES: dict[str, tuple[int, ...]] = {
    "embeddings.word_embeddings.weight": (5, 4),
    "encoder.layer.0.attention.self.query.weight": (4, 4),
    "encoder.layer.0.attention.self.query.bias": (4,),
    "encoder.layer.0.intermediate.dense.weight": (6, 4),
    "encoder.layer.0.output.LayerNorm.weight": (4,),
    "encoder.layer.1.attention.self.query.weight": (4, 4),
    "encoder.layer.1.intermediate.dense.weight": (6, 4),
}

Vectors = Mapping[str, np.ndarray]


def random_vectors(
    n_experts: int, seed: int, shared: float = 0.5, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, np.ndarray]:
    """Task vectors (K, *shape) that share a direction; multiples of 1/256, exact in float32."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, shape in shapes.items():
        common = rng.standard_normal(shape)
        own = rng.standard_normal((n_experts, *shape)) * np.linspace(0.5, 1.5, n_experts).reshape(
            -1, *(1 for _ in shape)
        )
        drawn[name] = np.round((own + shared * common) * 256) / 256
    return drawn


def base_weights(vectors: Vectors, seed: int = 7) -> dict[str, np.ndarray]:
    """theta_0 in multiples of 1/256, so that theta_0 + tau is exact in float32."""
    rng = np.random.default_rng(seed)
    return {
        name: np.round(rng.standard_normal(stack.shape[1:]) * 256) / 256
        for name, stack in vectors.items()
    }


def collected(folder: Path, vectors: Vectors, labels: tuple[str, ...] | None = None) -> awd.Study:
    """The study of a base and the experts base + tau_k, really written and really read."""
    n_experts = len(next(iter(vectors.values())))
    labels = labels or tuple(f"task {k}" for k in range(n_experts))
    base = base_weights(vectors)
    experts = [
        awd.open_checkpoint(
            _write(folder / f"expert-{k}", {name: base[name] + vectors[name][k] for name in base}),
            label,
        )
        for k, label in enumerate(labels)
    ]
    return awd.collect(
        awd.open_checkpoint(_write(folder / "base", base)), experts, folder / "study", device="cpu"
    )


def _write(folder: Path, weights: Vectors) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    single = {
        name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()
    }
    save_file(single, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
