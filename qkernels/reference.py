"""The numerics contract in plain PyTorch: slow, obvious, and the oracle of every test.

Kernels return these bits on every instruction set, thread count and device. The same contract stands in words in
``docs/numerics.md`` and in C++ in ``csrc/core/epilogue.h``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_K = 65535  # 255 * 127 * K stays below 2**31
TINY_RANGE = 1e-30  # below it, everything quantizes to real 0
HUGE_RANGE = torch.finfo(torch.float32).max


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` in float32, rounded once.

    The product of two float32 is exact in float64. Their float64 sum is rounded to odd (Boldo and Melquiond, 2008),
    so that the second rounding, to float32, is the only one that counts.
    """
    product, addend = a.double() * b.double(), c.double()
    product, addend = torch.broadcast_tensors(product, addend)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)  # Knuth's TwoSum: total + error is exact
    bits = total.contiguous().view(torch.int64)
    inexact = (error != 0) & torch.isfinite(total) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)  # the exact value lies further from zero
    return torch.where(inexact, bits + torch.where(away, 1, -1), bits).view(torch.float64).float()


def clamp(y: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """``low`` where ``y`` is NaN; zeros of either sign compare equal, and the bound wins."""
    low, high = (torch.as_tensor(v, dtype=torch.float32, device=y.device) for v in (low, high))
    y = torch.where(y > low, y, low)
    return torch.where(y < high, y, high)


def round_to_int8(x: Tensor, inv_scale: Tensor, zero_point: Tensor) -> Tensor:
    """``saturate(round_half_even(x * inv_scale) + zero_point, -128, 127)``; NaN gives -128."""
    zero = zero_point.float()
    return (torch.round(clamp(x * inv_scale, -128 - zero, 127 - zero)) + zero).to(torch.int8)


def dynamic_scale(x: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) of each row of ``x`` [rows, cols]; NaN is ignored."""
    x = torch.where(torch.isnan(x), 0.0, x.float())
    low, high = x.amin(1).clamp(-HUGE_RANGE, 0), x.amax(1).clamp(0, HUGE_RANGE)
    if symmetric:
        span = torch.maximum(-low, high)
        scale = torch.where(span < TINY_RANGE, 1.0, span / 127)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    span = high - low
    step = torch.where(span <= HUGE_RANGE, span / 255, high / 255 - low / 255)
    scale = torch.where(span < TINY_RANGE, 1.0, step)
    zero = torch.round((-128 - low * (1 / scale)).clamp(-128, 127)).to(torch.int32)
    return scale, torch.where(span < TINY_RANGE, 0, zero)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``x`` [rows, cols] to int8 with one scale for all or one a row."""
    return round_to_int8(x.float(), (1 / scale).view(-1, 1), zero_point.view(-1, 1))


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    """``float(q - zero_point) * scale`` for ``q`` [rows, cols]."""
    y = (q.to(torch.int32) - zero_point.view(-1, 1)).float() * scale.view(-1, 1)
    return clamp(y, -torch.inf, torch.inf).to(dtype)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 in [-127, 127] with ``scale[n] = max|weight[n]| / 127``; a zero channel has scale 1."""
    flat = weight.detach().float().reshape(weight.shape[0], -1)
    scale, zero = dynamic_scale(flat, symmetric=True)
    return quantize(flat, scale, zero).clamp(min=-127).view(weight.shape), scale


@dataclass
class Epilogue:
    """The steps from sums to the output; defaults leave a step out."""

    bias: Tensor | None = None
    residual: Tensor | None = None
    residual_scale: float = 1.0
    residual_zero_point: int = 0
    activation: str = "identity"  # of `FUNCTIONS`
    parameter: float = 1.0
    clamp_min: float | None = None
    clamp_max: float | None = None
    out_dtype: torch.dtype = torch.float32
    output_scale: float = 1.0
    output_zero_point: int = 0

    def __call__(self, total: Tensor, scale: Tensor) -> Tensor:
        """``total`` [M, N] int32 or float32; ``scale`` [M or 1, N] the product of both scales, rounded once."""
        bias = torch.zeros(1) if self.bias is None else self.bias
        y = fma(total.float(), scale, bias)
        if self.residual is not None:
            y = y + self._real_residual()
        return self.store(FUNCTIONS[self.activation](y, _float32(self.parameter)))

    def store(self, y: Tensor) -> Tensor:
        """Clamp and output of float32 values, whatever computed them."""
        low = -torch.inf if self.clamp_min is None else self.clamp_min
        high = torch.inf if self.clamp_max is None else self.clamp_max
        y = clamp(y, low, high)
        if self.out_dtype != torch.int8:
            return y.to(self.out_dtype)
        inv_scale = 1 / torch.tensor(self.output_scale, dtype=torch.float32)
        return round_to_int8(y, inv_scale, torch.tensor(self.output_zero_point))

    def _real_residual(self) -> Tensor:
        assert self.residual is not None
        if self.residual.dtype != torch.int8:
            return self.residual.float()
        steps = self.residual.to(torch.int32) - self.residual_zero_point
        return steps.float() * torch.tensor(self.residual_scale, dtype=torch.float32)


@dataclass
class Operand:
    """Values that a step reads as float32: float32 itself, or int8 of a scale."""

    values: Tensor
    scale: float = 1.0
    zero_point: int = 0

    def floats(self) -> Tensor:
        """``values``, or ``float(q - zero_point) * scale`` of int8."""
        if self.values.dtype != torch.int8:
            return self.values
        return (self.values.int() - self.zero_point).float() * _float32(self.scale)


def _float32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def matmul_s8(x: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
    """``sum_k (x[m,k] - zero_point[m]) * weight[n,k]`` in int32, for x [M, K] and weight [N, K] int8."""
    # Exact: float64 holds integers to 2**53, and its matmul is fast.
    total = x.double() @ weight.double().T
    return (total - zero_point.view(-1, 1).double() * weight.double().sum(1)).to(torch.int32)


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    epilogue: Epilogue,
) -> Tensor:
    """x [M, K] int8 with scale [1] or [M]; weight [N, K] int8 with weight_scale [N]."""
    total = matmul_s8(x, weight, zero_point)
    return epilogue(total, scale.view(-1, 1) * weight_scale)


def linear_weight_only(
    x: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> Tensor:
    """x [M, K] float; four partial sums by k mod 4, each in increasing k, then (s0 + s1) + (s2 + s3)."""
    x = F.pad(x.float(), (0, -x.shape[1] % 4))
    w = F.pad(weight.float(), (0, -weight.shape[1] % 4))
    sums = [torch.zeros(x.shape[0], w.shape[0]) for _ in range(4)]
    for k in range(x.shape[1]):
        sums[k % 4] = fma(x[:, k, None], w[None, :, k], sums[k % 4])
    return epilogue((sums[0] + sums[1]) + (sums[2] + sums[3]), weight_scale.view(1, -1))


def pad_image(
    x: Tensor, padding: tuple[int, int, int, int], mode: str, zero_point: Tensor
) -> Tensor:
    """x [N, C, H, W] int8; padding left, right, top, bottom; ``zeros`` pads with the image's zero point."""
    if mode != "zeros":
        return F.pad(x.float(), padding, mode=mode).to(torch.int8) if any(padding) else x
    left, right, top, bottom = padding
    n, c, h, w = x.shape
    out = (
        zero_point.to(torch.int8)
        .view(-1, 1, 1, 1)
        .expand(n, c, h + top + bottom, w + left + right)
        .clone()
    )
    out[:, :, top : top + h, left : left + w] = x
    return out


def conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    epilogue: Epilogue,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """x [N, C, H, W] int8 with scale [1] or [N]; weight [OC, C/groups, KH, KW] int8, as the residual."""
    x = pad_image(x, padding, padding_mode, zero_point)
    total = F.conv2d(x.double(), weight.double(), None, stride, 0, dilation, groups)
    total = total - zero_point.view(-1, 1, 1, 1).double() * weight.double().sum((1, 2, 3)).view(
        1, -1, 1, 1
    )
    n, oc, oh, ow = total.shape
    rows = total.permute(0, 2, 3, 1).reshape(-1, oc).to(torch.int32)
    image_scale = (
        scale.view(-1, 1).expand(n, oh * ow).reshape(-1, 1)
        if scale.numel() > 1
        else scale.view(1, 1)
    )
    if epilogue.residual is not None:
        epilogue = replace(epilogue, residual=epilogue.residual.permute(0, 2, 3, 1).reshape(-1, oc))
    return epilogue(rows, image_scale * weight_scale).view(n, oh, ow, oc).permute(0, 3, 1, 2)


def max_pool2d(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The integers' maximum; padding never wins, and a window of nothing but padding gives -128."""
    return F.max_pool2d(x.float(), *args, **kwargs).clamp(min=-128).to(torch.int8)


def lookup(x: Tensor, table: Tensor) -> Tensor:
    return table[x.long() + 128]


def embedding(ids: Tensor, table: Tensor, scale: Tensor | None = None) -> Tensor:
    """The rows of ``table`` [rows, C] that int64 ``ids`` name, float32; those of int8 times their ``scale`` [rows]."""
    rows = table[ids].float()
    return rows if scale is None else rows * scale[ids][..., None]


def cumsum(x: Tensor, axis: int) -> Tensor:
    """The sums of float32 ``x`` up to each place of an axis, in increasing index."""
    sums = [torch.zeros_like(x.select(axis, 0))]
    for part in x.unbind(axis):
        sums.append(sums[-1] + part)
    return torch.stack(sums[1:], axis)


def argmax(x: Tensor, axis: int) -> Tensor:
    """The place of the first of the largest along an axis, which becomes 1, as float32; a NaN is largest."""
    nan = x.isnan()
    largest = torch.where(nan.any(axis, keepdim=True), nan, x == x.amax(axis, keepdim=True))
    places = torch.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.dim())])
    return torch.where(largest, places, x.shape[axis]).amin(axis, keepdim=True).float()


