"""Observers: what a layer's inputs look like, and the range that its codes should cover.

Every observer streams: it sees batches, keeps bounded memory, and answers at the end. All ranges
include real 0, so that zero padding and ReLU outputs are exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from qkernels.quantization.clip import best_range, divergence, squared_error
from qkernels.quantization.histogram import Histogram
from qkernels.quantization.qparams import choose_qparams

if TYPE_CHECKING:
    from typing_extensions import Self

    from qkernels.quantization.config import QuantConfig


class CalibrationError(ValueError):
    """Data that no range can be found in."""


class Observer(ABC):
    """Sees batches of a tensor, answers its scale and zero point.

    A class of your own takes part under the name that `register_observer` gives it.

    Args:
        name: of the layer, for error messages.
        symmetric: whether the range is symmetric about 0 (zero point 0).
    """

    from_data: ClassVar[bool] = True  # whether its range comes from the data

    def __init__(self, name: str = "", *, symmetric: bool = False) -> None:
        self.name = name
        self.symmetric = symmetric
        self.count = 0  # values seen
        self.seen = (0.0, 0.0)  # the smallest and the largest of them, and 0

    @classmethod
    def from_config(cls, name: str, config: QuantConfig) -> Self:
        """The observer of the layer `name` with its settings; overridden where more than `symmetric` counts."""
        return cls(name, symmetric=bool(config.symmetric))

    @classmethod  # noqa: B027
    def join(cls, observers: Sequence[Self]) -> None:
        """Called once with all observers of the class, before any data, so that they may share what they see."""

    @torch.inference_mode()
    def observe(self, x: Tensor) -> None:
        """Take a batch: any shape, floating, on any device. An empty one changes nothing.

        Raises:
            ValueError: when `x` holds NaN or infinity; it names the layer and how many.
        """
        if x.numel() == 0:
            return
        x = x.float()
        low, high = torch.stack(x.aminmax()).tolist()
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            nan, inf = int(x.isnan().sum()), int(x.isinf().sum())
            raise CalibrationError(
                f"calibration: the input of layer {self.name!r} holds {nan} NaN and {inf} infinite "
                f"values of {x.numel()}; clean the data or fix the layer before it"
            )
        self._update(x, low, high)
        self.seen = (min(self.seen[0], low), max(self.seen[1], high))
        self.count += x.numel()

    def qparams(self) -> tuple[float, int]:
        """(scale, zero_point) of the chosen range: see `choose_qparams`."""
        return choose_qparams(*self.range(), symmetric=self.symmetric)

    def range(self) -> tuple[float, float]:
        """The real interval [low, high] that the codes should cover; always holds 0."""
        if self.count == 0:
            raise ValueError(f"observer of layer {self.name!r} has seen no values")
        low, high = self._range()
        return min(low, 0.0), max(high, 0.0)

    def cut(self) -> float:
        """How many times wider than the chosen range the values seen are; at least 1."""
        (low, high), (lowest, highest) = self.range(), self.seen
        if self.symmetric:
            chosen, seen = max(-low, high), max(-lowest, highest)
        else:
            chosen, seen = high - low, highest - lowest
        return max(seen / chosen, 1.0) if chosen else 1.0

    @abstractmethod
    def _update(self, x: Tensor, low: float, high: float) -> None: ...

    @abstractmethod
    def _range(self) -> tuple[float, float]: ...


class MinMax(Observer):
    """The smallest and the largest value seen: nothing clips, outliers cost resolution."""

    _low = _high = 0.0

    def _update(self, x: Tensor, low: float, high: float) -> None:
        self._low, self._high = min(self._low, low), max(self._high, high)

    def _range(self) -> tuple[float, float]:
        return self._low, self._high


class MovingAverage(Observer):
    """Exponential averages of each batch's smallest and largest value.

    Source: Jacob et al., 2018, arXiv:1712.05877, section 3.1.
    """

    def __init__(self, name: str = "", *, symmetric: bool = False, momentum: float = 0.1) -> None:
        super().__init__(name, symmetric=symmetric)
        self.momentum = momentum
        self._low = self._high = 0.0

    @classmethod
    def from_config(cls, name: str, config: QuantConfig) -> Self:
        return cls(name, symmetric=bool(config.symmetric), momentum=config.momentum)

    def _update(self, x: Tensor, low: float, high: float) -> None:
        step = self.momentum if self.count else 1.0
        self._low += step * (low - self._low)
        self._high += step * (high - self._high)

    def _range(self) -> tuple[float, float]:
        return self._low, self._high


class _HistogramObserver(Observer):
    def __init__(self, name: str = "", *, symmetric: bool = False) -> None:
        super().__init__(name, symmetric=symmetric)
        self.histogram = Histogram()

    def _update(self, x: Tensor, low: float, high: float) -> None:
        self.histogram.add(x, low, high)


class Percentile(_HistogramObserver):
    """Clips `100 - percentile` percent of the values from each tail.

    With few values the cut falls between the last two of them, so next to nothing is lost.
    """

    def __init__(
        self, name: str = "", *, symmetric: bool = False, percentile: float = 99.999
    ) -> None:
        super().__init__(name, symmetric=symmetric)
        self.percentile = percentile

    @classmethod
    def from_config(cls, name: str, config: QuantConfig) -> Self:
        return cls(name, symmetric=bool(config.symmetric), percentile=config.percentile)

    def _range(self) -> tuple[float, float]:
        tail = (100 - self.percentile) / 100
        return self.histogram.quantile(tail), self.histogram.quantile(1 - tail)


class MSE(_HistogramObserver):
    """The clip of smallest mean squared quantization error.

    Source: Banner et al., "Post Training 4-bit Quantization of Convolutional Networks for
    Rapid-Deployment", 2019, arXiv:1810.05723 (the analytic form; here the error is integrated
    over the histogram).
    """

    def _range(self) -> tuple[float, float]:
        loss = squared_error(self.histogram)
        return best_range(self.histogram, loss, symmetric=self.symmetric)


class Entropy(_HistogramObserver):
    """The clip of smallest Kullback-Leibler divergence, as TensorRT calibrates."""

    def _range(self) -> tuple[float, float]:
        return best_range(self.histogram, divergence(self.histogram), symmetric=self.symmetric)


class Fixed(Observer):
    """A range given beforehand; the data changes nothing."""

    from_data = False

    def __init__(
        self, name: str = "", *, symmetric: bool = False, range: tuple[float, float] | None
    ) -> None:
        super().__init__(name, symmetric=symmetric)
        if range is None:
            raise ValueError(f"layer {name!r}: the fixed observer needs range=(low, high)")
        self._ends, self.count = range, 1

    @classmethod
    def from_config(cls, name: str, config: QuantConfig) -> Self:
        return cls(name, symmetric=bool(config.symmetric), range=config.range)

    def _update(self, x: Tensor, low: float, high: float) -> None: ...

    def _range(self) -> tuple[float, float]:
        return self._ends


class Global(MinMax):
    """One range for all layers: the smallest and the largest value that any of them saw."""

    _all: Sequence[Global] = ()

    @classmethod
    def join(cls, observers: Sequence[Self]) -> None:
        for observer in observers:
            observer._all = observers

    def _range(self) -> tuple[float, float]:
        everybody = self._all or [self]
        return min(one._low for one in everybody), max(one._high for one in everybody)


_OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MSE,
    "entropy": Entropy,
    "global": Global,
    "fixed": Fixed,
}


def register_observer(name: str, observer: type[Observer]) -> None:
    """Let `QuantConfig(observer=name)` choose ranges with a class of your own."""
    _OBSERVERS[name] = observer


def observer_names(*, from_data: bool = False) -> tuple[str, ...]:
    """What `QuantConfig.observer` may be; `from_data`: those alone that need nothing but data."""
    return tuple(n for n, kind in _OBSERVERS.items() if kind.from_data or not from_data)


def make_observers(layers: Mapping[str, QuantConfig]) -> dict[str, Observer]:
    """The observer that each layer's settings ask for; those of one class are joined."""
    made = {name: _OBSERVERS[c.observer].from_config(name, c) for name, c in layers.items()}
    for kind in {type(observer) for observer in made.values()}:
        kind.join([observer for observer in made.values() if type(observer) is kind])
    return made


def make_observer(name: str, config: QuantConfig) -> Observer:
    """The observer that `config` asks for, for the layer `name` alone."""
    return make_observers({name: config})[name]
