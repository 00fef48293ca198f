r"""The one protocol of merge methods. A new method is one file in `awd_core/methods/` and one row.

A method is a frozen dataclass. Its class variables say what it is; its fields, made by `knob`, are
its settings. Forms, command line, docs/methods.md and the property tests follow from them. Three
functions do the work, and only the last is needed:

    survey(model)                          what must be known of the whole model, or nothing
    prepare(survey, tensor)                what must be known of one tensor, or nothing
    combine(prepared, piece, coefficients) the merged task vector of some rows

What costs time depends on the task vectors and belongs to the first two. The coefficients enter
only in `combine`, so that moving them never prepares anything anew. A whole method:

    @dataclass(frozen=True)
    class Clipped(MergeMethod):
        '''Task arithmetic with every entry clipped at a multiple of the tensor's mean |tau|.'''

        key: ClassVar[str] = "clipped"
        title: ClassVar[str] = "Clipped task arithmetic"
        source: ClassVar[str] = "An example"
        year: ClassVar[int] = 2025
        formula: ClassVar[str] = r"\theta_0 + \sum_k \lambda_k \mathrm{clip}(\tau_k)"
        executor: ClassVar[Executor] = "tensor"
        passes: ClassVar[int] = 2

        limit: float = knob(3.0, low=0.0, high=10.0, help="Largest |tau| kept, in means.")

        def prepare(self, survey, tensor):
            total = sum(float(piece.abs().sum()) for piece in tensor.task_vectors())
            return self.limit * total / (tensor.n_experts * tensor.n_elements)

        def combine(self, prepared, piece, coefficients):
            return weighted_sum(coefficients, piece.task_vectors.clamp(-prepared, prepared))

Where the coefficients of a linear combination follow from inner products, derive from `GramMethod`;
where a matrix has to be seen whole (singular vectors, a descent), from `MatrixMethod`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

from awd_core import merge_kernels
from awd_core.errors import RecipeError, nearest
from awd_core.knobs import Preset, Value, checked, knob
from awd_core.lazy import torch
from awd_core.parallel import WORKERS
from awd_core.stream import CHUNK_ELEMENTS, KEPT_BYTES
from awd_core.vectors import Piece, TensorVectors, Update, Vectors

# How a method comes by its result.
# gram: multipliers from inner products, then a weighted sum of pieces.
# stream: statistics of the whole model, if any, then piece by piece.
# tensor: statistics of one tensor, then piece by piece.
# matrix: one whole matrix at a time; what is no matrix goes by the method's policy.
Executor = Literal["gram", "stream", "tensor", "matrix"]

# Python, torch and numba, before a weight is read.
PROCESS_BYTES = 400 << 20


@dataclass(frozen=True)
class Memory:
    """Peak memory of a merge, for K experts and a largest tensor of m rows and n columns.

    Attributes:
        formula: For people, in bytes; c is the number of elements of a piece, t of threads.
        above_process: The same for (K, m, n), without what the process takes by itself.
    """

    formula: str
    above_process: Callable[[int, int, int], int]

    def n_bytes(self, n_experts: int, rows: int, columns: int) -> int:
        """Peak resident memory."""
        return PROCESS_BYTES + self.above_process(n_experts, rows, columns)


def piecewise(copies: int) -> Memory:
    """Memory of `copies` float64 pieces of every expert and of the base, in every thread.

    Besides, a thread keeps the bytes of the tensor that it is making, where they are few enough.
    """

    def above_process(n_experts: int, rows: int, columns: int) -> int:
        kept = min(KEPT_BYTES, 8 * (n_experts + 1) * rows * columns)
        return _in_pieces(copies, n_experts, columns) + kept * WORKERS

    formula = f"process + ({8 * copies} (K + 1) c + {KEPT_BYTES >> 20} MiB) t"
    return Memory(formula, above_process)


def _in_pieces(copies: int, n_experts: int, columns: int) -> int:
    return 8 * copies * (n_experts + 1) * max(CHUNK_ELEMENTS, columns) * WORKERS


def matrixwise(formula: str, n_numbers: Callable[[int, int, int], int]) -> Memory:
    """Memory of a method that holds `n_numbers(K, m, n)` float64 numbers, and pieces."""

    def above_process(n_experts: int, rows: int, columns: int) -> int:
        return 8 * n_numbers(n_experts, rows, columns) + _in_pieces(4, n_experts, columns)

    return Memory(f"process + 32 (K + 1) c t + 8 ({formula})", above_process)


@dataclass(frozen=True)
class MergeMethod(abc.ABC):
    """A way to turn task vectors into one merged task vector.

    Subclasses are final; their fields are their knobs, made by `knob`.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    year: ClassVar[int]
    formula: ClassVar[str]
    executor: ClassVar[Executor] = "stream"
    # Readings of the weights from the first to the last, the one that writes included.
    passes: ClassVar[int] = 1
    memory: ClassVar[Memory] = piecewise(4)
    # What happens to vectors, scalars, embeddings and other tensors that are no plain matrices.
    policy: ClassVar[str] = "merged like every other tensor"
    presets: ClassVar[Mapping[str, Preset]] = {}
    # Whether the method reads coefficients at all, what they are, and where a user starts. Scales:
    # lambda = 0 gives the base, one factor on all only scales. Weights: only their ratios count.
    takes_coefficients: ClassVar[bool] = True
    coefficients_are: ClassVar[Literal["scales", "weights"]] = "scales"
    default_coefficient: ClassVar[float] = 0.3
    # Whether it has one lambda for all experts, and none for each. Given different ones all the
    # same, it takes their mean.
    one_coefficient: ClassVar[bool] = False
    # How many experts it can merge; None for no limit.
    least_experts: ClassVar[int] = 1
    most_experts: ClassVar[int | None] = None
    # Whether experts in another order give the same merge, and s tau gives s times the merge.
    permutation_equivariant: ClassVar[bool] = True
    scale_equivariant: ClassVar[bool] = True
    # Whether it works on task vectors, so that AWD can stand in front.
    takes_task_vectors: ClassVar[bool] = True
    # Whether it makes a model for each task, chosen when the task is known, and not one for all.
    needs_task: ClassVar[bool] = False

    def survey(self, model: Vectors) -> Any:
        """What `prepare` or `combine` needs to know of the whole model; None for most."""
        return None

    def prepare(self, survey: Any, tensor: TensorVectors) -> Any:
        """What `combine` needs to know of one tensor; the survey for most."""
        return survey

    @abc.abstractmethod
    def combine(self, prepared: Any, piece: Piece, coefficients: np.ndarray) -> Update:
        """The merged task vector of one piece.

        Args:
            prepared: What `prepare` returned.
            piece: Whole rows of one tensor.
            coefficients: lambda_k, (K,) float64.

        Returns:
            (rows, columns) float64, to be added to theta_0.
        """

    def reads_pieces(self, tensor: TensorVectors) -> bool:
        """Whether `combine` looks at the task vectors of the pieces of this tensor."""
        return True

    @classmethod
    def knobs(cls) -> tuple[Field[Any], ...]:
        """The fields, each with `low` and `high` or `choices`, and `help`, in its metadata."""
        return fields(cls)


