from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from programs import HERE, build


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU program, for this machine, built once for all processes of a run (pytest-xdist)."""
    for tool in ("make", "g++"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "native.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # make finds nothing to do where another has built it
        return build(folder / "native")


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, to plant faults in."""
    tree = tmp_path_factory.mktemp("faults")
    for folder in ("csrc", "tests/native"):
        shutil.copytree(HERE.parents[1] / folder, tree / folder)
    return tree
