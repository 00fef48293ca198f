"""Every measure, one file each or for a family. Tables, docs and tests follow from MEASURES."""

from analysis.measure import Measure
from analysis.measures import (
    cosine,
    effective_rank,
    element_agreement,
    energy_share,
    mean_absolute_cosine,
    merged_norm,
    moved_elements,
    multiplier_share,
    redundant_norm,
    retained_signal,
    sign_conflict,
    singular_task_interference,
    spectral_overcounting,
    subspace_alignment,
    tall_masks,
    task_vector_norm,
)

MEASURES: tuple[Measure, ...] = (
    *cosine.MEASURES,
    *mean_absolute_cosine.MEASURES,
    *sign_conflict.MEASURES,
    *element_agreement.MEASURES,
    *tall_masks.MEASURES,
    *moved_elements.MEASURES,
    *task_vector_norm.MEASURES,
    *redundant_norm.MEASURES,
    *multiplier_share.MEASURES,
    *retained_signal.MEASURES,
    *merged_norm.MEASURES,
    *energy_share.MEASURES,
    *effective_rank.MEASURES,
    *singular_task_interference.MEASURES,
    *subspace_alignment.MEASURES,
    *spectral_overcounting.MEASURES,
)

BY_KEY: dict[str, Measure] = {measure.key: measure for measure in MEASURES}


def measure(key: str) -> Measure:
    """The measure of this name.

    Raises:
        KeyError: There is none.
    """
    return BY_KEY[key]
