"""Drop-in int8 layers."""

from qkernels.nn.clamped_relu import ClampedReLU
from qkernels.nn.conv import QuantConv2d
from qkernels.nn.linear import QuantLinear
from qkernels.nn.module import QuantModule
from qkernels.nn.weights import quantize_weight

__all__ = ["ClampedReLU", "QuantConv2d", "QuantLinear", "QuantModule", "quantize_weight"]
