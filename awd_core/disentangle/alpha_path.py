"""Everything that alpha decides, for all alpha at once."""

from dataclasses import dataclass, replace

import numpy as np

from awd_core.disentangle.gram_solver import Descent, run
from awd_core.disentangle.objective import (
    critical_alphas,
    disentangled_grams,
    left_of_experts,
    mean_absolute_cosine,
    mean_norms,
)
from awd_core.study import Study

# The path covers this range of alpha / alpha_crit.
LOWEST, HIGHEST = 1e-3, 2.0


@dataclass(frozen=True)
class AlphaPath:
    """The curves over alpha, at granularity `model`.

    Attributes:
        alpha: The grid in the paper's units, ascending, with alpha_crit itself in it, (n,).
        critical: alpha_crit; from here on delta = 0 is a local minimum, mostly the one found.
        mean_absolute_cosine: `L_O` at every alpha, (n,).
        redundant_norm: `||delta||`, (n,).
        relative_redundant_norm: `||delta|| / mean ||tau_k||`, (n,).
        retained_norm: `||sum_k v_k|| / ||sum_k tau_k||`, (n,).
        weight_shares: `w_k / lambda = 1 - K c_k`, (n, K).
        knee: Position in the grid of the best bargain between |cos| and ||delta||: the point
            farthest below the straight line from one end to the other of the curve of L_O over
            ||delta||, both scaled to 0..1. None for a path on which nothing changes.
    """

    alpha: np.ndarray
    critical: float
    mean_absolute_cosine: np.ndarray
    redundant_norm: np.ndarray
    relative_redundant_norm: np.ndarray
    retained_norm: np.ndarray
    weight_shares: np.ndarray
    knee: int | None


def alpha_path(
    study: Study | np.ndarray, n_points: int = 200, steps: int = 1000, lr_relative: float = 0.05
) -> AlphaPath:
    """AWD of the whole model for a logarithmic grid of alpha, each descended until it converges.

    The paper's penalty, ||delta||. Every alpha is one group of the solver, all with the same Gram.

    Args:
        study: The study, or the Gram of the whole model, (K, K).
        n_points: Size of the grid.
        steps: The most steps for each.
        lr_relative: First step size over s^2.
    """
    gram = study.grams.sum(0) if isinstance(study, Study) else np.asarray(study, dtype=np.float64)
    critical = float(critical_alphas(gram))
    alpha = _grid(critical, n_points)
    grams = np.broadcast_to(gram, (len(alpha), *gram.shape))
    descent = Descent(alpha, lr_relative * mean_norms(grams) ** 2, steps, until="converged")
    c = run(grams, descent).coefficients
    after = disentangled_grams(grams, c)
    norms = np.sqrt(np.maximum(0.0, np.einsum("gi,ij,gj->g", c, gram, c)))
    path = AlphaPath(
        alpha=alpha,
        critical=critical,
        mean_absolute_cosine=mean_absolute_cosine(left_of_experts(grams, after)),
        redundant_norm=norms,
        relative_redundant_norm=norms / (mean_norms(gram) or np.nan),
        retained_norm=np.sqrt(np.maximum(0.0, after.sum((1, 2))) / (gram.sum() or np.nan)),
        weight_shares=1.0 - len(gram) * c,
        knee=None,
    )
    return replace(path, knee=_knee(path.redundant_norm, path.mean_absolute_cosine))


def _grid(critical: float, n_points: int) -> np.ndarray:
    if critical == 0:
        return np.geomspace(LOWEST, HIGHEST, n_points)
    grid = critical * np.geomspace(LOWEST, HIGHEST, n_points)
    grid[np.abs(np.log(grid / critical)).argmin()] = critical
    return grid


def _knee(norm: np.ndarray, cosine: np.ndarray) -> int | None:
    """Position farthest below the chord of the curve (norm, cosine), both scaled to 0..1."""
    spans = np.ptp(norm), np.ptp(cosine)
    if not np.isfinite(spans).all() or min(spans) == 0:
        return None
    x = (norm - norm.min()) / spans[0]
    y = (cosine - cosine.min()) / spans[1]
    return int(np.argmax(1.0 - x - y))
