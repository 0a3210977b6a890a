"""The scale and zero point of signed 8-bit codes for a real range."""

from __future__ import annotations

import numpy as np

QMIN, QMAX = -128, 127
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # its reciprocal is still finite in float32


def choose_qparams(low: float, high: float, *, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point that cover [low, high] and represent real 0 exactly.

    The codes are `clamp(round_half_even(x / scale) + zero_point, -128, 127)`.

    Args:
        low: the least value, finite; widened to include 0.
        high: the largest, likewise.
        symmetric: zero point 0 and `scale = max(-low, high) / 127`; otherwise
            `scale = (high - low) / 255` with an integer zero point.

    Returns:
        (scale, zero_point): scale positive and exact in float32 (1.0 for an empty range),
        zero_point in [-128, 127]. Values in [low, high] come back within scale / 2.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018, arXiv:1712.05877.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return 1.0, (0 if symmetric else QMIN)
    width = max(-low, high) / QMAX if symmetric else (high - low) / (QMAX - QMIN)
    scale = max(float(np.float32(width)), _SMALLEST_SCALE)
    if symmetric:
        return scale, 0
    return scale, int(np.clip(np.rint(QMIN - low / scale), QMIN, QMAX))
