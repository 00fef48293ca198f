"""Compiled code that is kept on disk is never older than anything it is made of."""

import shutil
import subprocess
import sys
from pathlib import Path

import awd_core

# What a kernel says of eight ones, and whether it had to be compiled.
CODE = """
import numpy as np
from awd_core import gram_kernels
total = np.zeros(8)
gram_kernels.add_in_order(total, np.ones((3, 8)))
print(total[0], sum(gram_kernels.add_in_order.stats.cache_misses.values()))
"""
FILES = ("compiled.py", "lazy.py", "*kernels.py", "*lanes.py", "random_masks.py")


def test_a_change_of_another_file_is_noticed(tmp_path: Path) -> None:
    package, source = tmp_path / "awd_core", Path(awd_core.__file__).parent
    package.mkdir()
    for file in (file for pattern in FILES for file in source.glob(pattern)):
        shutil.copy(file, package)
    (package / "__init__.py").touch()

    def run() -> list[str]:
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert run() == ["3.0", "1"]
    assert run() == ["3.0", "0"]
    lanes = package / "lanes.py"
    lanes.write_text(lanes.read_text().replace("LANES = 8", "LANES = 4"))
    assert run() == ["3.0", "1"]
