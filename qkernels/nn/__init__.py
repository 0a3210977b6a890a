"""Drop-in int8 layers."""

from qkernels.nn.clamped_relu import ClampedReLU
from qkernels.nn.conv import QuantConv2d
from qkernels.nn.linear import QuantLinear
from qkernels.nn.mean_pool import MeanPool2d, fix_mean_order
from qkernels.nn.module import QuantModule
from qkernels.nn.weights import quantize_weight

__all__ = [
    "ClampedReLU",
    "MeanPool2d",
    "QuantConv2d",
    "QuantLinear",
    "QuantModule",
    "fix_mean_order",
    "quantize_weight",
]
