"""How a model is called: from an example or a batch of a loader to the arguments of its forward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.utils.errors import first_line

Batch = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def run(self, model: nn.Module) -> Any:
        """The model's answer; tensors go to the device the model is on, where that is one."""
        device = device_of(model)
        return model(*_moved(self.args, device), **_moved(self.kwargs, device))

    def left_at_none(self, model: nn.Module) -> list[str]:
        """The arguments of the model's forward that this call leaves at their default of None."""
        signature = inspect.signature(model.forward)
        given = signature.bind_partial(*self.args, **self.kwargs).arguments
        return [
            p.name
            for p in signature.parameters.values()
            if p.default is None and p.name not in given
        ]

    def described(self) -> str:
        """The shapes of its tensors, for a message."""
        values = [*map(_shape, self.args), *(f"{k}={_shape(v)}" for k, v in self.kwargs.items())]
        return ", ".join(values) or "nothing"


def example_call(example_inputs: Any) -> Call:
    """The call that ``example_inputs`` stands for.

    A tuple holds the positional arguments, a dict the keyword arguments; anything else, such as a tensor or a list of
    images, is the one argument.
    """
    if isinstance(example_inputs, Call):
        return example_inputs
    if isinstance(example_inputs, tuple):
        return Call(example_inputs)
    if isinstance(example_inputs, Mapping):
        return Call((), dict(example_inputs))
    return Call((example_inputs,))


class BatchReader:
    """Calls ``model`` on the batches of one loader.

    A batch is ``x``, ``(x, y)``, ``((u, v), y)``, ``(u, v, y)`` for a forward that needs two arguments, a dict of
    keyword arguments (entries that the forward does not take, such as labels, are left out), or a list of images.
    Where more than one of these may be meant, the first that the model can be called with on the first batch is taken
    for all.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._reading: str | None = None

    def call(self, batch: Batch) -> Call:
        """The call that the batch stands for.

        Raises:
            ValueError: a batch of no known form, or one that the model cannot be called with; it says why.
        """
        readings = dict(_readings(batch, self.model))
        if not readings:
            raise ValueError(
                f"a batch is a {_described(batch)}: give a tensor, a tuple or list whose first item is the model's "
                "input, or a dict of keyword arguments"
            )
        if self._reading not in readings:
            self._reading = self._first_that_runs(readings)
        return readings[self._reading]

    def _first_that_runs(self, readings: dict[str, Call]) -> str:
        if len(readings) == 1:
            return next(iter(readings))
        failures = []
        for name, call in readings.items():
            try:
                call.run(self.model)
            except Exception as error:  # whatever a forward raises when it is handed something else
                failures.append(f"{name}: {first_line(error)}")
            else:
                return name
        raise ValueError(
            f"{type(self.model).__name__} cannot be called with this batch, read as "
            + "; as ".join(failures)
        )


def _readings(batch: Any, model: nn.Module) -> Iterator[tuple[str, Call]]:
    """What the batch may mean, the likeliest first, each under a name."""
    forward = _Forward(model)
    if isinstance(batch, Tensor):
        yield "the input", Call((batch,))
    elif isinstance(batch, Mapping):
        yield from forward.keyword_calls(batch)
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        first = batch[0]
        if 2 <= forward.required <= len(batch):
            yield "arguments and labels", Call(tuple(batch[: forward.required]))
        if isinstance(first, Tensor):
            yield "input and labels", Call((first,))
        elif isinstance(first, Mapping):
            yield from forward.keyword_calls(first)
        elif isinstance(first, Sequence) and not isinstance(first, str):
            if forward.required <= len(first) <= forward.most:
                yield "arguments, then labels", Call(tuple(first))
            yield "a list of inputs, then labels", Call((first,))
        if all(isinstance(x, Tensor) and x.dim() == 3 for x in batch):
            yield "a list of images", Call((batch,))


class _Forward:
    """What a model's forward can be called with."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(inspect.signature(model.forward).parameters.values())
        positional = [
            p for p in self.parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        anything = any(p.kind is p.VAR_POSITIONAL for p in self.parameters)
        self.required = sum(p.default is p.empty for p in positional) or 1
        self.most = math.inf if anything else len(positional)

    def keyword_calls(self, batch: Mapping[str, Any]) -> Iterator[tuple[str, Call]]:
        kinds = inspect.Parameter
        if any(p.kind is kinds.VAR_KEYWORD for p in self.parameters):
            known = dict(batch)
        else:
            names = {p.name for p in self.parameters if p.kind is not kinds.VAR_POSITIONAL}
            known = {name: value for name, value in batch.items() if name in names}
        named = [
            p
            for p in self.parameters
            if p.default is p.empty and p.kind is kinds.POSITIONAL_OR_KEYWORD
        ]
        if known and all(p.name in known for p in named):
            yield "keyword arguments", Call((), known)
        else:
            yield "one dict", Call((batch,))


def _shape(value: Any) -> str:
    return (
        f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    )


def device_of(model: nn.Module) -> torch.device | None:
    """The one device of the model; None for several or none."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def _moved(value: Any, device: torch.device | None) -> Any:
    """The value with every tensor in it on ``device``; containers keep their kind."""
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if type(value) in (list, tuple):
        return type(value)(_moved(item, device) for item in value)
    if type(value) is dict:
        return {key: _moved(item, device) for key, item in value.items()}
    return value


def _described(batch: Any) -> str:
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return f"{type(batch).__name__} of {', '.join(type(x).__name__ for x in batch[:3]) or 'nothing'}"
    return type(batch).__name__
