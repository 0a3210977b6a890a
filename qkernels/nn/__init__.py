"""Drop-in int8 layers."""

from typing import TYPE_CHECKING

from qkernels.nn.clamped_relu import ClampedReLU
from qkernels.nn.conv import QuantConv2d
from qkernels.nn.linear import QuantLinear
from qkernels.nn.mean_pool import MeanPool2d, fix_mean_order_
from qkernels.nn.module import QuantModule
from qkernels.nn.weights import quantize_weight
from qkernels.renamed import renamed

__all__ = [
    "ClampedReLU",
    "MeanPool2d",
    "QuantConv2d",
    "QuantLinear",
    "QuantModule",
    "fix_mean_order_",
    "quantize_weight",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        return renamed(__name__, name)
