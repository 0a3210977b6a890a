"""What the nodes of a chained graph call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.nn import QuantConv2d, QuantLinear

QParams = tuple[float, int]  # scale and zero point of an int8 tensor

_conv2d, _linear = torch.ops.qkernels.conv2d, torch.ops.qkernels.linear


class ChainedLayer(nn.Module):
    """One call of an int8 layer with a residual add, a clamp and the next layer's quantization in its epilogue.

    ``name``: of the layer in the model.
    ``residual`` and ``output`` are the scales of an int8 residual and of an int8 output; None: float32.
    """

    def __init__(
        self, layer: QuantConv2d | QuantLinear, clamp: tuple[float, float] | None, name: str
    ) -> None:
        super().__init__()
        self.layer, self.name = layer, name
        self.clamp = clamp or (None, None)
        self.residual: QParams | None = None
        self.output: QParams | None = None

    @property
    def input(self) -> QParams | None:
        """The scale its int8 input must have; None where it finds its own (dynamic)."""
        if self.layer.activation != "static":
            return None
        assert self.layer.input_scale is not None and self.layer.input_zero_point is not None
        return float(self.layer.input_scale), int(self.layer.input_zero_point)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        layer, b = self.layer, self.layer._buffers
        operands = (
            x, b["packed_weight"], b["weight_scale"], b["bias"], b.get("input_scale"), b.get("input_zero_point"),
            layer.symmetric,
        )  # fmt: skip
        epilogue = (
            residual, *(self.residual or (1.0, 0)), *self.clamp,
            torch.int8 if self.output else torch.float32, *(self.output or (1.0, 0)),
        )  # fmt: skip
        if isinstance(layer, QuantLinear):
            y = _linear(*operands, *epilogue)
        else:
            y = _conv2d(
                *operands, layer.kernel_size, layer.stride, layer._borders, layer.dilation, layer.groups,
                layer.padding_mode, *epilogue,
            )  # fmt: skip
        return ops.guard(y, x) if x.requires_grad else y

    def extra_repr(self) -> str:
        return f"clamp={self.clamp}, residual={self.residual}, output={self.output}"


class Int8MaxPool2d(nn.Module):
    """``nn.MaxPool2d`` of int8: quantization keeps order, so it may come before or after."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.ceil_mode = pool.ceil_mode
        sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        self.sizes = [[s, s] if isinstance(s, int) else list(s) for s in sizes]

    def forward(self, x: Tensor) -> Tensor:
        kernel_size, stride, padding, dilation = self.sizes
        return ops.max_pool2d(x, kernel_size, stride, padding, dilation, self.ceil_mode)


class Int8AvgPool2d(nn.Module):
    """``nn.AvgPool2d`` of int8, with the scale of its input. Values that this scale saturates are saturated before the
    mean is taken, so that a chain does not put it in by itself."""

    def __init__(self, pool: nn.AvgPool2d, zero_point: int) -> None:
        super().__init__()
        if pool.divisor_override is not None:
            raise ValueError(
                f"divisor_override={pool.divisor_override} is not taken by int8 pooling"
            )
        self.ceil_mode, self.count_include_pad = pool.ceil_mode, pool.count_include_pad
        self.zero_point = zero_point
        sizes = (pool.kernel_size, pool.stride, pool.padding)
        self.sizes = [[s, s] if isinstance(s, int) else list(s) for s in sizes]

    def forward(self, x: Tensor) -> Tensor:
        kernel_size, stride, padding = self.sizes
        return ops.avg_pool2d(
            x, self.zero_point, kernel_size, stride, padding, self.ceil_mode, self.count_include_pad
        )
