"""`qkernels._core`, imported at first use: models on CUDA devices need none, so that any Python can compile those."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("qkernels._core"), name)
