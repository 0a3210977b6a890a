"""int8 layers for PyTorch, and the workflow that gets a trained teacher into them.

Names are loaded at first use, so that `qkernels._core` serves processes without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkernels import nn, ops
    from qkernels.export import export_onnx
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
    "export_onnx",
    "load",
    "nn",
    "ops",
    "quantize",
    "quantize_",
    "report",
    "save",
]
_HOMES = {
    "QuantConv2d": "nn",
    "QuantLinear": "nn",
    "compile": "graph",
    "export_onnx": "export",
    "report": "reports",
}


def __getattr__(name: str) -> Any:
    if name in ("nn", "ops"):
        return importlib.import_module(f"qkernels.{name}")
    if name in __all__:
        home = importlib.import_module(f"qkernels.{_HOMES.get(name, 'quantization')}")
        return getattr(home, name)
    raise AttributeError(f"module 'qkernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
