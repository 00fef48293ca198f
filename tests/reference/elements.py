"""Statistics of single elements, one element after the other."""

import numpy as np
import torch


def votes(signs: np.ndarray) -> list[tuple[int, int]]:
    """How many experts move each element up, and how many down; `signs` is (K, n)."""
    return [(int((column > 0).sum()), int((column < 0).sum())) for column in signs.T]


def conflict(signs: np.ndarray) -> float:
    """Share of the elements moved by two or more that are moved both ways."""
    several = [(up, down) for up, down in votes(signs) if up + down >= 2]
    opposed = [up > 0 and down > 0 for up, down in several]
    return float(np.mean(opposed)) if several else float("nan")


def agreement(signs: np.ndarray) -> float:
    """Mean |up - down| / (up + down) over elements moved by two or more."""
    values = [abs(up - down) / (up + down) for up, down in votes(signs) if up + down >= 2]
    return float(np.mean(values)) if values else float("nan")


def tall_masks(vectors: np.ndarray, share: float) -> np.ndarray:
    """[|tau_k| > lambda |tau_M - tau_k|], (K, n)."""
    merged = vectors.sum(0)
    return np.stack([np.abs(own) > share * np.abs(merged - own) for own in vectors])


def claimed(vectors: np.ndarray, share: float) -> np.ndarray:
    """Share of the moved elements that 0, 1, ..., K masks hold, (K + 1,)."""
    moved = (vectors != 0).any(0)
    counts = tall_masks(vectors, share).sum(0)[moved]
    return np.bincount(counts, minlength=len(vectors) + 1) / moved.sum()


def overlap(masks: np.ndarray) -> np.ndarray:
    """Intersection over union, (K, K); NaN where both are empty."""
    found = np.full((len(masks), len(masks)), np.nan)
    for i, one in enumerate(masks):
        for j, other in enumerate(masks):
            if (one | other).any():
                found[i, j] = (one & other).sum() / (one | other).sum()
    return found


def lost(base: np.ndarray, update: np.ndarray) -> float:
    """Share of the non-zero updates after which PyTorch's bfloat16 is that of the base."""
    before = torch.from_numpy(base).to(torch.bfloat16)
    after = torch.from_numpy(base + update).to(torch.bfloat16)
    same = (before == after).numpy()[update != 0]
    return float(same.mean()) if same.size else float("nan")
