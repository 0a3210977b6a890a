"""What to quantize and how: one frozen value, JSON in and out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from qkernels.nn.registry import activation_names
from qkernels.quantization.observers import observer_names

WeightGranularity = Literal["per_channel", "per_tensor"]

_CHOICES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "activation": activation_names,
    "weight": lambda: get_args(WeightGranularity),
    "symmetric": lambda: (True, False, None),
    "observer": observer_names,
    "fold_batch_norm": lambda: (True, False),
    "strict": lambda: (True, False),
}
_LAYER_KEYS = ("activation", "weight", "symmetric", "observer", "percentile", "momentum", "range")


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How `quantize` treats a model.

    A *pattern* is a glob over a module's full name (`*` also crosses dots: `"layer1.*"`), or the exact name of its
    type (`"Conv2d"`). One that means a container means every layer in it.

    Args:
        activation: `static` (ranges from calibration data, the fastest), `dynamic` (ranges found
            in every call) or `weight_only` (int8 weights, float arithmetic).
        weight: one scale per output channel, or one per tensor.
        symmetric: whether activation ranges are symmetric about 0 (zero point 0). None: False
            for static (activations after a ReLU are one-sided), True for dynamic.
        observer: how static ranges are chosen, see `qkernels.quantization.observers`.
        percentile: of the `percentile` observer, in (50, 100]; each tail loses `100 - percentile`.
        momentum: of the `moving_average` observer, in (0, 1]: the weight of the newest batch.
        range: of the `fixed` observer, (low, high) of every layer's inputs; needs no calibration.
        include: patterns of the layers to convert.
        exclude: patterns of the layers to leave in float; wins over `include`.
        overrides: pattern -> settings of the layers it matches (any of activation, weight,
            symmetric, observer, percentile, momentum, range); later patterns win over earlier ones.
        fold_batch_norm: fold batch norms into the converted layers before them.
        strict: raise when a layer with weights stays float without being excluded.

    Raises:
        ValueError: for an unknown key or value; it names the value and the choices.
    """

    activation: str = "static"
    weight: WeightGranularity = "per_channel"
    symmetric: bool | None = None
    observer: str = "percentile"
    percentile: float = 99.999
    momentum: float = 0.1
    range: tuple[float, float] | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fold_batch_norm: bool = True
    strict: bool = False

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            _check_choice(key, getattr(self, key), choices())
        _check_between("percentile", self.percentile, 50, 100)
        _check_between("momentum", self.momentum, 0, 1)
        object.__setattr__(self, "range", _checked_range(self.range))
        for key in ("include", "exclude"):
            object.__setattr__(self, key, _patterns(key, getattr(self, key)))
        object.__setattr__(self, "overrides", _checked_overrides(self.overrides))

    @classmethod
    def of(cls, value: QuantConfig | Mapping[str, Any] | str | None) -> QuantConfig:
        """The config that `value` stands for: a config, a dict of its fields, or an activation."""
        if value is None:
            return cls()
        if isinstance(value, QuantConfig):
            return value
        if isinstance(value, str):
            return cls.from_dict({"activation": value})
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        shown = repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
        raise ValueError(
            f"config={shown} is not known: give a QuantConfig, a dict of its fields, or one of "
            f"{_listed(activation_names())}; calibration data come after it"
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantConfig:
        """The inverse of `to_dict`. Unknown keys raise ValueError."""
        _check_keys("config", values, [f.name for f in dataclasses.fields(cls)])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        overrides = {pattern: dict(settings) for pattern, settings in self.overrides.items()}
        return values | {
            "include": list(self.include),
            "exclude": list(self.exclude),
            "overrides": overrides,
        }

    def why_not(self, lineage: Lineage) -> str | None:
        """Why a module is not selected, or None when it is; `lineage` is it and the containers around it."""
        for pattern in self.exclude:
            if matches(pattern, lineage):
                return f"excluded by {pattern!r}"
        if not any(matches(pattern, lineage) for pattern in self.include):
            return "not in include"
        return None

    def for_layer(self, lineage: Lineage) -> QuantConfig:
        """The settings of one layer: overrides applied, `symmetric` decided."""
        settings: dict[str, Any] = {}
        for pattern, override in self.overrides.items():
            if matches(pattern, lineage):
                settings |= override
        layer = dataclasses.replace(self, overrides={}, **settings)
        if layer.symmetric is None:
            layer = dataclasses.replace(layer, symmetric=layer.activation != "static")
        return layer

    def patterns(self) -> list[str]:
        """Every pattern in use, to find those that match nothing."""
        return [*self.include, *self.exclude, *self.overrides]


Lineage = Sequence[tuple[str, str]]  # (full name, type name) of a module and of all around it


def matches(pattern: str, lineage: Lineage) -> bool:
    """Whether a pattern (name glob or exact type name) means this module, or a container that it is in."""
    return any(pattern == kind or fnmatchcase(name, pattern) for name, kind in lineage)


def _listed(choices: Iterable[Any]) -> str:
    return ", ".join(map(str, choices))


def _check_choice(key: str, value: Any, choices: tuple[Any, ...]) -> None:
    if not any(value is c or (isinstance(c, str) and value == c) for c in choices):
        raise ValueError(f"{key}={value!r} is not known: choose one of {_listed(choices)}")


def _check_keys(where: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: {key!r} is not known: choose from {_listed(known)}")


def _check_between(key: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low < value <= high:
        raise ValueError(f"{key}={value!r} must be a number above {low} and at most {high}")


def _checked_range(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        raise ValueError(f"range={value!r} must be two numbers, low and high") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"range={value!r} must be finite, with low below high")
    return low, high


def _patterns(key: str, value: Any) -> tuple[str, ...]:
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    if not listed or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key}={value!r} must be a list of name globs or type names")
    return tuple(value)


def _checked_overrides(overrides: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(overrides, Mapping):
        raise ValueError(f"overrides={overrides!r} must map patterns to settings")
    for pattern, settings in overrides.items():
        if not isinstance(settings, Mapping):
            raise ValueError(f"overrides[{pattern!r}]={settings!r} must be a dict of settings")
        _check_keys(f"overrides[{pattern!r}]", settings, _LAYER_KEYS)
        QuantConfig(**settings)
    return {pattern: dict(settings) for pattern, settings in overrides.items()}
