"""int8 layers for PyTorch, and the workflow that gets a trained teacher into them."""

from qkernels import nn, ops
from qkernels.nn import QuantConv2d, QuantLinear
from qkernels.quantization import QuantConfig, QuantReport, load, quantize, save

__version__ = "0.1.0"

__all__ = [
    "QuantConfig",
    "QuantConv2d",
    "QuantLinear",
    "QuantReport",
    "load",
    "nn",
    "ops",
    "quantize",
    "save",
]
