"""What holds for every test: no network, a data folder of its own, repeatable examples."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Read when these libraries are imported, so set before any test module is; child processes (the
# command line, the app) inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network fails at once, and says so
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warns after every fork
os.environ.setdefault("OMP_NUM_THREADS", "2")  # sums of torch depend on the number of threads

# No deadline: the first torch or numba call takes a second, the next ones microseconds.
# too_slow counts the same second against the making of examples.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", autouse=True)
def awd_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh AWD_HOME for the whole run: tests neither see nor touch the user's own data."""
    home = tmp_path_factory.mktemp("awd_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWD_HOME", str(home))
        yield home
