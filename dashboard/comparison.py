"""Settings beside one another: their views, their numbers, and what differs between two."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

import awd_core as awd
from analysis import tables
from analysis.view import View
from awd_core import Study
from awd_core.method import MergeMethod
from dashboard import state
from dashboard.state import Setting

NOW = "now"


def settings(study: Study, now: Setting, pins: Mapping[str, Setting]) -> dict[str, Setting]:
    """The pinned settings and the present one, unless it is pinned itself."""
    found = dict(pins)
    if now not in found.values():
        found[NOW] = now
    return found


def views(study: Study, chosen: Mapping[str, Setting]) -> dict[str, View]:
    """What the measures look at, for every setting of the study as collected."""
    return {
        name: state.view(
            state.equalised(study) if setting.equalise_norms else study,
            setting,
        )
        for name, setting in chosen.items()
    }


def numbers(chosen: Mapping[str, View], settings: Mapping[str, Setting]) -> pd.DataFrame:
    """Headline measures (rows) of every setting (columns); NaN where a method is not linear.

    The merge of a method that is not linear is not in the study: only its task vectors are.
    """
    columns = {}
    for name, view in chosen.items():
        column = tables.summary(view).set_index("title")["after"].rename_axis("measure")
        if settings[name].multipliers(view.study) is None:
            of_merge = ("Retained signal", "Alignment", "Merged norm")
            column = column.where(~column.index.str.startswith(of_merge), np.nan)
        columns[name] = column
    return pd.DataFrame(columns)


def costs(chosen: Mapping[str, Setting], study: Study) -> pd.DataFrame:
    """What writing each merge takes: [setting, method, passes, GB read, peak GB]."""
    sizes = [tensor.n_elements for tensor in study.tensors]
    n_bytes = sum(
        tensor.n_elements * _width(tensor.dtype) * (study.n_experts + 1) for tensor in study.tensors
    )
    found = []
    for name, setting in chosen.items():
        method = awd.find_method(setting.method)
        found.append(
            (
                name,
                method.title,
                method.passes,
                n_bytes * method.passes / 1e9,
                peak_bytes(method, study) / 1e9,
                sum(sizes),
            )
        )
    names = ["setting", "method", "passes", "GB read at most", "peak GB at most", "parameters"]
    return pd.DataFrame(found, columns=names)


def peak_bytes(method: type[MergeMethod], study: Study) -> int:
    """Bytes of memory that writing a merge takes at most."""
    widest = max(study.tensors, key=lambda tensor: tensor.n_elements)
    rows = widest.shape[0] if widest.is_matrix else 1
    return method.memory.n_bytes(study.n_experts, rows, widest.n_elements // max(1, rows))


def _width(dtype: str) -> int:
    return {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}.get(dtype, 1)
