"""Every merge method, one file each. Forms, command line, docs and tests follow from METHODS."""

from awd_core.errors import RecipeError, nearest
from awd_core.method import MergeMethod
from awd_core.methods.aswudi import Aswudi
from awd_core.methods.average import Average
from awd_core.methods.breadcrumbs import Breadcrumbs
from awd_core.methods.breadcrumbs_tensor import BreadcrumbsTensor
from awd_core.methods.consensus import Consensus
from awd_core.methods.dare import Dare
from awd_core.methods.dare_ties import DareTies
from awd_core.methods.della import Della
from awd_core.methods.delta_weighted import DeltaWeighted
from awd_core.methods.doge import Doge
from awd_core.methods.emr import Emr
from awd_core.methods.iso_c import IsoC
from awd_core.methods.iso_cts import IsoCts
from awd_core.methods.karcher import Karcher
from awd_core.methods.knots import Knots
from awd_core.methods.magmax import MagMax
from awd_core.methods.metrics_weighted import MetricsWeighted
from awd_core.methods.model_stock import ModelStock
from awd_core.methods.multi_slerp import MultiSlerp
from awd_core.methods.negation import Negation
from awd_core.methods.nuslerp import NuSlerp
from awd_core.methods.opcm import Opcm
from awd_core.methods.optmerge import OptMerge
from awd_core.methods.pcb import Pcb
from awd_core.methods.rmm import Rmm
from awd_core.methods.rtsvm_style import RtsvmStyle
from awd_core.methods.sce import Sce
from awd_core.methods.slerp import Slerp
from awd_core.methods.swudi import Swudi
from awd_core.methods.tall_masks import TallMasks
from awd_core.methods.task_arithmetic import TaskArithmetic
from awd_core.methods.ties import Ties
from awd_core.methods.ties_mergekit import TiesMergekit
from awd_core.methods.tsv_c import TsvC
from awd_core.methods.tsv_m import TsvM
from awd_core.methods.weighted_average import WeightedAverage
from awd_core.methods.widen import Widen
from awd_core.methods.wudi import Wudi

METHODS: tuple[type[MergeMethod], ...] = (
    TaskArithmetic,
    Average,
    WeightedAverage,
    Negation,
    ModelStock,
    Slerp,
    NuSlerp,
    MultiSlerp,
    Karcher,
    MetricsWeighted,
    DeltaWeighted,
    Ties,
    TiesMergekit,
    Dare,
    DareTies,
    Della,
    Breadcrumbs,
    BreadcrumbsTensor,
    Pcb,
    MagMax,
    Sce,
    Consensus,
    Widen,
    # Spectral: singular vectors of one matrix at a time.
    TsvM,
    IsoC,
    IsoCts,
    Knots,
    Opcm,
    RtsvmStyle,
    # Optimised: a descent for every matrix.
    Wudi,
    Swudi,
    Aswudi,
    OptMerge,
    Doge,
    # A model for each task, chosen when the task is known.
    Emr,
    TallMasks,
    TsvC,
    Rmm,
)


def find_method(key: str) -> type[MergeMethod]:
    """The method of this name.

    Raises:
        RecipeError: There is none.
    """
    for candidate in METHODS:
        if candidate.key == key:
            return candidate
    raise RecipeError(
        "Unknown merge method",
        where="method",
        received=key,
        remedy=nearest(key, tuple(candidate.key for candidate in METHODS)),
    )