@dataclass(frozen=True)
class LinearMethod(MergeMethod):
    """A method whose result is `sum_k l_k tau_k`, the same l_k in every tensor."""

    executor: ClassVar[Executor] = "gram"

    @abc.abstractmethod
    def multipliers(self, coefficients: np.ndarray) -> np.ndarray:
        """l_k for given lambda_k, (K,)."""

    def combine(self, prepared: Any, piece: Piece, coefficients: np.ndarray) -> Update:
        """`sum_k l_k tau_k`, summed in expert order."""
        return linear_sum(piece, np.concatenate([[0.0], self.multipliers(coefficients)]))


@dataclass(frozen=True)
class GramMethod(MergeMethod):
    """A method whose result is linear in every tensor, with multipliers from its inner products."""

    executor: ClassVar[Executor] = "gram"
    passes: ClassVar[int] = 2

    @abc.abstractmethod
    def multipliers(self, gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """What the base and every task vector are multiplied with, to be added to theta_0.

        Args:
            gram: Inner products of theta_0 (index 0) and the task vectors, (K + 1, K + 1).
            coefficients: lambda_k, (K,).

        Returns:
            (K + 1,); index 0 is the base's, and 0 for a method on task vectors.
        """

    def prepare(self, survey: Any, tensor: TensorVectors) -> np.ndarray:
        """The inner products."""
        return tensor.gram

    def combine(self, prepared: np.ndarray, piece: Piece, coefficients: np.ndarray) -> Update:
        """`l_0 theta_0 + sum_k l_k tau_k`."""
        return linear_sum(piece, self.multipliers(prepared, coefficients))


@dataclass(frozen=True)
class MatrixMethod(MergeMethod):
    """A method that has to see a whole matrix of every expert, such as its singular vectors.

    Tensors that are no matrices go by the knob `others`, embeddings by the knob `embeddings`.
    """

    executor: ClassVar[Executor] = "matrix"
    passes: ClassVar[int] = 1
    policy: ClassVar[str] = (
        "matrices are solved; everything else goes by the knobs `others` and `embeddings`"
    )

    others: str = knob(
        "average",
        choices=("average", "sum", "keep-base"),
        help="What is added where a tensor is no matrix: lambda times the mean of the task vectors,"
        " times their sum, or nothing.",
    )
    embeddings: str = knob(
        "solve",
        choices=("solve", "average", "sum", "keep-base"),
        help="Whether embeddings and output heads are solved as matrices are, or what instead.",
    )

    @abc.abstractmethod
    def solve(self, survey: Any, matrix: TensorVectors) -> Any:
        """Everything that depends on the vectors of one matrix."""

    @abc.abstractmethod
    def rows(self, solved: Any, start: int, stop: int, coefficients: np.ndarray) -> torch.Tensor:
        """Rows `start` to `stop` of the merged task vector, (stop - start, columns) float64."""

    def treatment(self, tensor: TensorVectors) -> str:
        """`solve`, `average`, `sum` or `keep-base`."""
        if not tensor.is_matrix:
            return self.others
        return self.embeddings if tensor.kind in ("embedding", "head") else "solve"

    def reads_pieces(self, tensor: TensorVectors) -> bool:
        """Only what is not solved is combined from pieces."""
        return self.treatment(tensor) in ("average", "sum")

    def prepare(self, survey: Any, tensor: TensorVectors) -> tuple[str, Any]:
        """The treatment, and the solution where there is one."""
        treatment = self.treatment(tensor)
        return treatment, self.solve(survey, tensor) if treatment == "solve" else None

    def combine(
        self, prepared: tuple[str, Any], piece: Piece, coefficients: np.ndarray
    ) -> torch.Tensor:
        """Rows of the solution, or what the policy says."""
        treatment, solved = prepared
        if treatment == "solve":
            return self.rows(solved, piece.start, piece.stop, coefficients)
        if treatment == "keep-base":
            return torch.zeros_like(piece.base)
        share = 1 / len(coefficients) if treatment == "average" else 1.0
        return weighted_sum(coefficients * share, piece.task_vectors)


def shares(weights: np.ndarray) -> np.ndarray:
    """`w_k / sum_j w_j`, (K,).

    Raises:
        RecipeError: The weights cancel.
    """
    total = weights.sum()
    if abs(total) <= 1e-12 * np.abs(weights).sum():
        raise RecipeError(
            "The weights of the experts sum to 0",
            where="coefficients",
            received=weights.tolist(),
            expected="weights with a sum to divide by",
        )
    return weights / total


def whole_weights(gram: np.ndarray) -> np.ndarray:
    """Inner products of the experts' whole weights, (K, K), from a Gram with theta_0 at index 0."""
    with_base = gram[0, 1:]
    return gram[0, 0] + with_base[:, None] + with_base[None, :] + gram[1:, 1:]


def linear_sum(piece: Piece, multipliers: np.ndarray) -> Update:
    """`sum_k l_k v_k + l_0 theta_0` in expert order; l_0 first, (K + 1,).

    Raises:
        AwdError: A weight is not finite.
    """
    stored = piece.stored
    if stored is None:
        merged = weighted_sum(multipliers[1:], piece.task_vectors)
        of_base = float(multipliers[0])
        return merged.add_(piece.base, alpha=of_base) if of_base else merged
    exact = np.ascontiguousarray(multipliers, np.float64)
    return stored.filled(merge_kernels.linear_sum, exact)


def weighted_sum(
    multipliers: Sequence[float] | np.ndarray, task_vectors: torch.Tensor
) -> torch.Tensor:
    """`sum_k l_k tau_k`, in expert order."""
    merged = torch.zeros_like(task_vectors[0])
    for multiplier, vector in zip(multipliers, task_vectors, strict=True):
        merged.add_(vector, alpha=float(multiplier))
    return merged


def sum_over_experts(vectors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum over the first axis in expert order, whatever the shape of a piece.

    `vectors.sum(0)` chooses its order by shape, so its last bit depends on the chunk size. Give
    products as a generator: they are then never all in memory.
    """
    remaining = iter(vectors)
    total = next(remaining).clone()
    for vector in remaining:
        total += vector
    return total


def build(
    method: type[MergeMethod], values: Mapping[str, Value], preset: str | None = None
) -> MergeMethod:
    """The method with these knobs, on top of those of a preset.

    Raises:
        RecipeError: A knob or preset is unknown, or a knob is out of its range.
    """
    knobs = {knob.name: knob for knob in method.knobs()}
    values = dict(find_preset(method, preset).knobs) | dict(values)
    for name in values:
        if name not in knobs:
            known = tuple(knobs)
            raise RecipeError(
                f"Method {method.key!r} has no knob {name!r}",
                where="knobs",
                remedy=nearest(name, known) if known else "It has no knobs at all.",
            )
    return method(
        **{name: checked(method.key, knobs[name], value) for name, value in values.items()}
    )


def find_preset(method: type[MergeMethod], key: str | None) -> Preset:
    """The preset of this name; one that changes nothing for None.

    Raises:
        RecipeError: There is none.
    """
    if key is None:
        return Preset()
    if key not in method.presets:
        known = tuple(method.presets)
        raise RecipeError(
            f"Method {method.key!r} has no preset {key!r}",
            where="preset",
            remedy=nearest(key, known) if known else "It has no presets at all.",
        )
    return method.presets[key]
