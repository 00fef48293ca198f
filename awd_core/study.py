"""The study: what one pass over the weights (`awd_core.collect`) leaves on disk.

From a study every cosine, norm, AWD solution and measure of a linear merge is exact, and the
weights need not be there any more.
"""

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from awd_core.elements import ElementCounts
from awd_core.errors import StudyError
from awd_core.gram import unpack
from awd_core.spectra import Spectra

SCHEMA = 2
STUDY, GRAM, ROW_GRAM, MARKER = "study.json", "gram.safetensors", "row_gram.safetensors", "complete"
SPECTRAL_GRAM, SPECTRA = "spectral_gram.safetensors", "spectra.safetensors"
EQUALISED = ":equalised"


@dataclass(frozen=True)
class SourceInfo:
    """A base or expert as the study remembers it."""

    label: str
    source: str
    path: str
    kind: str
    fingerprint: str


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the study.

    Attributes:
        name: Name in the state dict.
        shape: Its shape.
        dtype: Type as stored in the base, for instance `float32`.
        block: `block 3`, `embedding`, `head` or `other`.
        kind: `attention.q`, `mlp.up`, `norm`, ...
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    block: str
    kind: str

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it has output rows of its own; a vector or a scalar is one row."""
        return len(self.shape) >= 2


@dataclass(frozen=True)
class Study:
    """Statistics of base and experts.

    Attributes:
        path: The folder; None for a study that was not written.
        base: Where the base was.
        sources: Where the experts were, in order.
        tensors: Every merged tensor, in file order.
        exclude: Patterns of tensors that were left out.
        grams: `G_l[i, j] = <tau_i, tau_j>`, (tensors, K, K) float64.
        base_squared_norms: `||theta_0||^2`, (tensors,) float64.
        elements: What was counted element by element, each array with a leading axis of tensors.
        digest: SHA-256 of everything that decides the numbers.
        scales: What every task vector was multiplied with before anything else, (K,); None for the
            task vectors as they are. See `equalise_norms`.
        vocabulary: `same`, or `common_rows`, as in the recipe that it is for.
    """

    path: Path | None
    base: SourceInfo
    sources: tuple[SourceInfo, ...]
    tensors: tuple[TensorInfo, ...]
    exclude: tuple[str, ...]
    grams: np.ndarray
    base_squared_norms: np.ndarray
    elements: ElementCounts
    digest: str
    scales: np.ndarray | None = None
    vocabulary: str = "same"

    @property
    def experts(self) -> tuple[str, ...]:
        """Labels of the experts, in order."""
        return tuple(source.label for source in self.sources)

    @property
    def n_experts(self) -> int:
        """K."""
        return len(self.sources)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of every tensor."""
        return {tensor.name: position for position, tensor in enumerate(self.tensors)}

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Every block once, in file order."""
        return tuple(dict.fromkeys(tensor.block for tensor in self.tensors))

    def gram(self, name: str) -> np.ndarray:
        """`G[i, j] = <tau_i, tau_j>` of one tensor, (K, K) float64.

        Raises:
            StudyError: No tensor of this name.
        """
        return self.grams[self._position(name)]

    def row_gram(self, name: str) -> np.ndarray:
        """The Gram of every output row of one tensor, (rows, K, K) float64; a vector is one row.

        Raises:
            StudyError: No tensor of this name, or a study without rows.
        """
        position = self._position(name)
        if not self.tensors[position].is_matrix:
            return self.grams[position][None]
        if name not in self._rows:
            if not self.grams[position].any():
                return np.zeros((self.tensors[position].shape[0], self.n_experts, self.n_experts))
            raise StudyError(
                "This study holds no row Grams",
                where=self.path,
                remedy="Collect it again with rows, or use granularity model, block or tensor.",
            )
        return self._scaled(unpack(self._rows[name]))

    def spectral_gram(self, name: str) -> np.ndarray:
        """The Gram of every rotated row of one tensor, (r, K, K) float64; a vector is one row.

        Raises:
            StudyError: No tensor of this name, or a study without the spectral level.
        """
        position = self._position(name)
        if not self.tensors[position].is_matrix or not self.grams[position].any():
            return self.grams[position][None]
        if self.scales is not None:
            raise StudyError(
                "Granularity spectral is not there for equalised norms",
                where=self.path,
                remedy="Its bases are those of the task vectors as they are; use another one.",
            )
        if name not in self._spectral:
            raise StudyError(
                "This study holds no spectral Grams",
                where=self.path,
                remedy="Run `awd spectra` on it, collect it into another folder with `--spectral`"
                " (Python: spectral=True), or use another granularity.",
            )
        return unpack(self._spectral[name])

    @cached_property
    def spectra(self) -> tuple[np.ndarray, Spectra]:
        """Positions of the matrices that were decomposed, and their spectra, stacked in front.

        Raises:
            StudyError: A study without spectra, or of equalised norms.
        """
        if not self.has_spectra:
            raise StudyError(
                "This study holds no spectra",
                where=self.path,
                received="equalised norms" if self.scales is not None else None,
                remedy="Collect them: `awd collect BASE EXPERT... -o STUDY --spectra`; they are"
                " those of the task vectors as they are.",
            )
        arrays = dict(self._level(SPECTRA))
        return arrays.pop("positions"), Spectra(**arrays)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        return self._level(ROW_GRAM)

    @cached_property
    def _spectral(self) -> dict[str, np.ndarray]:
        return self._level(SPECTRAL_GRAM)

    def _level(self, name: str) -> dict[str, np.ndarray]:
        file = self.path / name if self.path else None
        if not file or not file.exists():
            return {}
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise _damaged(file, error) from error

    @property
    def has_rows(self) -> bool:
        """Whether granularity `row` can be solved from this study."""
        return self.path is not None and (self.path / ROW_GRAM).exists()

    @property
    def has_spectral(self) -> bool:
        """Whether granularity `spectral` can be solved from this study."""
        there = self.path is not None and (self.path / SPECTRAL_GRAM).exists()
        return there and self.scales is None

    @property
    def has_spectra(self) -> bool:
        """Whether the spectral measures are there."""
        return self.has_spectral and self.path is not None and (self.path / SPECTRA).exists()

    @property
    def collected_digest(self) -> str:
        """The digest of what was collected, whatever was done to the lengths afterwards."""
        return self.digest.removesuffix(EQUALISED)

    def _scaled(self, grams: np.ndarray) -> np.ndarray:
        return grams if self.scales is None else grams * np.outer(self.scales, self.scales)

    def _position(self, name: str) -> int:
        from awd_core.errors import nearest

        if name not in self.index:
            known = tuple(self.index)
            raise StudyError(
                "No tensor of this name in the study",
                where=self.path,
                received=name,
                remedy=nearest(name, known[:400]),
            )
        return self.index[name]


def equalise_norms(study: Study) -> Study:
    """The study of `d_k tau_k` with `d_k = mean_j ||tau_j|| / ||tau_k||`: all of one length.

    AWD reacts to lengths as well as to directions: the shortest task vector is amplified. With
    equal lengths only directions are left. A zero task vector stays zero. Signs stay as they are.
    """
    if study.scales is not None:
        return study
    norms = np.sqrt(np.diag(study.grams.sum(0)))
    scales = np.divide(norms.mean(), norms, out=np.zeros_like(norms), where=norms > 0)
    return replace(
        study,
        grams=study.grams * np.outer(scales, scales),
        digest=study.digest + EQUALISED,
        scales=scales,
    )


def open_study(path: str | Path) -> Study:
    """Open a study folder; the weights need not exist.

    Raises:
        StudyError: Not a study, an unfinished one, or one of a newer version.
    """
    folder = Path(path).expanduser()
    if not (folder / MARKER).exists():
        raise StudyError(
            "This is not a complete study",
            where=folder,
            received="no such folder" if not folder.exists() else f"no file named {MARKER!r}",
            expected="a folder that `awd collect` wrote",
            remedy="Run `awd collect BASE EXPERT... -o STUDY`.",
        )
    try:
        description = json.loads((folder / STUDY).read_text(encoding="utf-8"))
        if description["schema"] != SCHEMA:
            raise StudyError(
                "This study was written by another version",
                where=folder,
                received=f"schema {description['schema']}",
                expected=f"schema {SCHEMA}",
                remedy="Collect it again.",
            )
        arrays = load_file(folder / GRAM)
        return Study(
            path=folder,
            base=SourceInfo(**description["base"]),
            sources=tuple(SourceInfo(**source) for source in description["experts"]),
            tensors=tuple(_tensor_info(entry) for entry in description["tensors"]),
            exclude=tuple(description["exclude"]),
            vocabulary=description.get("vocabulary", "same"),
            grams=arrays["gram"],
            base_squared_norms=arrays["base_squared_norm"],
            elements=ElementCounts(**{name: arrays[name] for name in ElementCounts.shapes(1)}),
            digest=description["digest"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> StudyError:
    return StudyError(
        "This study is damaged",
        where=folder,
        received=f"{type(error).__name__}: {error}",
        remedy="Collect it again.",
    )


def _tensor_info(entry: dict[str, Any]) -> TensorInfo:
    return TensorInfo(**{**entry, "shape": tuple(entry["shape"])})
