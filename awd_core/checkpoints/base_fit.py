"""Is this the base that the experts were fine-tuned from? A look at a few rows tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from awd_core.checkpoints.checkpoint import Checkpoint
from awd_core.checkpoints.header import StoredTensor, read_row

MATRICES, ROWS = 16, 4


@dataclass(frozen=True)
class BaseFit:
    """How far the experts are from a base, on a sample of rows.

    Attributes:
        base: Label of the base.
        relative_norms: `||tau_k|| / ||theta_0||` of every expert with whole weights, by label.
        mean_cosine: Mean over pairs of cos(tau_i, tau_j); None with fewer than two such experts.
        not_finite: Which of base and experts has a NaN or infinity in these rows.
    """

    base: str
    relative_norms: dict[str, float]
    mean_cosine: float | None
    not_finite: tuple[str, ...] = ()

    @property
    def mean_relative_norm(self) -> float | None:
        """Mean over experts; None where there is none with whole weights."""
        norms = self.relative_norms.values()
        return sum(norms) / len(norms) if norms else None


def base_fit(base: Checkpoint, experts: Sequence[Checkpoint]) -> BaseFit:
    """Compare experts with a base on `ROWS` rows of `MATRICES` matrices spread over the model.

    A fine-tuned model is near its base: relative norms of a few hundredths. Measured from another
    base, all task vectors share the way between the bases: they are long, and their cosines near 1.
    LoRA experts say nothing here, for their task vectors do not depend on the base.
    """
    whole = [one for one in experts if one.kind == "weights"]
    shared = [tensor for tensor in base.stored.values() if _comparable(tensor, whole)]
    step = max(1, len(shared) // MATRICES)
    grams = np.zeros((len(whole), len(whole)))
    square, strange = 0.0, np.zeros(len(whole) + 1, dtype=bool)
    for tensor in shared[::step][:MATRICES] if whole else ():
        rows = range(0, tensor.shape[0], max(1, tensor.shape[0] // ROWS))
        for row in list(rows)[:ROWS]:
            theta = read_row(tensor, row)
            thetas = np.stack([read_row(one.stored[tensor.name], row) for one in whole])
            strange |= ~np.isfinite([theta, *thetas]).all(1)
            tau = thetas - theta
            grams += tau @ tau.T
            square += float(theta @ theta)
    norms = np.sqrt(np.diag(grams))
    relative = norms / square**0.5 if square else np.full_like(norms, np.nan)
    return BaseFit(
        base.label,
        dict(zip((one.label for one in whole), relative.tolist(), strict=True)) if shared else {},
        _mean_cosine(grams, norms) if shared else None,
        tuple(
            f"{'expert' if k else 'base'} {one.label!r}"
            for k, one in enumerate((base, *whole))
            if strange[k]
        ),
    )


def _comparable(tensor: StoredTensor, experts: Sequence[Checkpoint]) -> bool:
    same = (one.stored.get(tensor.name) for one in experts)
    return (
        tensor.is_float
        and len(tensor.shape) >= 2
        and tensor.n_elements > 0
        and all(one is not None and one.shape == tensor.shape and one.is_float for one in same)
    )


def _mean_cosine(grams: np.ndarray, norms: np.ndarray) -> float | None:
    lengths = np.outer(norms, norms)
    upper = np.triu(np.ones_like(grams, dtype=bool), 1) & (lengths > 0)
    return float((grams[upper] / lengths[upper]).mean()) if upper.any() else None
