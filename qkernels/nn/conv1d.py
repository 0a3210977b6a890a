"""A drop-in int8 ``nn.Conv1d``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.nn.convolution import QuantConvolution

_conv2d = torch.ops.qkernels.conv2d


class QuantConv1d(QuantConvolution, nn.Conv1d):
    """``nn.Conv1d`` with an int8 weight [out_channels, in_channels / groups, K]: a 2-D convolution of height 1.

    ``x`` [N, C, L] may have any strides; the output of a transposed [N, L, C] is laid out as that is.
    """

    DIMENSIONS = 1

    def forward(self, input: Tensor) -> Tensor:
        x = self._batch(input).unsqueeze(2)
        b, [(left, right)] = self._buffers, self._borders
        y = _conv2d(
            x, b["packed_weight"], b["weight_scale"], b["bias"], b["input_scale"], b["input_zero_point"],
            self.symmetric, (1, *self.kernel_size), (1, *self.stride), [left, right, 0, 0], (1, *self.dilation),
            self.groups, self.padding_mode,
        )  # fmt: skip
        return self._unbatch(y.squeeze(2), input)

    def _pack(self, codes: Tensor) -> Tensor:
        return ops.pack_weight(codes.unsqueeze(2), self.weight_groups)

    @property
    def int8_weight(self) -> Tensor:
        """The int8 codes in the float weight's shape: a new tensor at each access; assign to replace them."""
        n, c, k = self.weight_size
        return ops.unpack_weight(self.packed_weight, [n, c, 1, k], self.weight_groups).squeeze(2)

    @int8_weight.setter
    def int8_weight(self, codes: Tensor) -> None:
        self.packed_weight = self._pack(codes)
