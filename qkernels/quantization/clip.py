"""Search of the clipping range that loses least, over a histogram of the data."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from qkernels.quantization.histogram import Histogram
from qkernels.quantization.qparams import QMAX, QMIN, choose_qparams

Array = npt.NDArray[np.float64]
Loss = Callable[[float, int], float]  # (scale, zero_point) -> loss

_SEARCH_SIDE = 4096  # bins per side that the losses look at
_SHRINK = [0.93**i for i in range(96)]  # candidates, as fractions of the full range
_ROUNDS = 3
_FEWEST_BINS = 128  # TensorRT's smallest clip: below it the divergence compares nothing


def best_range(histogram: Histogram, loss: Loss, *, symmetric: bool) -> tuple[float, float]:
    """The (low, high) of smallest loss; on a tie the widest.

    Both ends shrink together first; a two-sided asymmetric range then improves one end at a time.
    """
    low, high = histogram.low, histogram.high

    def ends_by(vary_low: bool, vary_high: bool, at: tuple[float, float]) -> tuple[float, float]:
        candidates = [at] + [
            (low * f if vary_low else at[0], high * f if vary_high else at[1]) for f in _SHRINK
        ]
        losses = [loss(*choose_qparams(*ends, symmetric=symmetric)) for ends in candidates]
        return candidates[losses.index(min(losses))]

    best = ends_by(True, True, (low, high))
    if symmetric or low == 0 or high == 0:
        return best
    for _ in range(_ROUNDS):
        previous = best
        best = ends_by(False, True, best)
        best = ends_by(True, False, best)
        if best == previous:
            break
    return best


def squared_error(histogram: Histogram) -> Loss:
    """Expected squared error of quantizing the data, values uniform within each bin.

    The error of code n at t = x / scale is r = t - n, and its square integrates to
    n / 12 + r**3 / 3 on both sides of every rounding boundary; with n clamped to the codes the
    same formula covers the clipped tails.
    """
    counts, edges = histogram.bins(_SEARCH_SIDE)
    density = counts / np.diff(edges) if len(counts) else counts

    def loss(scale: float, zero_point: int) -> float:
        t = edges / scale
        n = np.clip(np.rint(t), QMIN - zero_point, QMAX - zero_point)
        integral = n / 12 + (t - n) ** 3 / 3
        return float(scale**3 * (density * np.diff(integral)).sum())

    return loss


def divergence(histogram: Histogram) -> Loss:
    """Kullback-Leibler divergence between the clipped data and its quantized form.

    The reference holds the clipped tails in its end bins; the quantized form spreads the mass of
    each code evenly over the occupied bins of that code. Zeros are left out: they are exact.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017; here for signed and one-sided data
    and all 256 codes.
    """
    counts, edges = histogram.bins(_SEARCH_SIDE)
    occupied = counts > 0
    counts = counts[occupied]
    centers = (edges[:-1] + np.diff(edges) / 2)[occupied] if len(counts) else counts

    def loss(scale: float, zero_point: int) -> float:
        codes = np.rint(centers / scale) + (zero_point - QMIN)
        below, above = codes < 0, codes > QMAX - QMIN
        inside = ~(below | above)
        if inside.sum() < _FEWEST_BINS:
            return math.inf
        level = codes[inside].astype(np.int64)
        quantized = (np.bincount(level, counts[inside]) / np.maximum(np.bincount(level), 1))[level]
        reference = counts[inside].copy()
        reference[0] += counts[below].sum()
        reference[-1] += counts[above].sum()
        return _kullback_leibler(reference / reference.sum(), quantized / quantized.sum())

    return loss


def _kullback_leibler(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum())
