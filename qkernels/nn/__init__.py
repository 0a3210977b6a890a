"""Drop-in int8 layers."""

from typing import TYPE_CHECKING

from qkernels.nn.clamped_relu import ClampedReLU
from qkernels.nn.conv import QuantConv2d
from qkernels.nn.conv1d import QuantConv1d
from qkernels.nn.conv3d import QuantConv3d
from qkernels.nn.conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d
from qkernels.nn.embedding import QuantEmbedding, QuantEmbeddingBag
from qkernels.nn.linear import QuantLinear
from qkernels.nn.mean_pool import MeanPool2d, fix_mean_order_
from qkernels.nn.module import QuantModule
from qkernels.nn.registry import LayerSpec, float_classes, register_layer, spec_of
from qkernels.nn.weights import quantize_weight
from qkernels.utils.renamed import renamed

__all__ = [
    "ClampedReLU",
    "LayerSpec",
    "MeanPool2d",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantEmbedding",
    "QuantEmbeddingBag",
    "QuantLinear",
    "QuantModule",
    "fix_mean_order_",
    "float_classes",
    "quantize_weight",
    "register_layer",
    "spec_of",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        return renamed(__name__, name)
