"""LiNeS: what is merged grows with depth. Goes behind any method; a field of the recipe.

    s_l = a + b l / (L - 1)    for block l = 0 .. L - 1 of its stack

multiplies the merged task vector of block l; what belongs to no block takes a. By default
a = ||sum_k tau_k||_1 / (K ||tau_MTL||_1) with tau_MTL what the method merges at lambda = 1;
for task arithmetic that is 1/K. Early blocks, whose features are general, stay near the average.

Source: Wang et al., LiNeS, arXiv 2410.17146.
"""

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from awd_core.layout import blocks


class Lines(BaseModel):
    """The two numbers of the line.

    Attributes:
        first: a, the scale of the first block; from the L1 norms when left out.
        slope: b, how much the last block has more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    slope: float = Field(default=0.5, ge=-10, le=10, allow_inf_nan=False)


def block_scales(names: Sequence[str], first: float, slope: float) -> dict[str, float]:
    """s_l of every tensor, by its name."""
    places = [re.fullmatch(r"(.*?)\s*block (\d+)", block) for block in blocks(list(names))]
    last: dict[str, int] = {}
    for place in places:
        if place:
            last[place[1]] = max(last.get(place[1], 0), int(place[2]))
    return {
        name: first + slope * int(place[2]) / max(1, last[place[1]]) if place else first
        for name, place in zip(names, places, strict=True)
    }
