"""The core of AWD Studio: opens checkpoints, solves AWD, merges, writes, evaluates.

import awd_core as awd
base = awd.open_checkpoint("path | hub id | adapter folder")
study = awd.collect(base, [awd.open_checkpoint(path) for path in paths])
solved = awd.disentangle(study, granularity="row")
awd.merge(awd.Recipe(base=..., experts=[...], coefficient=0.3), out="merged/")
"""

from awd_core.lazy import importing

with importing():
    from awd_core import files
    from awd_core.checkpoints import (
        Checkpoint,
        Preflight,
        base_fit,
        base_problems,
        open_checkpoint,
        preflight,
    )
    from awd_core.collect import collect
    from awd_core.disentangle import Disentangled, Settings, disentangle, no_redundancy, solve
    from awd_core.errors import AwdError, Cancelled
    from awd_core.merge import merge, merged_state, plan_merge
    from awd_core.methods import METHODS, find_method
    from awd_core.progress import Progress
    from awd_core.recipe import Recipe
    from awd_core.spectra_level import collect_spectra
    from awd_core.study import Study, equalise_norms, open_study
    from awd_core.verify import Verification, verify

__all__ = [
    "METHODS",
    "AwdError",
    "Cancelled",
    "Checkpoint",
    "Disentangled",
    "Preflight",
    "Progress",
    "Recipe",
    "Settings",
    "Study",
    "Verification",
    "base_fit",
    "base_problems",
    "collect",
    "collect_spectra",
    "disentangle",
    "equalise_norms",
    "files",
    "find_method",
    "merge",
    "merged_state",
    "no_redundancy",
    "open_checkpoint",
    "open_study",
    "plan_merge",
    "preflight",
    "solve",
    "verify",
]
