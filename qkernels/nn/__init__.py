"""Drop-in int8 layers."""

from qkernels.nn.conv import QuantConv2d
from qkernels.nn.linear import QuantLinear
from qkernels.nn.module import QuantModule
from qkernels.nn.weights import quantize_weight

__all__ = ["QuantConv2d", "QuantLinear", "QuantModule", "quantize_weight"]
