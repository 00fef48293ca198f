"""Methods run on arrays, without files: what a merge adds to the base."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from awd_core.method import MergeMethod
from awd_core.vectors import Piece, TensorVectors, Vectors


def model_of(vectors: Mapping[str, np.ndarray], rows: int | None = None) -> Vectors:
    """Task vectors (K, *shape) by name, read `rows` rows at a time; the base is zero."""
    n_experts = len(next(iter(vectors.values())))
    tensors = [_tensor(name, values, rows) for name, values in vectors.items()]
    n_elements = sum(tensor.n_elements for tensor in tensors)
    return Vectors(n_experts, n_elements, lambda: iter(tensors))


def _tensor(name: str, values: np.ndarray, rows: int | None) -> TensorVectors:
    shape = values.shape[1:]
    n_rows = shape[0] if len(shape) > 1 else 1
    whole = torch.from_numpy(values.copy()).reshape(len(values), n_rows, -1)

    def sweep() -> Iterator[Piece]:
        step = rows or n_rows
        for start in range(0, n_rows, step):
            piece = whole[:, start : start + step].clone()
            yield Piece(name, start, torch.zeros_like(piece[0]), piece)

    return TensorVectors(name, shape, len(values), sweep, lambda index: whole[index].clone(), sweep)


def run(
    method: MergeMethod,
    vectors: Mapping[str, np.ndarray],
    coefficients: np.ndarray | float = 1.0,
    rows: int | None = None,
) -> dict[str, np.ndarray]:
    """The merged task vector of every tensor."""
    model = model_of(vectors, rows)
    lambdas = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), model.n_experts).copy()
    survey = method.survey(model)
    merged = {}
    for tensor in model.tensors():
        prepared = method.prepare(survey, tensor)
        parts = [
            torch.as_tensor(method.combine(prepared, piece, lambdas)) for piece in tensor.sweep()
        ]
        merged[tensor.name] = torch.cat(parts).reshape(tensor.shape).numpy()
    return merged


def run_matrix(
    method: MergeMethod, taus: np.ndarray, coefficients: np.ndarray | float = 1.0
) -> np.ndarray:
    """The merged task vector of a model that is one matrix, (rows, columns)."""
    return run(method, {"layer.weight": taus}, coefficients)["layer.weight"]
