"""Other people's implementations, in virtual environments of their own, as second opinions.

Set AWD_RIVALS to a folder outside the repository: they are installed there once and then kept.
Without it the tests that need them are skipped, since a test run should not download anything
that was not asked for.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent
Results = dict[str, dict[str, np.ndarray]]

# FusionBench imports all of its methods at once, and with them these. It needs versions that are
# older than the project's own; torch and NumPy are the project's, so that both compute alike.
FUSIONBENCH = (
    "fusion-bench==0.2.33",
    "antlr4-python3-runtime==4.9.3",
    "bidict==0.24.1",
    "datasets==3.6.0",
    "dill==0.4.1",
    "h5py==3.16.0",
    "huggingface_hub==0.36.0",
    "hydra-core==1.3.8",
    "lightning==2.6.6",
    "lightning-utilities==0.15.3",
    "multiprocess==0.70.19",
    "omegaconf==2.4.0",
    "pytorch-lightning==2.6.6",
    "tokenizers==0.22.1",
    "torchmetrics==1.9.0",
    "transformers==4.57.1",
    "xxhash==4.1.0",
)


def fusionbench() -> Path:
    """The interpreter of FusionBench's environment, installed if need be."""
    return _installed("fusionbench-0.2.33", FUSIONBENCH)


def mllmerging() -> Path:
    """The clone of MLLMerging, which no registry has; it is not fetched from here."""
    clone = _rivals() / "MLLMerging"
    if not clone.is_dir():
        pytest.skip(f"clone https://github.com/WalkerWorldPeace/MLLMerging into {clone}")
    return clone


def answers(command: Sequence[str | Path], given: dict[str, np.ndarray], folder: Path) -> Results:
    """What a rival's script makes of task vectors: method -> tensor -> merged.

    Args:
        command: Up to the two files, of what is given and of what is found.
        given: Tensor -> (experts, ...).
        folder: For these files.
    """
    arrays = {f"{k}:{name}": taus[k] for name, taus in given.items() for k in range(len(taus))}
    np.savez(folder / "given.npz", **arrays)
    files = [folder / "given.npz", folder / "found.npz"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    results: Results = {}
    with np.load(folder / "found.npz") as found:
        for key in found.files:
            method, name = key.split(":")
            results.setdefault(method, {})[name] = found[key]
    return results


def _rivals() -> Path:
    folder = os.environ.get("AWD_RIVALS")
    if not folder:
        pytest.skip("set AWD_RIVALS to a folder in which other implementations may be installed")
    return Path(folder).expanduser()


def _installed(name: str, packages: tuple[str, ...]) -> Path:
    environment = _rivals() / name
    ready = environment / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        own = sysconfig.get_path("purelib", vars={"base": str(environment)})
        # After its own packages it sees those of the project.
        (Path(own) / "project.pth").write_text(sysconfig.get_path("purelib"))
        pip = [environment / "bin" / "pip", "install", "--quiet", "--no-deps", *packages]
        subprocess.run(pip, check=True)
        ready.touch()
    return environment / "bin" / "python"
