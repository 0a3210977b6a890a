"""A drop-in int8 ``nn.Conv2d``."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.nn.module import Activation, QuantModule, require_float
from qkernels.nn.weights import quantize_weight

_conv2d = torch.ops.qkernels.conv2d

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _borders(
    padding: str | int | tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int]
) -> list[int]:
    """Padding as left, right, top, bottom; ``same`` puts the odd pixel right and below, as torch does."""
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r} is unknown; choose numbers, 'same' or 'valid'")
    h, w = _pair(padding)
    return [w, w, h, h]


class QuantConv2d(QuantModule, nn.Conv2d):
    """``nn.Conv2d`` with an int8 weight [out_channels, in_channels / groups, KH, KW].

    ``x`` [N, C, H, W] or [C, H, W] is float32, float16 or bfloat16, contiguous, channels-last or any strides; the
    output has its dtype, and is channels-last where ``x`` is. ``activation``: ``static`` (one calibrated scale) or
    ``dynamic`` (each image's own range, so that a batch never changes a result). C / groups * KH * KW is at most 65535.
    """

    ACTIVATIONS = ("static", "dynamic")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | str | None = None,
        *,
        activation: Activation = "dynamic",
        symmetric: bool = True,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
            )
        kernel = _pair(kernel_size)
        size = (out_channels, in_channels // groups, *kernel)
        super().__init__(size, groups, bias, activation, symmetric, device, dtype)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = kernel, _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.padding_mode, self.transposed, self.output_padding = padding_mode, False, (0, 0)
        self._borders = _borders(padding, kernel, self.dilation)

    @classmethod
    def from_float(  # type: ignore[override]
        cls,
        conv: nn.Conv2d,
        *,
        activation: Activation = "dynamic",
        weight: tuple[Tensor, Tensor] | None = None,
        input_scale: Tensor | float | None = None,
        input_zero_point: Tensor | int | None = None,
        symmetric: bool = True,
    ) -> QuantConv2d:
        """The int8 form of a float layer, which stays as it was; all else as ``QuantLinear.from_float``."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
            activation=activation,
            symmetric=symmetric,
        )
        new._set_tensors(
            weight or quantize_weight(conv.weight), conv.bias, input_scale, input_zero_point
        )
        return new

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if input.dim() != 4 or input.shape[1] != self.in_channels:
            raise RuntimeError(
                f"QuantConv2d takes [N, {self.in_channels}, H, W] or [{self.in_channels}, H, W]; its input is "
                f"{list(input.shape)}"
            )
        if not input.is_floating_point():
            require_float(self, input)
        b = self._buffers  # as in QuantLinear.forward
        y = _conv2d(
            input, b["packed_weight"], b["weight_scale"], b["bias"], b["input_scale"], b["input_zero_point"],
            self.symmetric, self.kernel_size, self.stride, self._borders, self.dilation, self.groups,
            self.padding_mode,
        )  # fmt: skip
        return ops.guard(y, input) if input.requires_grad else y

    def scheme(self) -> dict[str, Any]:
        return {
            "kind": "QuantConv2d",
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "bias": self.bias is not None,
            "padding_mode": self.padding_mode,
            "activation": self.activation,
            "symmetric": self.symmetric,
            "dtype": self.dtype_name,
        }

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self._borders != [0, 0, 0, 0]:
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return f"{text}, bias={self.bias is not None}, {self._scheme_repr()}"
