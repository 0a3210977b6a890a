"""A streaming histogram of bounded memory that depends on the values only, not on their order.

Bins are `[k * width, (k + 1) * width)` for k in [-SIDE, SIDE), with `width` the power of two for
which the largest magnitude so far falls in the outer half. A larger value doubles the width as
often as needed, which merges bins pairwise and exactly: any split of the data into batches, in
any order, ends in the same histogram (values 2**-160 times smaller than the largest may change
sides of 0: their bin index underflows). Zeros are counted apart: after a ReLU they are most of the
data, and they cost nothing to represent.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SIDE_LOG2 = 15
SIDE = 1 << _SIDE_LOG2  # bins on each side of 0
_SMALLEST_EXPONENT = -100  # magnitudes below 2**-100 / SIDE share the innermost bins
_CHUNK = 1 << 22  # elements binned at a time: bounds the memory of the indices


class Histogram:
    """Counts of finite values; see the module's text for the bins.

    Attributes:
        low, high: exact smallest and largest value seen, widened to include 0.
        zeros: how many values were exactly 0.
        total: how many values were seen.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.zeros = self.total = 0
        self._exponent = _SMALLEST_EXPONENT
        self._counts: Tensor | None = None

    @property
    def width(self) -> float:
        """Width of a bin: at most `max(-low, high) / (SIDE / 2)`."""
        return math.ldexp(1.0, self._exponent - _SIDE_LOG2)

    @torch.inference_mode()
    def add(self, x: Tensor, low: float, high: float) -> None:
        """Count the values of `x`: any shape, floating, finite, within [low, high]."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._counts is None:
            self._counts = torch.zeros(2 * SIDE, dtype=torch.int64, device=x.device)
        self._counts = self._grown(self._counts, max(-low, high))
        for chunk in torch.split(x.float().flatten(), _CHUNK):
            index = chunk.mul(1 / self.width).floor_().to(torch.int32).add_(SIDE)
            zeros = chunk.numel() - int(chunk.count_nonzero())
            self._counts += index.bincount(minlength=2 * SIDE)
            self._counts[SIDE] -= zeros
            self.zeros += zeros
            self.total += chunk.numel()

    def _grown(self, counts: Tensor, magnitude: float) -> Tensor:
        """Merge bins until `magnitude` fits."""
        exponent = math.frexp(magnitude)[1]
        doublings = min(exponent - self._exponent, _SIDE_LOG2)
        if magnitude == 0 or doublings <= 0:
            return counts
        self._exponent = exponent
        merged = counts.view(-1, 1 << doublings).sum(1)
        pad = (2 * SIDE - merged.numel()) // 2
        return torch.nn.functional.pad(merged, (pad, pad))

    def bins(self, side: int = SIDE) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Counts [n] of the nonzero values and edges [n + 1], at `side` bins per side.

        Only the bins from the first to the last occupied one; empty when all values are 0.
        """
        counts = np.zeros(2 * SIDE) if self._counts is None else self._counts.cpu().numpy()
        merge = SIDE // side
        merged = counts.reshape(2 * side, merge).sum(1)
        used = np.flatnonzero(merged)
        if not len(used):
            return np.zeros(0), np.zeros(1)
        first, last = used[0], used[-1] + 1
        edges = np.arange(first - side, last - side + 1, dtype=np.float64) * (self.width * merge)
        return merged[first:last].astype(np.float64), edges

    def quantile(self, fraction: float) -> float:
        """The value below which `fraction` of the data lies, within one bin width.

        Interpolates linearly between order statistics (as `numpy.quantile` does), so that a
        high quantile of few values stays near their maximum.
        """
        if self.total == 0:
            raise ValueError("quantile: the histogram has seen no values")
        counts, edges = self.bins()
        split = int(np.searchsorted(edges[:-1], 0.0))  # zeros stand between the two sides
        left, right = np.insert(edges[:-1], split, 0.0), np.insert(edges[1:], split, 0.0)
        counts = np.insert(counts, split, self.zeros)
        ends = np.cumsum(counts)

        def order_statistic(rank: int) -> float:
            if rank == 0 and self.low < 0:
                return self.low
            if rank == self.total - 1 and self.high > 0:
                return self.high
            i = int(np.searchsorted(ends, rank, side="right"))
            inside = (rank - (ends[i] - counts[i]) + 0.5) / counts[i]
            value = left[i] + inside * (right[i] - left[i])
            return float(min(max(value, self.low), self.high))

        position = fraction * (self.total - 1)
        rank = math.floor(position)
        first = order_statistic(rank)
        second = order_statistic(min(rank + 1, self.total - 1))
        return first + (position - rank) * (second - first)
