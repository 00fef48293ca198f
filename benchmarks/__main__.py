"""Run benchmarks and write what they print into benchmarks/RESULTS.md, a section for each.

python -m benchmarks              all of them
python -m benchmarks awd_solver   some; the sections of the others stay as they are
"""

import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
TITLE = (
    "# Measured\n\n`make bench` measures again; `make bench BENCH_ARGS=awd_solver` one of them.\n"
)


def machine() -> str:
    """Date, processor, cores and what else was running at the time of a measurement."""
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else []
    processor = names[0] if names else platform.processor()
    cores = f"{os.cpu_count()} x {processor}"
    return f"{datetime.date.today()}, {cores}, {platform.system()}, load {os.getloadavg()[0]:.1f}"


def sections() -> dict[str, str]:
    """What RESULTS.md holds by now."""
    if not RESULTS.exists():
        return {}
    parts = re.split(r"^## (\w+)\n", RESULTS.read_text(encoding="utf-8"), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def main() -> None:
    """Run what was asked for; one that fails leaves its old section, and the exit code says so."""
    every = sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))
    failed = []
    for name in sys.argv[1:] or every:
        print(f"== {name}", flush=True)
        run = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True
        )
        print(run.stdout, flush=True)
        if run.returncode:
            failed.append(name)
            continue
        known = sections() | {name: f"\n{machine()}\n\n{run.stdout.strip()}\n\n"}
        body = "".join(f"## {key}\n{known[key]}" for key in sorted(known))
        RESULTS.write_text(f"{TITLE}\n{body}", encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
