"""The result of AWD, and the few sums from which every number about it follows."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from awd_core.disentangle.groups import Groups
from awd_core.disentangle.objective import (
    cosines,
    disentangled_grams,
    left_of_experts,
    mean_absolute_cosine,
)
from awd_core.disentangle.settings import Settings


@dataclass(frozen=True)
class Moments:
    """Inner products of task vectors and redundant vector, for some tensors.

    They add up over tensors, and every cosine, norm and projection of any linear merge of the
    disentangled vectors is a formula in them, at every granularity of AWD.

    Attributes:
        grams: `G_ij = <tau_i, tau_j>`, (..., K, K).
        products: `p_k = <delta, tau_k>`, (..., K).
        squares: `q = ||delta||^2`, (...,).
    """

    grams: np.ndarray
    products: np.ndarray
    squares: np.ndarray

    @property
    def disentangled(self) -> np.ndarray:
        """Gram of v_k = tau_k - delta: `G - p 1^T - 1 p^T + q`, (..., K, K)."""
        products = self.products
        return (
            self.grams
            - products[..., :, None]
            - products[..., None, :]
            + self.squares[..., None, None]
        )

    def merged_square(self, multipliers: np.ndarray) -> np.ndarray:
        """`||sum_k lambda_k v_k||^2 = l^T G l - 2 L l^T p + L^2 q`, L = sum l; (...,)."""
        total = multipliers.sum()
        inner = np.einsum("...ij,i,j->...", self.grams, multipliers, multipliers)
        square = inner - 2 * total * self.products @ multipliers + total**2 * self.squares
        return np.maximum(square, 0.0)

    def merged_products(self, multipliers: np.ndarray) -> np.ndarray:
        """`<sum_i lambda_i v_i, tau_k> = (G l)_k - L p_k`, (..., K)."""
        return self.grams @ multipliers - multipliers.sum() * self.products

    def total(self) -> "Moments":
        """The sum over the first axis."""
        return Moments(self.grams.sum(0), self.products.sum(0), self.squares.sum(0))

    def grouped(self, positions: np.ndarray, n_groups: int) -> "Moments":
        """Sums over tensors with the same position, (n_groups, ...)."""

        def add(values: np.ndarray) -> np.ndarray:
            sums = np.zeros((n_groups, *values.shape[1:]))
            np.add.at(sums, positions, values)
            return sums

        return Moments(add(self.grams), add(self.products), add(self.squares))


@dataclass(frozen=True)
class Disentangled:
    """One redundant vector delta = sum_k c_k tau_k for each group.

    Attributes:
        settings: What was asked for.
        groups: The groups that were solved.
        span_coefficients: c, (groups, K) float64.
        losses: L before every step and after the last, averaged over groups, (steps + 1,); until
            convergence, the lowest so far, up to the step at which the last group was done.
        alpha: Norm constraint of every group in the paper's units, (groups,).
        lr: Step size of every group in the paper's units, (groups,).
        by_tensor: Moments of every tensor of the study, (tensors, ...).
        outcome: How it ended, in a sentence or a few.
        steps: Steps that every group took, (groups,).
    """

    settings: Settings
    groups: Groups
    span_coefficients: np.ndarray
    losses: np.ndarray
    alpha: np.ndarray
    lr: np.ndarray
    by_tensor: Moments
    outcome: str
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def n_experts(self) -> int:
        """K."""
        return self.span_coefficients.shape[1]

    @cached_property
    def model(self) -> Moments:
        """Moments of the whole model."""
        return self.by_tensor.total()

    @property
    def cosine_before(self) -> np.ndarray:
        """`cos(tau_i, tau_j)` over the whole model, (K, K)."""
        return cosines(self.model.grams)

    @property
    def cosine_after(self) -> np.ndarray:
        """`cos(v_i, v_j)` over the whole model, (K, K); NaN where a vector is zero."""
        return cosines(left_of_experts(self.model.grams, self.model.disentangled))

    @property
    def mean_absolute_cosine(self) -> tuple[float, float]:
        """Mean |cos| over pairs, whole model, before and after."""
        before = self.model.grams
        after = left_of_experts(before, self.model.disentangled)
        return float(mean_absolute_cosine(before)), float(mean_absolute_cosine(after))

    @property
    def objective(self) -> tuple[float, float]:
        """L_O averaged over groups, before and after: what the descent made small."""
        grams = self.groups.grams
        before = mean_absolute_cosine(grams)
        disentangled = disentangled_grams(grams, self.span_coefficients)
        after = mean_absolute_cosine(left_of_experts(grams, disentangled))
        kept = ~np.isnan(before)
        if not kept.any():
            return 0.0, 0.0
        return float(before[kept].mean()), float(np.nan_to_num(after[kept]).mean())

    @property
    def redundant_norm(self) -> float:
        """`||delta||` over the whole model, in units of the weights."""
        return float(np.sqrt(max(0.0, self.model.squares)))

    @property
    def relative_redundant_norm(self) -> float:
        """`||delta|| / mean_k ||tau_k||` over the whole model."""
        scale = np.sqrt(np.diag(self.model.grams)).mean()
        return self.redundant_norm / scale if scale else 0.0

    @property
    def critical_alpha(self) -> np.ndarray:
        """alpha_crit of every group, (groups,): at or above it delta stays 0 (penalty l2)."""
        return self.groups.critical_alpha

    @property
    def alpha_relative(self) -> np.ndarray:
        """alpha as a fraction of alpha_crit, (groups,); NaN where alpha_crit is 0."""
        critical = self._critical_in_units_of_alpha()
        return self.alpha / np.where(critical > 0, critical, np.nan)

    def _critical_in_units_of_alpha(self) -> np.ndarray:
        return critical_in_units_of_alpha(self.groups, self.settings)

    @property
    def lr_relative(self) -> np.ndarray:
        """Step size in units of s^2, s = mean ||tau_k||, (groups,); NaN where all vectors are 0."""
        scale = self.groups.scale
        return self.lr / np.where(scale > 0, scale, np.nan) ** 2

    @cached_property
    def redundant_norms(self) -> np.ndarray:
        """`||delta||` of every group, (groups,)."""
        c = self.span_coefficients
        products = np.einsum("gij,gj->gi", self.groups.grams, c)
        return np.sqrt(np.maximum(0.0, np.einsum("gi,gi->g", products, c)))

    def weights(self, coefficients: np.ndarray) -> np.ndarray:
        """`w_k = lambda_k - (sum_i lambda_i) c_k`: AWD + TA as a weighted TA, (groups, K)."""
        return coefficients - coefficients.sum() * self.span_coefficients

    @property
    def weight_shares(self) -> np.ndarray:
        """`w_k / lambda = 1 - K c_k` at equal lambda, (groups, K): what AWD does to each expert."""
        return 1.0 - self.n_experts * self.span_coefficients

    @property
    def retained_norm(self) -> float:
        """`||sum_k v_k|| / ||sum_k tau_k||` over the whole model; NaN where the sum of tau is 0."""
        ones = np.ones(self.n_experts)
        before = self.model.grams.sum()
        return float(np.sqrt(self.model.merged_square(ones) / (before if before > 0 else np.nan)))

    def coefficients_of(self, position: int) -> np.ndarray:
        """c for one tensor of the study: (1, K), or (rows, K) where it has many."""
        return self.span_coefficients[self.groups.of_tensor[position]]


def critical_in_units_of_alpha(groups: Groups, settings: Settings) -> np.ndarray:
    """alpha_crit in the units that alpha has, (groups,).

    With penalty `l2_squared` alpha is 1 / length^2 and the length is s = mean ||tau_k||.
    """
    if settings.penalty != "l2_squared":
        return groups.critical_alpha
    return groups.critical_alpha / np.where(groups.scale > 0, groups.scale, 1.0)


def match_norm(disentangled: Disentangled, coefficients: np.ndarray | float) -> np.ndarray | float:
    """The lambda at which AWD + TA has the merged norm of TA: lambda ||sum l tau|| / ||sum l v||.

    Without it a comparison of the two compares their lengths, not their directions.

    Args:
        disentangled: The AWD solution.
        coefficients: lambda of TA, one for all or one for each expert.

    Returns:
        lambda for AWD + TA in the form it was given; NaN where AWD leaves nothing to merge.
    """
    each = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), disentangled.n_experts)
    total = disentangled.model
    plain = np.einsum("ij,i,j->", total.grams, each, each)
    left = total.merged_square(each)
    factor = float(np.sqrt(max(0.0, plain) / left)) if left > 0 else np.nan
    return coefficients * factor


def moments(groups: Groups, coefficients: np.ndarray, tensor_grams: np.ndarray) -> Moments:
    """Moments of every tensor for given coefficients.

    Args:
        groups: The groups.
        coefficients: c, (groups, K).
        tensor_grams: Grams of the tensors, (tensors, K, K).
    """
    if not groups.by_row:
        of_tensor = np.array([entry.start for entry in groups.of_tensor], dtype=np.int64)
        c = coefficients[of_tensor]
        products = np.einsum("tij,tj->ti", tensor_grams, c)
        return Moments(tensor_grams, products, np.einsum("ti,ti->t", products, c))
    row_products = np.einsum("rij,rj->ri", groups.grams, coefficients)
    row_squares = np.einsum("ri,ri->r", row_products, coefficients)
    starts = np.array([entry.start for entry in groups.of_tensor], dtype=np.int64)
    return Moments(
        tensor_grams, np.add.reduceat(row_products, starts), np.add.reduceat(row_squares, starts)
    )
