"""Parts of packages that want a whole server when they are imported as they are, and are installed without it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest


def part(name: str) -> ModuleType:
    """Of a package, without its __init__. Skips the test where the package is not there."""
    package, _, _ = name.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")
    stub = ModuleType(package)
    stub.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = stub
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[package]
