"""Drop-in int8 ``nn.ConvTranspose1d`` and ``nn.ConvTranspose2d``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.nn.conv import PaddingMode
from qkernels.nn.convolution import QuantConvolution, Sizes
from qkernels.nn.phases import Phases
from qkernels.nn.weights import quantize_weight

_conv2d = torch.ops.qkernels.conv2d


class QuantConvTranspose(QuantConvolution):
    """What both transposed convolutions share: an int8 weight [in_channels, out_channels / groups, KH, KW].

    Scales are one an output channel, as everywhere. The product is one convolution whose output channels are those of
    each phase (see `Phases`); its outputs are then interleaved and cut to size.
    """

    FIELDS = (*QuantConvolution.FIELDS, "output_padding")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sizes,
        stride: int | Sizes = 1,
        padding: int | Sizes = 0,
        output_padding: int | Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sizes = 1,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        **scheme: Any,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode={padding_mode!r}: a transposed convolution pads with zeros")  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, output_padding=output_padding, **scheme,
        )  # fmt: skip

    def _weight_size(self) -> Sizes:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def channels(self) -> int:
        return self.out_channels

    @classmethod
    def products(cls, layer: Any) -> int:
        return int(layer.in_channels // layer.groups * math.prod(phases_of(layer).taps))

    def _transposed(self, x: Tensor, padding: Sizes, output_padding: Sizes) -> Tensor:
        """``x`` [N, C, H, W] to [N, OC, OH, OW]."""
        phases, b = phases_of(self), self._buffers
        cut = phases.cut(x.shape[2:], padding, output_padding)
        scale, bias = (
            None if v is None else v.repeat_interleave(phases.count)
            for v in (b["weight_scale"], b["bias"])
        )
        y = _conv2d(
            x, b["packed_weight"], scale, bias, b["input_scale"], b["input_zero_point"], self.symmetric, phases.taps,
            (1, 1), cut.borders, phases.spread, self.groups, "zeros",
        )  # fmt: skip
        return phases.interleaved(y, cut)

    # ---- the weight: rows [OC, C / groups, KH, KW] of an ordinary convolution, then one such row a phase

    @classmethod
    def quantize(cls, layer: Any, *, per_channel: bool) -> tuple[Tensor, Tensor]:
        rows = swap_channels(layer.weight.detach(), layer.groups)
        codes, scale = quantize_weight(rows, per_channel=per_channel)
        return swap_channels(codes, layer.groups), scale

    def _pack(self, codes: Tensor) -> Tensor:
        rows = swap_channels(codes, self.groups)
        rows = rows.unsqueeze(2) if self.DIMENSIONS == 1 else rows
        return ops.pack_weight(phases_of(self).split(rows), self.weight_groups)

    @property
    def int8_weight(self) -> Tensor:
        """The int8 codes in the float weight's shape: a new tensor at each access; assign to replace them."""
        phases, inside = phases_of(self), self.in_channels // self.groups
        size = [self.out_channels * phases.count, inside, *phases.taps]
        rows = phases.joined(ops.unpack_weight(self.packed_weight, size, self.weight_groups))
        rows = rows.squeeze(2) if self.DIMENSIONS == 1 else rows
        return swap_channels(rows, self.groups)

    @int8_weight.setter
    def int8_weight(self, codes: Tensor) -> None:
        self.packed_weight = self._pack(codes)

    def dequantize_weight(self) -> Tensor:
        rows = swap_channels(self.int8_weight, self.groups)
        scale = self.weight_scale.view(-1, *[1] * (rows.dim() - 1))
        return swap_channels(rows * scale, self.groups).to(self.anchor.dtype)

    def _can_share(self, other: Any) -> bool:
        fields = ("groups", "stride", "dilation")
        same = type(other) is type(self) and all(
            getattr(other, f) == getattr(self, f) for f in fields
        )
        return same and super()._can_share(other)


class QuantConvTranspose2d(QuantConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with an int8 weight, by phases.

    The other way, a convolution of the input spread with zeros, multiplies stride * stride times as often. One thread
    of an AVX512-VNNI machine, milliseconds by phases, spread, and torch's float: 64 to 64 channels, 32 x 32, kernel 4,
    stride 2: 0.93, 1.54, 1.77; 256 to 128 channels, 16 x 16, kernel 4, stride 2: 1.08, 2.75, 3.19; 256 to 128 channels,
    32 x 32, kernel 2, stride 2: 1.69, 3.61, 4.30; without a stride both are the same convolution.
    """

    DIMENSIONS = 2

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = self._batch(input)
        more = _output_padding(self, input, output_size)
        return self._unbatch(self._transposed(x, self.padding, more), input)  # type: ignore[arg-type]


class QuantConvTranspose1d(QuantConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with an int8 weight: a `QuantConvTranspose2d` of height 1."""

    DIMENSIONS = 1

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = self._batch(input)
        more = _output_padding(self, input, output_size)
        y = self._transposed(x.unsqueeze(2), (0, *self.padding), (0, *more))
        return self._unbatch(y.squeeze(2), input)


def phases_of(conv: Any) -> Phases:
    """The phases of a layer in two dimensions; one dimension has height 1."""
    kernel, stride, dilation = (
        (1,) * (2 - len(v)) + v for v in (conv.kernel_size, conv.stride, conv.dilation)
    )
    return Phases(kernel, stride, dilation)


def _output_padding(layer: Any, input: Tensor, output_size: list[int] | None) -> Sizes:
    """What ``output_size`` asks for, by torch's own rule."""
    return tuple(
        layer._output_padding(
            input, output_size, layer.stride, layer.padding, layer.kernel_size, layer.DIMENSIONS, layer.dilation
        )
    )  # fmt: skip


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """[A, B / groups, ...] to [B, A / groups, ...], group by group: its own inverse."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()
