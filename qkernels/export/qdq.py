"""Int8 layers as ONNX spells them: quantize, dequantize, and the float layer on what comes out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic

from qkernels.nn import QuantLinear
from qkernels.nn.convolution import borders
from qkernels.nn.module import QuantModule
from qkernels.nn.registry import spec_of_int8


class _QdqLayer(nn.Module):
    """A layer for export only: calling it outside of an export gives no values."""

    codes: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    bias: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, layer: QuantModule, weight: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("codes", weight)
        self.register_buffer("weight_scale", layer.weight_scale)
        self.register_buffer("weight_zero", torch.zeros_like(layer.weight_scale, dtype=torch.int8))
        self.register_buffer("bias", layer.bias)
        self.register_buffer("scale", layer.input_scale)
        zero = layer.input_zero_point
        self.register_buffer("zero_point", None if zero is None else zero.to(torch.int8))

    @property
    def weight(self) -> Tensor:
        """What a model reads that uses the layer's weight itself, as tied layers do: float32, in the layer's shape."""
        return self._dequantized()

    def _dequantized(self) -> Tensor:
        return symbolic(
            "DequantizeLinear",
            (self.codes, self.weight_scale, self.weight_zero),
            {"axis": self.axis},
            dtype=torch.float32,
            shape=self.codes.shape,
        )

    def input_and_weight(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer multiplies, as float32 on the int8 grids; `weight_only` inputs as they are."""
        if self.scale is not None:
            grid = (self.scale, self.zero_point)
            q = symbolic("QuantizeLinear", (x, *grid), dtype=torch.int8, shape=x.shape)
            x = symbolic("DequantizeLinear", (q, *grid), dtype=torch.float32, shape=x.shape)
        return x, self._dequantized()


class QdqLinear(_QdqLayer):
    """The weight lies as [K, N]: runtimes look for a MatMul straight after it."""

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__(layer, layer.int8_weight.t().contiguous(), axis=1)

    @property
    def weight(self) -> Tensor:
        return self._dequantized().t()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(*self.input_and_weight(x))
        return y if self.bias is None else y + self.bias


class QdqConvolution(_QdqLayer):
    """A convolution over one, two or three axes."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer, layer.int8_weight, axis=0)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.borders = borders(layer.padding, layer.kernel_size, layer.dilation)
        self.padding_mode = layer.padding_mode
        self.convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[layer.int8_weight.dim() - 3]

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.input_and_weight(x)
        padding = tuple(before for before, _ in self.borders)
        if self.padding_mode != "zeros" or any(a != b for a, b in self.borders):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            widths = [
                width for pair in reversed(self.borders) for width in pair
            ]  # the last axis first
            x, padding = F.pad(x, widths, mode), (0,) * len(padding)
        return self.convolve(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)


class QdqConvTranspose(_QdqLayer):
    """A transposed convolution over one or two axes; its output channels are axis 1 of the weight."""

    def __init__(self, layer: Any) -> None:
        if layer.groups > 1:
            raise ValueError(
                f"a transposed convolution of {layer.groups} groups has a scale for each of {layer.out_channels} "
                "channels, which lie along no axis of its weight: QDQ has no words for it"
            )
        super().__init__(layer, layer.int8_weight, axis=1)
        self.window = (layer.stride, layer.padding, layer.output_padding, 1, layer.dilation)
        two = layer.int8_weight.dim() == 4
        self.convolve: Any = F.conv_transpose2d if two else F.conv_transpose1d

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.input_and_weight(x)
        return self.convolve(x, weight, self.bias, *self.window)


class QdqEmbedding(_QdqLayer):
    """Rows of an int8 table with a scale a row."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer, layer.int8_weight, axis=0)

    def forward(self, x: Tensor) -> Tensor:
        index, weight = self.input_and_weight(x)
        return F.embedding(index, weight)


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
