"""Long work as child processes of the command line: started, watched and stopped from any page.

A job is a folder under AWD Studio's own: what was asked (`job.json`), what it says
(`events.jsonl`), what it printed (`log.txt`). The page may close; the job goes on.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from awd_core import Recipe, files

CANCEL_ASKED = "cancel-asked"
# Jobs that are looked through for one that a reload of the page has lost.
_NEWEST = 100

# Children of this server, so that ended ones can be told from running ones.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Job:
    """One command that runs, or ran, on its own.

    Attributes:
        folder: Where it writes its events.
        title: What it does, for people.
        command: Arguments of `awd`.
        output: What it will have made.
        pid: Its process, which leads a process group of its own.
    """

    folder: Path
    title: str
    command: tuple[str, ...]
    output: str
    pid: int

    @property
    def id(self) -> str:
        """Name of its folder."""
        return self.folder.name


@dataclass(frozen=True)
class Status:
    """Where a job stands: `running`, `done`, `failed` or `cancelled`."""

    state: str
    fraction: float = 0.0
    stage: str = ""
    what: str = ""
    seconds_left: float | None = None
    message: str = ""


def jobs_folder() -> Path:
    """Where jobs live."""
    return files.home() / "jobs"


def start(title: str, command: Sequence[str], output: Path) -> Job:
    """Start `awd COMMAND --events ...` as a process of its own."""
    folder = jobs_folder() / f"{time.time_ns()}-{command[0]}"
    folder.mkdir(parents=True)
    events = folder / "events.jsonl"
    with (folder / "log.txt").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "awd_core", *command, "--events", str(events)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children[child.pid] = child
    job = Job(folder, title, tuple(command), str(output), child.pid)
    fields = {**asdict(job), "folder": str(folder)}
    (folder / "job.json").write_text(json.dumps(fields), encoding="utf-8")
    return job


def load(job_id: str) -> Job | None:
    """A job by its id; None when there is none."""
    try:
        text = (jobs_folder() / Path(job_id).name / "job.json").read_text(encoding="utf-8")
        fields = json.loads(text)
    except (OSError, ValueError):
        return None
    return Job(**{**fields, "folder": Path(fields["folder"]), "command": tuple(fields["command"])})


def newest_for(output: Path, kinds: Collection[str]) -> Job | None:
    """The newest job of these commands that makes, or looked at, this output."""
    folders = sorted(jobs_folder().glob("*-*"), key=lambda folder: folder.name, reverse=True)
    for folder in folders[:_NEWEST]:
        job = load(folder.name)
        if job is not None and job.output == str(output) and job.command[0] in kinds:
            return job
    return None


def status(job: Job) -> Status:
    """Read how far a job is; a process that died without a word has failed."""
    last = _last_event(job.folder / "events.jsonl")
    if last.get("state", "running") != "running":
        return Status(last["state"], 1.0, message=last.get("message", ""))
    if not _alive(job.pid):
        # It may have written its last words between the two looks.
        last = _last_event(job.folder / "events.jsonl")
        if last.get("state", "running") != "running":
            return Status(last["state"], 1.0, message=last.get("message", ""))
        # Stopped while the process was starting, it could not say so itself.
        if (job.folder / CANCEL_ASKED).exists():
            return Status("cancelled", 1.0)
        return Status("failed", message=_tail(job.folder / "log.txt"))
    fraction, seconds = last.get("fraction", 0.0), last.get("seconds", 0.0)
    left = seconds * (1 - fraction) / fraction if fraction else None
    return Status("running", fraction, last.get("stage", "Starting"), last.get("what", ""), left)


def is_running(job_id: str | None) -> bool:
    """Whether there is such a job and it runs."""
    job = load(job_id or "")
    return job is not None and status(job).state == "running"


def recipe_file(recipe: Recipe) -> Path:
    """The recipe as a file, for a job to read."""
    file = files.home() / "recipes" / f"{recipe.digest[:16]}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    return file


def cancel(job: Job) -> None:
    """Ask the job to stop; it removes what it had begun and says so."""
    (job.folder / CANCEL_ASKED).touch()
    try:
        os.killpg(job.pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def _alive(pid: int) -> bool:
    if pid in _children:
        return _children[pid].poll() is None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _last_event(events: Path) -> dict[str, Any]:
    """The last whole line; a line that is being written is left for the next look."""
    try:
        with events.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 8192))
            lines = stream.read().split(b"\n")
    except OSError:
        return {}
    whole = [line for line in lines[:-1] if line.startswith(b"{")]
    return json.loads(whole[-1]) if whole else {}


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-6:]
    return "\n".join(lines) or "The process ended without a message."


def printed(job: Job) -> str:
    """What a job printed, errors too."""
    return (job.folder / "log.txt").read_text(encoding="utf-8").strip()


def printed_json(job: Job) -> dict[str, Any]:
    """The object that `--json` printed, whatever libraries printed before and after it."""
    text = printed(job)
    return json.JSONDecoder().raw_decode(text, text.index("{\n"))[0]