def gather(x: Tensor, index: Tensor) -> Tensor:
    """The rows [N, C] of ``x`` [N, T, C] that float32 ``index`` [N, 1] names, one of each sequence."""
    return x[torch.arange(len(x)), index[:, 0].long()]


def resize_bilinear(
    x: Tensor,
    size: tuple[int, int],
    scales: tuple[float, float] = (0.0, 0.0),
    *,
    align_corners: bool = False,
) -> Tensor:
    """``x`` [N, C, H, W], float32 or int8, to ``size``: four pixels times their weights, in float32.

    They are added in rows, then in columns; int8 rounds half to even. ``scales``: of the sizes; 0: their ratio.
    """
    up, down, below = _taps(x.shape[2], size[0], scales[0], align_corners)
    left, right, behind = _taps(x.shape[3], size[1], scales[1], align_corners)
    below, values = below[:, None], x.float()
    y = ((1 - below) * (1 - behind)) * values[:, :, up][..., left]
    y = y + ((1 - below) * behind) * values[:, :, up][..., right]
    y = y + (below * (1 - behind)) * values[:, :, down][..., left]
    y = y + (below * behind) * values[:, :, down][..., right]
    return y if x.dtype == torch.float32 else torch.round(y).to(torch.int8)


def _taps(n: int, out: int, scale: float, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The two rows or columns that each of the output lies between, and the second one's share."""
    i = torch.arange(out)
    if n == out:
        return i, i, torch.zeros(out)
    if align_corners:
        at = i.float() * (torch.tensor(float(n - 1)) / max(out - 1, 1))
    else:
        ratio = torch.tensor(1 / scale) if scale else torch.tensor(float(n)) / out
        at = ((i.float() + 0.5) * ratio - 0.5).clamp(min=0)
    first = at.long().clamp(max=n - 1)
    return first, (first + 1).clamp(max=n - 1), (at - first).clamp(0, 1)


def mean_pool2d(x: Tensor) -> Tensor:
    """Pixels added one after the other in float32, times the rounded 1 / (H * W)."""
    pixels = x.flatten(2).unbind(2)
    total = torch.zeros_like(pixels[0])
    for pixel in pixels:
        total = total + pixel
    return (total * (1 / torch.tensor(float(len(pixels)))))[:, :, None, None]


def avg_pool2d(x: Tensor, zero_point: int, *args: Any, **kwargs: Any) -> Tensor:
    """``round_half_even(sum * (1 / count))``; padding, where counted, is real 0, that is the zero point."""
    steps = x.double() - zero_point
    kwargs.pop("divisor_override", None)
    ones = F.avg_pool2d(torch.ones_like(steps[:1, :1]), *args, **{**kwargs, "divisor_override": 1})
    total = F.avg_pool2d(steps, *args, **{**kwargs, "divisor_override": 1})
    mean_of_ones = F.avg_pool2d(torch.ones_like(steps[:1, :1]), *args, **kwargs)
    count = torch.round(ones / mean_of_ones)
    total = total + zero_point * count
    return torch.round(total.float() * (1 / count.float())).to(torch.int8)


def row_sums(x: Tensor) -> Tensor:
    """The sums of the last axis, which becomes 1.

    Sixteen partial sums by index mod 16, each in increasing index; then the upper half is added to the lower until one
    is left.
    """
    return _halved(x, lambda total, part: total + part)


def square_sums(x: Tensor) -> Tensor:
    """The `row_sums` of squares: each partial sum is a chain of `fma`."""
    return _halved(x, lambda total, part: fma(part, part, total))


_Join = Callable[[Tensor, Tensor], Tensor]


def _halved(x: Tensor, add: _Join, join: _Join = torch.add, start: float = 0.0) -> Tensor:
    parts = F.pad(x, (0, -x.shape[-1] % 16), value=start).unflatten(-1, (-1, 16))
    total = torch.full_like(parts[..., 0, :], start)
    for part in parts.unbind(-2):
        total = add(total, part)
    while total.shape[-1] > 1:
        low, high = total.chunk(2, -1)
        total = join(low, high)
    return total


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, epilogue: Epilogue
) -> Tensor:
    """x [..., C] float32; weight and bias [C]. Of ``epilogue``, only the output."""
    away = x - row_sums(x) / _float32(x.shape[-1])
    return _normalized(away, square_sums(away), x.shape[-1], weight, bias, epsilon, epilogue)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, epilogue: Epilogue) -> Tensor:
    """Layer normalization whose mean and bias are 0."""
    bias = torch.zeros_like(weight)
    return _normalized(x - 0.0, square_sums(x), x.shape[-1], weight, bias, epsilon, epilogue)


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, epilogue: Epilogue
) -> Tensor:
    """x [N, H, W, C] float32, over the pixels and the channels of a group; weight and bias [C].

    Pixels of a line are added one after the other, then lines, then the channels of a group.
    """
    n, h, w, c = x.shape
    each = c // groups

    def joined(v: Tensor, add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        lines = _in_order(v.unbind(2), add)  # [N, H, C]
        channels = _in_order(lines.unbind(1), torch.add).view(n, groups, each)
        return _in_order(channels.unbind(2), torch.add).repeat_interleave(each, 1)[:, None, None]

    count = h * w * each
    away = x - joined(x, torch.add) / _float32(count)
    squares = joined(away, lambda total, part: fma(part, part, total))
    return _normalized(away, squares, count, weight, bias, epsilon, epilogue)


def _normalized(
    away: Tensor, squares: Tensor, count: int, weight: Tensor, bias: Tensor, epsilon: float, epilogue: Epilogue
) -> Tensor:  # fmt: skip
    variance = squares / _float32(count) + _float32(epsilon)
    return epilogue.store(fma(away * (1 / _sqrt(variance)), weight, bias))


def _in_order(parts: Sequence[Tensor], add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Parts added one after the other, from 0."""
    total = torch.zeros_like(parts[0])
    for part in parts:
        total = add(total, part)
    return total


_EXP2 = (
    1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1,
    6.931472028550421e-1, 1.0,
)  # fmt: skip
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
# Rows: from the highest power down; columns: the pieces.
_GELU = (
    (-0.00207720208, -0.00455497298, 0.000200474649, 0.00156643114,
     0.000119845448, -0.000153874455, -3.8375947e-05, -3.56827263e-06),
    (0.0197127834, 0.00216487027, -0.00993374642, -0.00294856215,
     0.00105039217, 0.0005462892, 8.41999281e-05, 6.00871908e-06),
    (-0.000272220757, 0.0495410375, 0.0243498478, -0.00392155116,
     -0.004828515, -0.00115396117, -0.000122889105, -6.68009625e-06),
    (-0.210981578, -0.119148612, 0.00421105325, 0.026956588,
     0.00991407875, 0.00159167219, 0.000131390771, 5.88818375e-06),
    (0.363635331, 0.00786471553, -0.0935103372, -0.0479878485,
     -0.0109473672, -0.00131818361, -8.81856104e-05, -3.35163986e-06),
    (0.0, 0.169839725, 0.106033206, 0.0317703933,
     0.0052723838, 0.00050276093, 2.79154829e-05, 9.07858123e-07),
)  # fmt: skip


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """One chain of `fma` from the highest power to the constant."""
    y = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y = fma(y, x, _float32(c))
    return y


def _power_of_two(n: Tensor) -> Tensor:
    """2^n of whole n in [-127, 128]; 2^-127 counts as 0, 2^128 is infinite."""
    return ((n.int() + 127) << 23).view(torch.float32)


def maximum(a: Tensor, b: Tensor | float) -> Tensor:
    """``a > b ? a : b``: b where one of them is NaN."""
    a, b = torch.broadcast_tensors(a, torch.as_tensor(b, dtype=torch.float32))
    return torch.where(a > b, a, b)


def minimum(a: Tensor, b: Tensor | float) -> Tensor:
    """``a < b ? a : b``: b where one of them is NaN."""
    a, b = torch.broadcast_tensors(a, torch.as_tensor(b, dtype=torch.float32))
    return torch.where(a < b, a, b)


def exp2(t: Tensor) -> Tensor:
    """2^t for t <= 0; 0 below -126.5 and for NaN.

    2^f, f in [-0.5, 0.5], is the polynomial of Cephes' exp2f, and is multiplied by 2^n.
    """
    t = maximum(t, -127.0)
    n = torch.round(t)
    return polynomial(_EXP2, t - n) * _power_of_two(n)


def _split_exponent(x: Tensor) -> tuple[Tensor, Tensor]:
    """x * log2(e) as a whole number and the rest."""
    high = _float32(math.log2(math.e))
    n = torch.round(x * high)
    low = _float32(math.log2(math.e) - high.item())
    return n, fma(x, low, fma(x, high, 0.0 - n))


def exp(x: Tensor) -> Tensor:
    """e^x; 0 below -87.0 and for NaN."""
    n, f = _split_exponent(minimum(maximum(x, -87.0), 89.0))
    return polynomial(_EXP2, f) * _power_of_two(n - 1) * 2


def expm1(x: Tensor) -> Tensor:
    """e^x - 1 of x up to 88."""
    n, f = _split_exponent(minimum(maximum(x, -87.0), 88.0))
    power = _power_of_two(n)
    return fma(polynomial(_EXP2[:-1], f) * f, power, power - 1)


def tanh(x: Tensor) -> Tensor:
    e = expm1(minimum(maximum(x + x, -20.0), 20.0))
    return e / (e + 2)


def log(x: Tensor) -> Tensor:
    """The natural logarithm, by the polynomial of Cephes' logf; -inf for what is not above 0 and for NaN."""
    small = x < torch.finfo(torch.float32).tiny
    bits = torch.where(small, x * 2.0**24, x).contiguous().view(torch.int32)
    n = (bits - 0x3F3504F3) >> 23
    r = (bits - (n << 23)).view(torch.float32) - 1
    e = n.float() + torch.where(small, -24.0, 0.0)
    square = r * r
    y = fma(e, _float32(-2.12194440e-4), polynomial(_LOG, r) * (r * square))
    y = fma(e, _float32(0.693359375), r + fma(square, _float32(-0.5), y))
    return torch.where(x > 0, torch.where(x < torch.inf, y, x), -torch.inf)


_EIGHTHS_OF_E = 8 * math.log2(math.e)
_WITHIN_EIGHTH = (
    0.000108396292,
    0.00375412614,
    0.0866433978,
    1.0,
)  # 2^(r / 8) for r in [-0.5, 0.5]


def reciprocal(x: Tensor) -> Tensor:
    """1 / x within a unit of the last place, for x in [1, 2^125].

    A guess of its bits, within an eighth, is corrected twice by ``y + y * (e + e^2)`` of the error ``e = 1 - x * y``.
    """
    y = (0x7EF311C7 - x.view(torch.int32)).view(torch.float32)
    for _ in range(2):
        e = fma(-x, y, _float32(1.0))
        y = fma(y, fma(e, e, e), y)
    return y


def _gated(x: Tensor, t: Tensor) -> Tensor:
    """``x / (1 + 2^(t / 8))``, where the eighths are a table, the rest is a polynomial, and the quotient a product."""
    t = minimum(maximum(t, -1008.0), 992.0)
    n = torch.round(t)
    eighths = torch.exp2(torch.arange(8, dtype=torch.float64) / 8).float()
    part = eighths[n.long() & 7] * polynomial(_WITHIN_EIGHTH, t - n)
    return x * reciprocal(1 + part * _power_of_two(n.long() >> 3))


def gelu(x: Tensor) -> Tensor:
    """``max(x, 0) - g(|x|)``, where ``g(a) = a * (1 - erf(a / sqrt(2))) / 2`` is piecewise a polynomial.

    Of ``a * 1.375`` the nearest whole number is the piece, and the rest its variable. From 5.45 on, a is that.
    """
    a = minimum(torch.abs(x), 5.453125)
    steps, whole = _float32(1.375), _float32(1.5 * 2**23)  # their sums are whole numbers
    total = fma(a, steps, whole)
    rest = fma(a, steps, whole - total)
    first, *others = (
        torch.tensor(row, dtype=torch.float32)[(total - whole).long()] for row in _GELU
    )
    g = first
    for c in others:
        g = fma(g, rest, c)
    return maximum(torch.zeros(1), x) - g


def _gelu_tanh(x: Tensor) -> Tensor:
    slope = -2 * math.sqrt(2 / math.pi) * _EIGHTHS_OF_E
    return _gated(x, x * fma(x * x, _float32(slope * 0.044715), _float32(slope)))


def _sixth(x: Tensor) -> Tensor:
    return minimum(maximum(x + 3, 0.0), 6.0) * _float32(1 / 6)


def _softplus(x: Tensor) -> Tensor:
    e = exp(0.0 - torch.abs(x))
    u = 1 + e
    return maximum(x, 0.0) + (log(u) + (e - (u - 1)) / u)


def _mish(x: Tensor) -> Tensor:
    e = exp(minimum(x, 20.0))
    n = e * (e + 2)
    return x * (n / (n + 2))


def _sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x.double()).float()  # IEEE's; that of float32 may be off by one unit


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda x, _: x,
    "silu": lambda x, beta: _gated(x, x * (beta * _float32(-_EIGHTHS_OF_E))),
    "gelu": lambda x, _: gelu(x),
    "gelu_tanh": lambda x, _: _gelu_tanh(x),
    "hardswish": lambda x, _: x * _sixth(x),
    "hardsigmoid": lambda x, _: _sixth(x),
    "sigmoid": lambda x, _: _gated(torch.ones(1), x * _float32(-_EIGHTHS_OF_E)),
    "tanh": lambda x, _: tanh(x),
    "elu": lambda x, alpha: torch.where(x > 0, x, alpha * expm1(x)),
    "leaky_relu": lambda x, slope: torch.where(x > 0, x, slope * x),
    "exp": lambda x, _: exp(x),
    "log": lambda x, _: log(x),
    "sqrt": lambda x, _: _sqrt(x),
    "rsqrt": lambda x, _: 1 / _sqrt(x),
    "reciprocal": lambda x, _: 1 / x,
    "abs": lambda x, _: torch.abs(x),
    "neg": lambda x, _: -x,
    "square": lambda x, _: x * x,
    "softplus": lambda x, _: _softplus(x),
    "mish": lambda x, _: _mish(x),
}
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": maximum,
    "min": minimum,
}


