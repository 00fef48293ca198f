"""Tiny checkpoints on disk, written with the libraries people use and never with our own writer."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import awd_core as awd
from awd_core.checkpoints import Checkpoint, StoredTensor
from awd_core.dtypes import FLOAT64
from awd_core.stream import CODES, Chunk, Packed, Span

State = dict[str, torch.Tensor]

CONFIG: dict[str, Any] = {"model_type": "tiny", "architectures": ["TinyModel"]}

# Every shape that a checkpoint can hold, with the block that its name should put it in.
SHAPES: dict[str, tuple[int, ...]] = {
    "embeddings.word_embeddings.weight": (7, 12),
    "encoder.layer.0.attention.self.query.weight": (5, 12),
    "encoder.layer.0.attention.self.query.bias": (9,),
    "encoder.layer.1.output.dense.weight": (6, 13),
    "encoder.layer.1.output.LayerNorm.weight": (13,),
    "patch.conv.weight": (2, 3, 2, 2),
    "column.weight": (11, 1),
    "logit_scale": (),
    "empty.weight": (0, 4),
}
BLOCKS: dict[str, str] = {
    "embeddings.word_embeddings.weight": "embedding",
    "encoder.layer.0.attention.self.query.weight": "block 0",
    "encoder.layer.0.attention.self.query.bias": "block 0",
    "encoder.layer.1.output.dense.weight": "block 1",
    "encoder.layer.1.output.LayerNorm.weight": "block 1",
    "patch.conv.weight": "other",
    "column.weight": "other",
    "logit_scale": "other",
    "empty.weight": "other",
}
QUERY = "encoder.layer.0.attention.self.query.weight"
BIAS = "encoder.layer.0.attention.self.query.bias"


def base_state(seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """Random weights of every shape, both zeros, and buffers that are not floats."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    state[QUERY][0, :2] = torch.tensor([0.0, -0.0])
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    state["position_ids"] = torch.arange(7)[None]
    state["mask"] = torch.tensor([True, False, True])
    return state


