"""Int8 layers as ONNX spells them: quantize, dequantize, and the float layer on what comes out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic

from qkernels.nn import QuantConv2d, QuantLinear
from qkernels.nn.module import QuantModule
from qkernels.nn.registry import spec_of_int8


class _QdqLayer(nn.Module):
    """For export only: calling it outside of an export gives no values."""

    weight: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    bias: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, layer: QuantModule, weight: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", layer.weight_scale)
        self.register_buffer("weight_zero", torch.zeros_like(layer.weight_scale, dtype=torch.int8))
        self.register_buffer("bias", layer.bias)
        self.register_buffer("scale", layer.input_scale)
        zero = layer.input_zero_point
        self.register_buffer("zero_point", None if zero is None else zero.to(torch.int8))

    def input_and_weight(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer multiplies, as float32 on the int8 grids; `weight_only` inputs as they are."""
        if self.scale is not None:
            grid = (self.scale, self.zero_point)
            q = symbolic("QuantizeLinear", (x, *grid), dtype=torch.int8, shape=x.shape)
            x = symbolic("DequantizeLinear", (q, *grid), dtype=torch.float32, shape=x.shape)
        weight = symbolic(
            "DequantizeLinear",
            (self.weight, self.weight_scale, self.weight_zero),
            {"axis": self.axis},
            dtype=torch.float32,
            shape=self.weight.shape,
        )
        return x, weight


class QdqLinear(_QdqLayer):
    """The weight lies as [K, N]: runtimes look for a MatMul straight after it."""

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__(layer, layer.int8_weight.t().contiguous(), axis=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(*self.input_and_weight(x))
        return y if self.bias is None else y + self.bias


class QdqConv2d(_QdqLayer):
    def __init__(self, layer: QuantConv2d) -> None:
        super().__init__(layer, layer.int8_weight, axis=0)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.borders, self.padding_mode = layer._borders, layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.input_and_weight(x)
        left, right, top, bottom = self.borders
        padding = (top, left)
        if self.padding_mode != "zeros" or (left, top) != (right, bottom):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self.borders, mode), (0, 0)
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)


def to_qdq(name: str, layer: QuantModule) -> nn.Module:
    """Raises ValueError for a layer that QDQ has no words for."""
    if layer.activation == "dynamic":
        raise ValueError(
            f"layer {name!r} finds its input's range in every call (dynamic), a range a row or image that QDQ has no "
            'words for: quantize it with activation="static" or "weight_only"'
        )
    spec = spec_of_int8(type(layer))
    kind = None if spec is None else spec.qdq()
    if kind is None:
        raise ValueError(f"layer {name!r} is a {type(layer).__name__}, which has no ONNX form")
    return kind(layer)
