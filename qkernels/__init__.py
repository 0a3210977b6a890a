"""int8 layers for PyTorch, and the workflow that gets a trained teacher into them.

Names are loaded at first use, so that `qkernels._core` serves processes without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkernels import nn, ops
    from qkernels.graph import compile
    from qkernels.nn import QuantConv2d, QuantLinear
    from qkernels.quantization import QuantConfig, QuantReport, load, quantize, quantize_, save
    from qkernels.reports import report

__version__ = "0.1.0"

__all__ = [
    "QuantConfig",
    "QuantConv2d",
    "QuantLinear",
    "QuantReport",
    "compile",
    "load",
    "nn",
    "ops",
    "quantize",
    "quantize_",
    "report",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in ("nn", "ops"):
        return importlib.import_module(f"qkernels.{name}")
    if name == "report":
        return importlib.import_module("qkernels.reports").report
    if name == "compile":
        return importlib.import_module("qkernels.graph").compile
    if name in ("QuantConv2d", "QuantLinear"):
        return getattr(importlib.import_module("qkernels.nn"), name)
    if name in __all__:
        return getattr(importlib.import_module("qkernels.quantization"), name)
    raise AttributeError(f"module 'qkernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
