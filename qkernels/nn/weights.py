"""Float weights to int8."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_weight(
    weight: Tensor, *, per_channel: bool = True, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Symmetric int8 of a weight [N, ...]: values in [-127, 127], scale float32 [N].

    ``scale[n] = max|weight[n]| / 127``, 1 for a zero channel; ``per_channel=False`` uses one range for all and
    repeats it. A given ``scale`` ([N] or one value) is used as it is. Krishnamoorthi 2018 (1806.08342), section 2.

    Raises:
        ValueError: NaN or infinity in the weight, or a scale that is not finite and above 0.
    """
    flat = weight.detach().float().reshape(weight.shape[0], -1)
    low, high = torch.aminmax(flat, dim=1)
    span = torch.maximum(-low, high)
    if not torch.isfinite(span).all():  # infinite and NaN values reach the extremes
        bad = int((~torch.isfinite(flat)).sum())
        raise ValueError(f"the weight {list(weight.shape)} holds {bad} NaN or infinite values")
    if scale is None:
        span = span if per_channel else span.amax().expand(len(flat))
        scale = torch.where(span < 1e-30, 1.0, span / 127)
    scale = check_scale("weight scale", scale).expand(len(flat)).contiguous()
    q = (flat * (1 / scale).unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8)  # one temporary
    return q.view(weight.shape), scale


def check_scale(name: str, scale: Tensor | float) -> Tensor:
    """The scale as float32; ValueError where one is not finite and above 0."""
    scale = torch.as_tensor(scale, dtype=torch.float32)
    bad = ~(torch.isfinite(scale) & (scale > 0))
    if bad.any():
        raise ValueError(
            f"{name} is {float(scale[bad].flatten()[0])}; scales are finite and above 0"
        )
    return scale


def check_zero_point(zero_point: Tensor | int) -> Tensor:
    """The zero point as int32; ValueError outside [-128, 127]."""
    zero_point = torch.as_tensor(zero_point, dtype=torch.int32)
    bad = (zero_point < -128) | (zero_point > 127)
    if bad.any():
        value = int(zero_point[bad].flatten()[0])
        raise ValueError(f"input zero point is {value}; zero points are in [-128, 127]")
    return zero_point
