"""A transposed convolution as one ordinary convolution.

Output t of one axis, counted from the first one that any input reaches, is the sum of ``x[i] * w[k]`` over all
``i * stride + k * dilation = t``. Outputs of one phase, ``t mod stride``, read the same taps: those with
``k * dilation = phase`` modulo the stride, at consecutive inputs. So each phase is an ordinary convolution of the input
with ``ceil(span / stride)`` taps, and all phases together are one convolution with stride times as many output
channels. Only multiplications by taps that a phase lacks are added to those of the definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """How one input is padded, and where the result lies in the interleaved outputs.

    Attributes:
        borders: padding left, right, top, bottom.
        start, size: first output and number of outputs of each axis.
    """

    borders: list[int]
    start: Pair
    size: Pair


@dataclass(frozen=True)
class Phases:
    """The phases of a kernel of two axes.

    Attributes:
        kernel, stride, dilation: of the transposed convolution.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair

    @property
    def count(self) -> int:
        return self.stride[0] * self.stride[1]

    @property
    def spread(self) -> Pair:
        """The dilation of the ordinary convolution; with a stride, taps lie densely."""
        return tuple(d if s == 1 else 1 for s, d in zip(self.stride, self.dilation, strict=True))

    @property
    def taps(self) -> Pair:
        """The kernel of the ordinary convolution."""
        spans = zip(self.kernel, self.stride, self.dilation, self.spread, strict=True)
        return tuple((k - 1) * d // s // e + 1 for k, s, d, e in spans)

    def _places(self, axis: int) -> tuple[list[int], list[int]]:
        """The phase and the tap of each tap of the transposed kernel; inputs are read backwards."""
        stride, last = self.stride[axis], self.taps[axis] - 1
        steps = [k * self.dilation[axis] for k in range(self.kernel[axis])]
        phases = [step % stride for step in steps]
        return phases, [last - step // stride // self.spread[axis] for step in steps]

    def _index(self) -> tuple[Tensor, ...]:
        """(phase, phase, tap, tap) of each tap [KH, KW]."""
        (ph, th), (pw, tw) = ([torch.tensor(v) for v in self._places(axis)] for axis in (0, 1))
        return ph[:, None], pw[None], th[:, None], tw[None]

    def split(self, rows: Tensor) -> Tensor:
        """A weight [OC, C, KH, KW] as that of the phases, [OC * phases, C, TH, TW]; 0 where a phase lacks a tap."""
        oc, c = rows.shape[:2]
        out = rows.new_zeros((*self.stride, *self.taps, oc, c))
        out[tuple(i.to(rows.device) for i in self._index())] = rows.permute(2, 3, 0, 1)
        return out.permute(4, 0, 1, 5, 2, 3).reshape(oc * self.count, c, *self.taps)

    def joined(self, phases: Tensor) -> Tensor:
        """The inverse of `split`."""
        oc, c = phases.shape[0] // self.count, phases.shape[1]
        parts = phases.view(oc, *self.stride, c, *self.taps).permute(1, 2, 4, 5, 0, 3)
        taps = parts[tuple(i.to(phases.device) for i in self._index())]
        return taps.permute(2, 3, 0, 1).contiguous()

    def cut(self, size: Pair, padding: Pair, output_padding: Pair) -> Cut:
        """Padding and crop for an input of this size, so that no output is computed that is cut whole.

        Raises:
            RuntimeError: for an output without elements.
        """
        borders: list[int] = []
        start, out = [], []
        for axis, (length, p, more) in enumerate(zip(size, padding, output_padding, strict=True)):
            s, reach = self.stride[axis], self.dilation[axis] * (self.kernel[axis] - 1)
            n = (length - 1) * s - 2 * p + reach + more + 1
            if n < 1:
                raise RuntimeError(f"an input of {list(size)} gives an output of size {n}, less than 1")  # fmt: skip
            read = (self.taps[axis] - 1) * self.spread[axis]  # inputs before the first
            skipped = min(p // s, read)  # outputs of each phase that the padding cuts
            after = max((p + n - 1) // s - (length - 1), 0)
            borders = [read - skipped, after, *borders]
            start.append(p - skipped * s)
            out.append(n)
        return Cut(borders, tuple(start), tuple(out))

    def interleaved(self, y: Tensor, cut: Cut) -> Tensor:
        """The outputs of all phases [N, OC * phases, H, W] in their order, [N, OC, OH, OW]; in the layout of ``y``."""
        last = y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
        sh, sw = self.stride
        n, _, h, w = y.shape
        y = y.view(n, -1, sh, sw, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, h * sh, w * sw)
        (top, left), (oh, ow) = cut.start, cut.size
        y = y[:, :, top : top + oh, left : left + ow]
        return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
