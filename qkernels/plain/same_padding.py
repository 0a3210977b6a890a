"""A convolution padded as TensorFlow's SAME: by as much as this input needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[int, int]


class SamePaddedConv2d(nn.Module):
    """``conv``, an ``nn.Conv2d`` without padding, of an input padded to an output of ``ceil(size / stride)`` pixels.

    ``x`` is [N, C, H, W] or [C, H, W]; the odd pixel of padding is right and below. ``weight`` and ``bias`` are
    those of ``conv``.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or any(p for p in conv.padding if p != "valid"):
            raise ValueError(f"the convolution inside is padded already: padding={conv.padding!r}")
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_same(x, self.conv.kernel_size, self.conv.stride, self.conv.dilation))  # type: ignore[arg-type]

    def scheme(self) -> dict[str, Any]:
        """What ``from_scheme`` needs to build this module without its tensors; JSON-able."""
        conv = self.conv
        return {
            "kind": "SamePaddedConv2d",
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "kernel_size": list(conv.kernel_size),
            "stride": list(conv.stride),
            "dilation": list(conv.dilation),
            "groups": conv.groups,
            "bias": conv.bias is not None,
        }

    @classmethod
    def from_scheme(cls, scheme: dict[str, Any]) -> SamePaddedConv2d:
        """An empty module of this scheme; built under ``torch.device("meta")`` too."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in scheme.items()
        }
        del values["kind"]
        return cls(nn.Conv2d(**values))

    @property
    def weight(self) -> Tensor:
        """The weight of the convolution."""
        return self.conv.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the convolution, if it has one."""
        return self.conv.bias


def pad_same(x: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """``x`` [..., H, W] with zeros around it, see `SamePaddedConv2d`."""
    borders: list[int] = []
    for size, k, s, d in zip(x.shape[-2:], kernel, stride, dilation, strict=True):
        last = (
            torch.sym_max(-(-size // s) - 1, 0) * s + d * (k - 1) + 1
        )  # one past the last pixel read
        total = torch.sym_max(last - size, 0)
        borders = [total // 2, total - total // 2, *borders]
    return F.pad(x, borders)
