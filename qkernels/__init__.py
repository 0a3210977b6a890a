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

_HOMES = {  # name -> the module it is loaded from
    "QuantConfig": "quantization",
    "QuantConv2d": "nn",
    "QuantLinear": "nn",
    "QuantReport": "quantization",
    "compile": "graph",
    "export_onnx": "export",
    "load": "quantization",
    "quantize": "quantization",
    "quantize_": "quantization",
    "report": "reports",
    "save": "quantization",
}
__all__ = ["nn", "ops", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in ("nn", "ops"):
        return importlib.import_module(f"qkernels.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"qkernels.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qkernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
