"""Starts the dashboard and the report as their own processes; the core knows nothing of them."""

import os
import subprocess
import sys
from pathlib import Path

from awd_core.errors import AwdError, Cancelled
from awd_core.study import open_study

ROOT = Path(__file__).resolve().parent.parent


def run_report(study: Path, out: Path, recipe: Path | None, as_json: bool) -> int:
    """Write the report of a study; its exit code."""
    command = [sys.executable, "-m", "analysis.report", str(study), "--output", str(out)]
    command += ["--recipe", str(recipe)] if recipe else []
    command += ["--json"] if as_json else []
    # Found beside the core, also where the clone was not installed.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, env=environment, check=False).returncode


def run_dashboard(study: Path | None, port: int) -> int:
    """Run the app until it is stopped.

    Args:
        study: Study to open first; the zoo when None.
        port: Port on this machine's loopback address.

    Returns:
        Exit code of the server.

    Raises:
        StudyError: `study` is not a study.
        AwdError: The dashboard is not installed beside the core.
    """
    script = ROOT / "dashboard" / "app.py"
    if not script.exists():
        raise AwdError(
            "The dashboard is not installed",
            where=script,
            remedy="Start it from a clone of the repository: `make app`.",
        )
    environment = dict(os.environ)
    if study is not None:
        open_study(study)
        environment["AWD_STUDY"] = str(study.expanduser().absolute())
    command = [sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}"]
    try:
        # The working directory is where Streamlit finds .streamlit/config.toml.
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    except Cancelled:
        return 0
