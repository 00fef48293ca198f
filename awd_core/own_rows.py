"""Regression of a merged matrix on the task vectors' own rows, which stand for the data.

The rows of a linear layer's task vector lie near the span of the inputs that it was trained on. So

    L(m) = sum_k ||(m - t_k) p_k^T||_F^2 / ||tau_k||_F^2

says how much m differs from the target t_k on what task k has seen, with proxy p_k; in WUDI both
are tau_k. Its gradient is 2 (m C - D), with C = sum_k p_k^T p_k / ||tau_k||^2 (columns, columns)
and D = sum_k t_k p_k^T p_k / ||tau_k||^2 (rows, columns): the experts are read one after the other
and never again. Descent from m_0 has a closed form in the eigenvectors of C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from awd_core.lazy import torch
from awd_core.linear_algebra import NEGLIGIBLE, one_thread


@dataclass(frozen=True)
class OwnRows:
    """The regression of one matrix.

    Attributes:
        c: C, (columns, columns).
        d: D, (rows, columns).
    """

    c: torch.Tensor
    d: torch.Tensor

    def gradient(self, m: torch.Tensor) -> torch.Tensor:
        """`2 (m C - D)`."""
        return (m @ self.c).sub_(self.d).mul_(2)

    def filtered(
        self, m: torch.Tensor, share: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """`m - m V diag(f) V^T + D V diag(f / e) V^T` for C = V diag(e) V^T.

        f says how far each eigendirection has gone from m (0) to the minimum of L (1).

        Args:
            m: m_0.
            share: f of the eigenvalues, which fall; it never acts on negligible ones, where m_0
                and D are both 0.
        """
        with one_thread():
            values, vectors = torch.linalg.eigh(self.c)
        values, vectors = values.flip(0), vectors.flip(1)
        kept = int((values > NEGLIGIBLE**2 * values[0]).sum())
        values, vectors = values[:kept], vectors[:, :kept]
        f = share(values)
        change = (self.d @ vectors) * (f / values) - (m @ vectors) * f
        return m + change @ vectors.mT


@dataclass(frozen=True)
class Task:
    """What one task asks of the merged matrix.

    Attributes:
        target: t_k, (rows, columns).
        proxy: p_k, (r, columns).
        square: ||tau_k||_F^2.
    """

    target: torch.Tensor
    proxy: torch.Tensor
    square: float


def regression(tasks: Iterable[Task]) -> OwnRows | None:
    """C and D; tasks of norm zero ask for nothing. None when all do."""
    c = d = None
    for task in tasks:
        if not task.square:
            continue
        own = task.proxy.mT @ task.proxy / task.square
        wanted = task.target @ own
        c = own if c is None else c.add_(own)
        d = wanted if d is None else d.add_(wanted)
    return None if c is None or d is None else OwnRows(c, d)


def of_task_vectors(task_vectors: Iterable[torch.Tensor]) -> OwnRows | None:
    """The regression of WUDI: target and proxy are tau_k."""
    return regression(Task(tau, tau, float(tau.square().sum())) for tau in task_vectors)


def adam(
    problem: OwnRows, start: torch.Tensor, *, lr: float, steps: int, unit: float = 1.0
) -> torch.Tensor:
    """Adam on L with its usual settings, on numbers in multiples of `unit`."""
    m = torch.nn.Parameter(start / unit)
    scaled = OwnRows(problem.c, problem.d / unit)
    optimiser = torch.optim.Adam([m], lr=lr)
    for _ in range(steps):
        m.grad = scaled.gradient(m.detach())
        optimiser.step()
    return m.detach() * unit


def momentum_share(values: torch.Tensor, *, lr: float, momentum: float, steps: int) -> torch.Tensor:
    """How far gradient descent with momentum has gone in each eigendirection, (r,).

    The distance a to the minimum follows b <- momentum b + 2 e a, a <- a - lr b from a = 1.
    """
    left, velocity = torch.ones_like(values), torch.zeros_like(values)
    for _ in range(steps):
        velocity = momentum * velocity + 2 * values * left
        left = left - lr * velocity
    return 1 - left
