"""Building and running the C++ programs of this folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def build(
    tmp_path: Path, *variables: str, program: str = "kernels_test", folder: Path = HERE
) -> Path:
    """A test program of `folder`, built in `tmp_path`."""
    target = tmp_path / program
    command = ["make", "-s", f"-j{os.cpu_count() or 1}", f"BUILD={tmp_path}", *variables, target]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "MAKEFLAGS": ""})
    return target


def run(*command: str | Path) -> tuple[str, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout, done.stderr