def expert_states(
    base: State, n_experts: int, seed: int = 1, shared: float = 0.5, size: float = 0.1
) -> list[State]:
    """Experts whose task vectors have a part in common, each with a sign and length of its own.

    So cosines are far from zero and of both signs.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    common = {name: noise(tensor) for name, tensor in base.items() if tensor.is_floating_point()}
    experts = []
    for k in range(n_experts):
        sign, length = (-1 if k % 3 == 2 else 1), size * (1 + 0.3 * k)
        expert = dict(base)
        for name, part in common.items():
            task_vector = length * (sign * shared * part + noise(base[name]))
            expert[name] = (base[name].double() + task_vector).to(base[name].dtype)
        experts.append(expert)
    return experts


def save(
    folder: Path, state: State, config: Mapping[str, Any] = CONFIG, shards: int | None = None
) -> Path:
    """A Hugging Face folder: one file, or `shards` files with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards is None:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: state[key] for key in list(state)[number::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(folder: Path) -> State:
    """All tensors of a folder, as the safetensors library reads them."""
    state: State = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return state


class Family:
    """A base and its experts on disk, and in memory as they were written."""

    def __init__(
        self,
        root: Path,
        base: State,
        experts: Sequence[State],
        shards: int | None = None,
    ) -> None:
        self.root, self.base_state, self.expert_states = root, base, list(experts)
        self.base_path = save(root / "base", base, shards=shards)
        self.expert_paths = [
            save(root / f"expert-{k}", expert, shards=shards) for k, expert in enumerate(experts)
        ]

    @property
    def base(self) -> Checkpoint:
        return awd.open_checkpoint(self.base_path)

    @property
    def experts(self) -> list[Checkpoint]:
        return [awd.open_checkpoint(path) for path in self.expert_paths]

    def recipe(self, **fields: Any) -> awd.Recipe:
        return awd.Recipe(
            base=str(self.base_path), experts=[str(path) for path in self.expert_paths], **fields
        )

    def state(self, **fields: Any) -> State:
        """The merge of a recipe, in memory."""
        return awd.merged_state(awd.plan_merge(self.recipe(**fields), device="cpu"))

    def study(self, **options: Any) -> awd.Study:
        return awd.collect(self.base, self.experts, device="cpu", **options)

    def task_vectors(self) -> dict[str, np.ndarray]:
        """tau of every floating-point tensor, (K, *shape) float64."""
        return {
            name: np.stack(
                [
                    expert[name].double().numpy() - tensor.double().numpy()
                    for expert in self.expert_states
                ]
            )
            for name, tensor in self.base_state.items()
            if tensor.is_floating_point()
        }

    def flat_task_vectors(self) -> np.ndarray:
        """tau of the whole model, (K, n) float64, in the order of the state dict."""
        n_experts = len(self.expert_states)
        parts = [tau.reshape(n_experts, -1) for tau in self.task_vectors().values()]
        return np.concatenate(parts, axis=1)


def family(
    root: Path, n_experts: int, dtype: torch.dtype = torch.float32, **options: Any
) -> Family:
    """A base of every shape and `n_experts` random experts."""
    base = base_state(dtype=dtype)
    return Family(root, base, expert_states(base, n_experts), **options)


def methods_for(n_experts: int) -> list[str]:
    """Keys of the methods on task vectors that merge so many experts into one model."""
    return [
        method.key
        for method in awd.METHODS
        if method.takes_task_vectors
        and not method.needs_task
        and method.least_experts <= n_experts <= (method.most_experts or n_experts)
    ]


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor: equal only where every bit is, the sign of a zero included."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    """Whether two states hold the same names, types, shapes and bits."""
    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and bits(left[name]) == bits(right[name])
        for name in left
    )


def tree(folder: Path) -> dict[str, str]:
    """Every path under a folder with the hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def write_raw(file: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file from any header, valid or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return file


def cancel_after(calls: int) -> Callable[[], bool]:
    """A `cancel` that says yes at its `calls`-th call."""
    count = 0

    def cancel() -> bool:
        nonlocal count
        count += 1
        return count >= calls

    return cancel


def save_bert(folder: Path, seed: int = 0, head: bool = False, **sizes: Any) -> Path:
    """A tiny BERT, saved by transformers."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    small: dict[str, Any] = {
        "vocab_size": 13,
        "hidden_size": 8,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    config = BertConfig(**small | sizes, num_attention_heads=2, max_position_embeddings=10)
    torch.manual_seed(seed)
    (BertForMaskedLM(config) if head else BertModel(config)).save_pretrained(folder)
    return folder


def vector_study(root: Path, task_vectors: np.ndarray) -> awd.Study:
    """The study of one tensor whose task vectors are exactly these, (K, n) float64."""
    experts = [{"w": torch.from_numpy(np.array(vector))} for vector in task_vectors]
    family = Family(root, {"w": torch.zeros(task_vectors.shape[1], dtype=torch.float64)}, experts)
    return family.study(out=root / "study")


def redundant_vectors(family: Family, study: awd.Study, solved: awd.Disentangled) -> np.ndarray:
    """delta = sum_k c_k tau_k over the whole model, element by element, in the study's order."""
    tau, parts = family.task_vectors(), []
    for position, tensor in enumerate(study.tensors):
        vectors = tau[tensor.name]
        n_rows = tensor.shape[0] if tensor.is_matrix else 1
        rows = vectors.reshape(len(vectors), n_rows, tensor.n_elements // max(1, n_rows))
        c = np.broadcast_to(solved.coefficients_of(position), (rows.shape[1], len(vectors)))
        parts.append(np.einsum("rk,krn->rn", c, rows).ravel())
    return np.concatenate(parts)


def chunk_of(base: torch.Tensor, task_vectors: torch.Tensor) -> Chunk:
    """A vector and its task vectors, (n,) and (K, n) float64, as the pass would read them."""
    n, rows = len(base), torch.cat([base[None], task_vectors])
    padded = torch.zeros(len(rows), -(-n // 8) * 8, dtype=torch.float64)
    padded[:, :n] = rows
    offsets = np.arange(len(rows)) * padded.shape[1] * 8
    codes = np.full(len(rows), CODES[FLOAT64])
    is_vector = np.arange(len(rows)) > 0
    packed = Packed(padded.view(-1).view(torch.uint8).numpy(), offsets, codes, is_vector, n)
    stored = StoredTensor("w", (n,), FLOAT64, Path(), 0)
    return Chunk(stored, Span(0, 1, n), packed)
