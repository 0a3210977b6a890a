"""Names and arguments of earlier versions: who uses one is told the present form in one sentence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_NAMES = {
    "qkernels.models.narrow": "narrow_(model, channels), which works in place",
    "qkernels.nn.fix_mean_order": "fix_mean_order_(model), which works in place and returns the model",
    "qkernels.quantization.fold_batch_norm": (
        "fold_batch_norm_(model), which works in place and returns the model; "
        "qkernels.report(model, Folds) says what was folded"
    ),
    "qkernels.recovery.correct_bias": (
        "correct_bias_(quantized, model, calibration), which works in place and returns `quantized`; "
        "qkernels.report(quantized).shifts says by how much"
    ),
    "qkernels.recovery.round_weights": (
        "round_weights_(quantized, model, calibration), which works in place and returns `quantized`; "
        "qkernels.report(quantized).errors says what is left"
    ),
}
_ARGUMENTS = {
    "batch": "its name is example_inputs",
    "data": "its name is calibration",
    "example": "its name is example_inputs",
    "inplace": "quantize_(model, ...) works in place",
    "sample": "its name is example_inputs",
}


def renamed(package: str, name: str) -> Callable[..., NoReturn]:
    """What a package's `__getattr__` answers for an old name: a function that raises a TypeError when called.

    An AttributeError here would lose its sentence in `from package import name`. Names that never were raise one.
    """
    if f"{package}.{name}" not in _NAMES:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise TypeError(f"{name} is now {_NAMES[f'{package}.{name}']}")

    return refuse


def explains_old_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose TypeError for a keyword of an earlier version says the present form."""
    old = _ARGUMENTS.keys() - inspect.signature(function).parameters.keys()

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in sorted(old & kwargs.keys()):
            raise TypeError(f"{function.__name__}() takes no {name}= any more: {_ARGUMENTS[name]}")
        return function(*args, **kwargs)

    return call
