from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from programs import build


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU program, for this machine."""
    for tool in ("make", "g++"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    return build(tmp_path_factory.mktemp("native"))
