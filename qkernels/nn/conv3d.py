"""A drop-in int8 ``nn.Conv3d``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.nn.convolution import QuantConvolution


class QuantConv3d(QuantConvolution, nn.Conv3d):
    """``nn.Conv3d`` with an int8 weight [out_channels, in_channels / groups, KD, KH, KW].

    It is a 2-D convolution of one image an output frame, whose channels are those of the KD input frames in its window.
    ``x`` is quantized first, so that the copy into such images moves int8: KD / stride bytes a value of ``x``.
    """

    DIMENSIONS = 3

    def forward(self, input: Tensor) -> Tensor:
        x = self._batch(input)
        n = x.shape[0]
        codes, scale, zero = self._quantize(x)
        images = self._stacked(codes, zero)
        frames = images.shape[0] // n
        per_image = (v if v.dim() == 0 else v.repeat_interleave(frames) for v in (scale, zero))
        (top, bottom), (left, right) = self._borders[1:]
        y = ops.conv2d(
            images,
            self.packed_weight,
            self.weight_scale,
            self._buffers["bias"],
            *per_image,
            kernel_size=list(self.kernel_size[1:]),
            stride=list(self.stride[1:]),
            padding=[left, right, top, bottom],
            dilation=list(self.dilation[1:]),
            groups=self.groups,
            padding_mode=self.padding_mode,
            out_dtype=x.dtype,
        )
        y = y.unflatten(0, (n, frames)).transpose(1, 2).contiguous()
        return self._unbatch(y, input)

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes in the shape of ``x``, and scale and zero point, one for all or one a sample."""
        if self.input_scale is not None and self.input_zero_point is not None:
            codes = ops.quantize(x, self.input_scale, self.input_zero_point)
            return codes, self.input_scale, self.input_zero_point
        codes, scale, zero = ops.quantize_dynamic(x.flatten(1), symmetric=self.symmetric)
        return codes.view(x.shape), scale, zero

    def _stacked(self, codes: Tensor, zero: Tensor) -> Tensor:
        """The window of each output frame as one image [N * frames, KD * C, H, W], grouped as the convolution is."""
        n, c, depth, h, w = codes.shape
        windows = self._windows(depth)
        frames = codes.transpose(1, 2)
        if depth in windows:  # a frame of padding, which holds real 0
            outside = zero.to(torch.int8).view(-1, 1, 1, 1, 1).expand(n, 1, c, h, w)
            frames = torch.cat([frames, outside], 1)
        index = torch.tensor(windows, device=codes.device)
        kd, g = self.kernel_size[0], self.groups
        stacked = frames.index_select(1, index).view(n, -1, kd, g, c // g, h, w)
        return stacked.transpose(2, 3).reshape(-1, kd * c, h, w)

    def _windows(self, depth: int) -> list[int]:
        """The input frames of each window, one window after the other; ``depth`` stands for a frame of padding."""
        (before, after), k, s, d = (
            self._borders[0],
            self.kernel_size[0],
            self.stride[0],
            self.dilation[0],
        )
        last = depth + before + after - d * (k - 1) - 1
        if last < 0:
            raise RuntimeError(
                f"the kernel spans {d * (k - 1) + 1} frames, more than the {depth} of the input and its padding"
            )
        starts = range(-before, last + 1 - before, s)
        return [self._frame(start + d * tap, depth) for start in starts for tap in range(k)]

    def _frame(self, place: int, depth: int) -> int:
        """The frame that stands at ``place``, which may lie in the padding."""
        if 0 <= place < depth:
            return place
        if self.padding_mode == "zeros":
            return depth
        if self.padding_mode == "circular":
            return place % depth
        if self.padding_mode == "replicate":
            return min(max(place, 0), depth - 1)
        mirrored = -place if place < 0 else 2 * (depth - 1) - place
        if not 0 <= mirrored < depth:
            raise RuntimeError(f"reflection needs more frames than padding; the input has {depth}")
        return mirrored

    def _pack(self, codes: Tensor) -> Tensor:
        return ops.pack_weight(codes.transpose(1, 2).flatten(1, 2).contiguous(), self.weight_groups)

    @property
    def int8_weight(self) -> Tensor:
        """The int8 codes in the float weight's shape: a new tensor at each access; assign to replace them."""
        n, c, kd, kh, kw = self.weight_size
        rows = ops.unpack_weight(self.packed_weight, [n, kd * c, kh, kw], self.weight_groups)
        return rows.view(n, kd, c, kh, kw).transpose(1, 2).contiguous()

    @int8_weight.setter
    def int8_weight(self, codes: Tensor) -> None:
        self.packed_weight = self._pack(codes)
