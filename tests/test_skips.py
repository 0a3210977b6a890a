"""A run that skips more than it may fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("limit", "code"), [("1", 0), ("0", 1)])
def test_more_skips_than_are_known_fail_a_run(limit: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "test_a.py").write_text(
        "import pytest\n\ndef test_a():\n    pytest.skip('not here')\n\ndef test_b():\n    pass\n"
    )
    environment = {**os.environ, "QKERNELS_MAX_SKIPS": limit}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout
    assert ("1 tests were skipped, more than the 0 known" in done.stdout) == (code == 1)
