"""What an int8 layer should answer, from docs/numerics.md: its float layer in float64, with the dequantized weight, on
an input rounded to codes and back."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.nn import QuantModule
from qkernels.nn.registry import spec_of_int8


def float_layer(layer: QuantModule) -> nn.Module:
    """The float class with the settings of the layer's scheme and its dequantized weight, in float64."""
    spec = spec_of_int8(type(layer))
    assert spec is not None
    known = inspect.signature(spec.float_class).parameters
    settings = {k: v for k, v in layer.scheme().items() if k in known}
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    made = spec.float_class(**settings | {"dtype": torch.float64}).eval()
    made.weight = nn.Parameter(_dequantized(layer, spec.weight_axis))
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.double())
    return made


def _dequantized(layer: QuantModule, axis: int) -> Tensor:
    codes, scale = layer.int8_weight.double(), layer.weight_scale.double()
    groups = (
        len(scale) // codes.shape[axis]
    )  # a transposed convolution keeps them on its other axis
    grouped = codes.unflatten(0, (groups, -1)) if axis else codes.unsqueeze(0)
    shape = [groups if axis else 1, *[1] * codes.dim()]
    shape[axis + 1] = -1
    return (grouped * scale.view(shape)).view(codes.shape)


def fake_quantized(layer: QuantModule, x: Tensor) -> Tensor:
    """`x` rounded to the codes of the layer's scheme and back; indices and weight-only inputs stay as they are."""
    activation = layer.scheme()["activation"]
    if activation == "weight_only":
        return x.double() if x.is_floating_point() else x
    if activation == "static":
        return _through_int8(x.float(), layer.input_scale, layer.input_zero_point)
    sample = tuple(range(1 - layer.int8_weight.dim(), 0))  # a row of a linear layer, else an image
    low, high = x.float().amin(sample, True).clamp(max=0), x.float().amax(sample, True).clamp(min=0)
    if layer.scheme()["symmetric"]:
        scale = torch.maximum(-low, high) / 127
        return _through_int8(x.float(), torch.where(scale < 1e-32, 1.0, scale), 0)
    scale = (high - low) / 255
    zero_point = torch.round((-128 - low * (1 / scale)).clamp(-128, 127))
    return _through_int8(x.float(), scale, zero_point)


def _through_int8(x: Tensor, scale: Any, zero_point: Any) -> Tensor:
    codes = (torch.round(x * (1 / scale)) + zero_point).clamp(-128, 127)
    return (codes - zero_point).double() * scale


def sqnr_db(expected: Tensor, got: Tensor) -> float:
    """10 log10 of the signal over the noise; inf where both are equal."""
    noise = (expected.double() - got.double()).square().sum().item()
    signal = expected.double().square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
