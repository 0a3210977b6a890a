"""What a step did to a model hangs on the model it returns: `report(model)` reads it."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from torch import nn

Model = TypeVar("Model", bound=nn.Module)
Report = TypeVar("Report")

_KEY = "_qkernels_reports"


def hang(model: Model, report: object) -> Model:
    """Append a report to those that hang on `model`; returns the model.

    The list is a plain attribute of the instance: copies and pickles carry it, a state dict does not.
    """
    model.__dict__[_KEY] = [*reports_of(model), report]
    return model


def reports_of(model: nn.Module) -> list[Any]:
    """All reports that hang on `model`, the oldest first; a wrapper (`torch.compile`) shows those of its model."""
    found: list[Any] = getattr(model, _KEY, [])
    return found


def forget(model: Model) -> Model:
    """Take every report off `model`, in place; returns the model."""
    model.__dict__.pop(_KEY, None)
    return model


@overload
def report(model: nn.Module) -> Any: ...
@overload
def report(model: nn.Module, kind: type[Report]) -> Report: ...
def report(model: nn.Module, kind: type = object) -> Any:
    """The newest report that hangs on `model`, or the newest of the class `kind`.

    Raises ValueError for a model on which there is none. A loaded model has none: a file keeps no report.
    """
    found = reports_of(model)
    for newest in reversed(found):
        if isinstance(newest, kind):
            return newest
    name = type(model).__name__
    if not found:
        raise ValueError(
            f"{name} has no report: it hangs on the model that quantize and its like return"
        )
    there = ", ".join(type(each).__name__ for each in found)
    raise ValueError(f"{name} has no {kind.__name__}: its reports are {there}")