def unary(x: Operand, function: str, parameter: float, epilogue: Epilogue) -> Tensor:
    """A function of `FUNCTIONS` of every number."""
    return epilogue.store(FUNCTIONS[function](x.floats(), _float32(parameter)))


def binary(a: Operand, b: Operand, op: str, epilogue: Epilogue) -> Tensor:
    """An operation of `OPERATIONS` on numbers that broadcast."""
    return epilogue.store(OPERATIONS[op](a.floats(), b.floats()))


def affine(x: Tensor, weight: Tensor, bias: Tensor, epilogue: Epilogue) -> Tensor:
    """x [..., C] float32 times a factor, plus a summand, of each channel; weight and bias [C]."""
    return epilogue.store(Epilogue().store(x * weight) + bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [..., M, K] by b [..., K, N] in float32, each sum one chain of `fma` in increasing k."""
    total = torch.zeros(*a.shape[:-1], b.shape[-1])
    for k in range(a.shape[-1]):
        total = fma(a[..., k, None], b[..., k, None, :], total)
    return total


def softmax(x: Operand, epilogue: Epilogue, *, logarithm: bool = False) -> Tensor:
    """Softmax over the last axis, as the weights of `attention`, or their logarithm."""
    v = x.floats()
    away = v - _largest(v)
    weights = exp2(away * _float32(math.log2(math.e)))
    if logarithm:
        return epilogue.store(away - log(row_sums(weights)))
    return epilogue.store(weights * _inverse(row_sums(weights)))


def _largest(x: Tensor) -> Tensor:
    return torch.where(torch.isnan(x), -torch.inf, x).amax(-1, keepdim=True)


def _inverse(total: Tensor) -> Tensor:
    """1 / total; 0 where every score of the row is -inf or NaN."""
    return torch.where(total > 0, 1 / total, 0.0)


def attention(
    query: Tensor, key: Tensor, value: Tensor, exponent: float, epilogue: Epilogue,
    *, bias: Tensor | None = None, causal: bool = False,
) -> Tensor:  # fmt: skip
    """query [N, heads, T, d], key [N, kv heads, S, d] and value [N, kv heads, S, e], float32, to [N, T, heads * e].

    ``exponent``: log2(e) times the scale of scores; ``bias`` broadcasts to [N, heads, T, S]; ``causal``: token i reads
    keys 0 to i.

    Scores less the largest of their row (NaN is ignored) become powers of two, which weigh the values; their sum
    divides last. Of ``epilogue``, only the output.
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (v.repeat_interleave(shared, 1) for v in (key, value))
    scores, factor = matmul(query, key.transpose(2, 3)), _float32(exponent)
    if bias is not None:
        scores = fma(scores, factor * _float32(math.log(2)), bias)
        factor = _float32(math.log2(math.e))
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = torch.where(later, -torch.inf, scores)
    weights = exp2((scores - _largest(scores)) * factor)
    y = matmul(weights, value) * _inverse(row_sums(weights))
    return epilogue.store(y.transpose(1, 2).flatten(2))


WEIGHT_STEPS = 127 * 128  # in which int8 attention counts its weights
# `WEIGHT_STEPS` times 2^f for f in [-0.5, 0.5], fitted to the least error, 0.04 of a step.
_WEIGHT = (157.450882, 909.06842, 3904.99438, 11267.376, 16256.0029)


def attention_s8(
    query: Tensor, key: Tensor, value: Tensor, exponent: float, epilogue: Epilogue,
    *, bias: Tensor | None = None, causal: bool = False,
) -> Tensor:  # fmt: skip
    """`attention` by products of int8, whose sums are exact.

    Queries, and keys less their mean over all tokens, which no softmax shows (SageAttention, arXiv 2410.02367), become
    int8 with a scale a token, values with a scale a channel. Weights are counted in steps of 1 / `WEIGHT_STEPS`, as
    ``128 * high + low``, and divided by the sum of these.
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (v.repeat_interleave(shared, 1) for v in (key, value))
    mean = _in_order(key.unbind(2), torch.add) * (1 / _float32(key.shape[2]))
    factor = _float32(exponent) * (1 if bias is None else _float32(math.log(2)))
    (q, q_scale), (k, k_scale), (v, v_scale) = map(
        _rows_to_int8, (query, key - mean[:, :, None], value.transpose(2, 3))
    )
    scores = (q @ k.transpose(2, 3)).float() * (
        (q_scale * factor)[..., None] * k_scale[..., None, :]
    )
    if bias is not None:
        scores, factor = scores + bias, _float32(math.log2(math.e))
    else:
        factor = _float32(1.0)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = torch.where(later, -torch.inf, scores)
    away = maximum((scores - _largest(scores)) * factor, -16.0)
    n = torch.round(away)
    weights = torch.round(polynomial(_WEIGHT, away - n) * _power_of_two(n)).long()
    inverse = _inverse(weights.sum(-1, keepdim=True).float())
    high, low = (
        (part.double() @ v.transpose(2, 3)).float() for part in (weights >> 7, weights & 127)
    )
    y = high * (inverse * 128 * v_scale[..., None, :]) + low * (inverse * v_scale[..., None, :])
    return epilogue.store(y.transpose(1, 2).flatten(2))


def _rows_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the last axis as whole numbers in [-127, 127], float64, and a scale for each; NaN is -127."""
    rows = x.flatten(0, -2)
    scale, zero = dynamic_scale(rows, symmetric=True)
    return quantize(rows, scale, zero).clamp(min=-127).double().view(x.shape), scale.view(
        x.shape[:-1]
    )


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[N, T, heads * d] as [N, heads, T, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": torch.add,
    "sum": torch.add,
    "max": lambda total, part: maximum(part, total),
    "min": lambda total, part: minimum(part, total),
}
_STARTS = {"mean": 0.0, "sum": 0.0, "max": -torch.inf, "min": torch.inf}


def reduce(
    x: Operand, op: str, epilogue: Epilogue, *, pixels: Sequence[int] = (), channels: bool = False
) -> Tensor:
    """x over the axes ``pixels`` and, where ``channels``, over the last one; they become 1.

    Pixels of float32 are joined one after the other; sums of int8 are exact, then scaled. What they give is joined over
    channels as `row_sums` adds. A mean is the sum times the rounded 1 / count.
    """
    count = math.prod(x.values.shape[axis] for axis in pixels)
    v = x.floats()
    if count > 1 and x.values.dtype == torch.int8 and op in ("mean", "sum"):
        steps = (x.values.long() - x.zero_point).sum(list(pixels), keepdim=True)
        v = steps.float() * _float32(x.scale)
    elif count > 1:
        size = [1 if axis in pixels else n for axis, n in enumerate(v.shape)]
        kept = [axis for axis in range(v.dim()) if axis not in pixels]
        parts = v.permute(*pixels, *kept).flatten(0, len(pixels) - 1)
        total = torch.full_like(parts[0], _STARTS[op])
        for part in parts:
            total = REDUCTIONS[op](total, part)
        v = total.reshape(size)
    if channels:
        count *= v.shape[-1]
        v = _halved(v, REDUCTIONS[op], REDUCTIONS[op], _STARTS[op])
    return epilogue.store(v * (1 / _float32(count)) if op == "mean" else v)


def average_pool2d(
    x: Operand, epilogue: Epilogue, down: Sequence[tuple[int, int, int]], across: Sequence[tuple[int, int, int]]
) -> Tensor:  # fmt: skip
    """x [N, H, W, C]; ``down`` and ``across``: first, end and counted size of each window of an axis (`windows`)."""
    v, small = x.floats(), x.values.dtype == torch.int8
    rows = []
    for h0, h1, high in down:
        row = []
        for w0, w1, wide in across:
            if small:
                steps = (x.values[:, h0:h1, w0:w1].long() - x.zero_point).sum((1, 2))
                total = steps.float() * _float32(x.scale)
            else:
                total = _in_order(v[:, h0:h1, w0:w1].flatten(1, 2).unbind(1), torch.add)
            row.append(total * (1 / _float32(high * wide)))
        rows.append(torch.stack(row, 1))
    return epilogue.store(torch.stack(rows, 1))


def windows(
    size: int, count: int, kernel: int, stride: int, pad: int, *, count_pad: bool
) -> list[tuple[int, int, int]]:
    """First, end and counted size of ``count`` windows of an axis; padding, where counted, is real 0."""
    found = []
    for i in range(count):
        begin, end = i * stride - pad, i * stride - pad + kernel
        first, last = max(begin, 0), min(end, size)
        found.append((first, last, min(end, size + pad) - begin if count_pad else last - first))
    return found


def adaptive_windows(size: int, count: int) -> list[tuple[int, int, int]]:
    """``count`` windows that cover an axis, as torch's adaptive pooling cuts it."""
    cuts = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    return [(begin, end, end - begin) for begin, end in cuts]
