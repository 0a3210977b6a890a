"""Simulated schemes for study: 2 to 8 bits, other rounding, fixed-point rescaling.

The kernels implement none of these: they are 8 bits, round to nearest even, and rescale in float (docs/numerics.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Rounding = Literal["nearest_even", "half_away", "floor"]


def round_by(x: Tensor, mode: Rounding = "nearest_even") -> Tensor:
    """Whole numbers. `nearest_even` and `half_away` (ties away from 0) err by at most 1/2, `floor` by less than 1."""
    if mode == "nearest_even":
        return x.round()
    if mode == "half_away":
        whole = x.trunc()  # x + 1/2 would round the number just below 1/2 up
        return whole + torch.sign(x) * ((x - whole).abs() >= 0.5)
    if mode == "floor":
        return x.floor()
    raise ValueError(
        f"rounding={mode!r} is not known: choose one of {', '.join(get_args(Rounding))}"
    )


@dataclass(frozen=True)
class Affine:
    """Codes in [0, 2^bits - 1] with the scale and zero point that bring them back.

    `values()` is `(codes - zero_point) * scale`; in `minmax` the zero point is a real number, so that both ends of
    the range survive.
    """

    codes: Tensor
    scale: float
    zero_point: float

    def values(self) -> Tensor:
        """The real values, float64."""
        return (self.codes.double() - self.zero_point) * self.scale


def affine_minmax(x: Tensor, *, bits: int = 8, rounding: Rounding = "nearest_even") -> Affine:
    """Spread the codes of `bits` bits over [min, max] of `x`: error at most scale / 2 (floor: below scale).

    The smallest and the largest value come back as they were. `scale = (max - min) / (2^bits - 1)`, 1 for a tensor of
    one value. Codes are uint8, computed in float64.

    Raises:
        ValueError: bits outside 2..8; an empty tensor, NaN or infinity.
    """
    if bits not in range(2, 9):
        raise ValueError(f"bits={bits} must be a whole number from 2 to 8")
    if x.numel() == 0:
        raise ValueError(f"a tensor of shape {list(x.shape)} has no range: it is empty")
    x = x.detach().double()
    low, high = (value.item() for value in x.aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError("the tensor holds NaN or infinite values: it has no range")
    levels = 2**bits - 1
    scale = (high - low) / levels or 1.0
    codes = round_by((x - low) / scale, rounding).clamp(0, levels).to(torch.uint8)
    return Affine(codes, scale, -low / scale)


def fake_affine(x: Tensor, *, bits: int = 8, rounding: Rounding = "nearest_even") -> Tensor:
    """What is left of `x` after `affine_minmax`, in its dtype."""
    return affine_minmax(x, bits=bits, rounding=rounding).values().to(x.dtype)


def fixed_point(factor: float) -> tuple[int, int]:
    """(multiplier, shift) with `factor = multiplier * 2^(-31 - shift)` to 31 bits; multiplier in [2^30, 2^31).

    Source: Jacob et al., 2018, arXiv:1712.05877, section 2.2; gemmlowp's quantized multiplier.

    Raises:
        ValueError: a factor that is not above 0 or needs a shift outside -31..31.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"factor={factor} must be finite and above 0")
    fraction, exponent = torch.frexp(torch.tensor(factor, dtype=torch.float64))
    multiplier, shift = round(fraction.item() * 2**31), -int(exponent)
    if multiplier == 2**31:  # rounded up to the next power of two
        multiplier, shift = 2**30, shift - 1
    if not -31 <= shift <= 31:
        raise ValueError(f"factor={factor} needs a shift of {shift}, outside -31..31")
    return multiplier, shift


def requantize_fixed_point(total: Tensor, factor: float, zero_point: int) -> Tensor:
    """int8 `saturate(round(total * factor) + zero_point)` in integers alone; `total` int32.

    `(total * multiplier + half) >> (31 + shift)`: one rounding, ties toward +infinity. gemmlowp rounds twice (a
    doubling high multiplication, then a shift); one is nearer. Within 1 of the float rescaling, which rounds ties to
    even.
    """
    multiplier, shift = fixed_point(factor)
    right = 31 + shift
    half = (1 << right) >> 1
    # |total * multiplier| < 2^62, and half <= 2^61: the sum fits in int64.
    steps = (total.long() * multiplier + half) >> right
    return (steps + zero_point).clamp(-128, 127).to(torch.int8)
