"""Run calibration data through a model and watch the inputs of its layers."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn

from qkernels.modules.calling import Batch, BatchReader, Call
from qkernels.modules.eval_mode import answering
from qkernels.modules.watching import watching
from qkernels.quantization.observers import CalibrationError, Observer
from qkernels.quantization.products import Products
from qkernels.utils.errors import first_line
from qkernels.utils.progress import progress
from qkernels.utils.renamed import explains_old_arguments

Calibration = Tensor | Iterable[Batch] | Mapping[str, Any] | Callable[[nn.Module], object]

_PROGRESS_AFTER = 2.0  # seconds


@explains_old_arguments
def calibrate(
    model: nn.Module, observers: Mapping[str, Observer], calibration: Calibration
) -> None:
    """Show each named layer's inputs to its observer, while `calibration` runs through the model.

    An input is also what the model multiplies by a layer's weight without calling it (`Products`).

    The model runs in eval mode without gradients, on the device it is on; its training flags, buffers and attributes
    are then put back as they were.

    Args:
        model: on any device, of any floating dtype.
        observers: full name of a layer (`""` is the model itself) -> its observer.
        calibration: an iterable of batches, a single Tensor or dict as the only batch, or a callable that is handed the
            model and runs it. What a batch may be, `qkernels.modules.calling.BatchReader` says: `x`, `(x, y)`,
            `((u, v), y)`, a dict of keyword arguments with or without labels, a list of images.

    Raises:
        ValueError: for no batches, a batch of another kind or one that the model cannot be called with, NaN and
            infinity in a layer's input (it names the layer). A layer the data never reaches keeps `count == 0`.
    """
    reader = None
    if not callable(calibration):  # a batch is tried out before anything is watched
        example = example_of(model, calibration)
        calibration, reader = example.data, example.reader
    with Products(model, {name: observer.observe for name, observer in observers.items()}):
        run_data(model, calibration, reader)


def run_data(model: nn.Module, data: Calibration, reader: BatchReader | None = None) -> None:
    """Run all of `data` (see `calibrate`) through the model, as `answering` has it."""
    with answering(model):
        if callable(data):
            data(model)
            return
        reader, batches = reader or BatchReader(model), 0
        for batch in _with_progress(_batches(data)):
            run_batch(model, batch, reader)
            batches += 1
        if batches == 0:
            raise ValueError("calibration data is empty: give at least one batch")


def run_batch(model: nn.Module, batch: Batch, reader: BatchReader | None = None) -> Any:
    """The model's answer to one batch (see `calibrate`)."""
    return run_call(model, (reader or BatchReader(model)).call(batch))


def run_call(model: nn.Module, call: Call) -> Any:
    """The model's answer to one call; ValueError says what it was called with where it fails."""
    try:
        return call.run(model)
    except CalibrationError:
        raise
    except Exception as error:  # whatever a forward raises on data that is not for it
        raise ValueError(
            f"{type(model).__name__} cannot be called with {call.described()}: {first_line(error)}"
        ) from error


def rereadable(data: Calibration) -> Calibration:
    """The data for several passes: what an iterator yields only once becomes a list."""
    return list(data) if isinstance(data, Iterator) else data


@dataclass(frozen=True)
class Example:
    """One call of the model as its data makes it, the data with nothing of it spent, and how its batches are read."""

    call: Call | None
    data: Calibration
    reader: BatchReader | None = None


def example_of(model: nn.Module, data: Calibration) -> Example:
    """The first call that `data` makes of the model.

    A callable is run until it calls the model for the first time; None where it never does.
    """
    if callable(data):
        return Example(_first_call(model, data), data)
    batches = iter(_batches(data))
    first = next(batches, _NOTHING)
    if first is _NOTHING:
        raise ValueError("calibration data is empty: give at least one batch")
    reader = BatchReader(model)
    with answering(model):
        call = reader.call(first)
    return Example(call, chain([first], batches) if isinstance(data, Iterator) else data, reader)


_NOTHING: Any = object()


class _Seen(BaseException):
    """Ends a callable at its first call of the model; no handler of errors may catch it."""

    def __init__(self, call: Call) -> None:
        self.call = call


def _first_call(model: nn.Module, data: Callable[[nn.Module], object]) -> Call | None:
    def stop(name: str, call: Call) -> None:
        raise _Seen(copy.deepcopy(call))

    try:
        with watching({"": model}, stop, first=True), answering(model):
            data(model)
    except _Seen as seen:
        return seen.call
    return None


def _batches(data: Any) -> Iterable[Batch]:
    if isinstance(data, Tensor | Mapping):
        return [data]
    if not isinstance(data, Iterable) or isinstance(data, str):
        raise ValueError(
            f"calibration is a {type(data).__name__}: give batches, one tensor, one dict, or a function of the model"
        )
    return data


def _with_progress(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, with a bar once they take long."""
    total = len(batches) if isinstance(batches, Sized) else None
    start, advance = time.monotonic(), None
    with contextlib.ExitStack() as stack:
        for done, batch in enumerate(batches):
            if advance is not None:
                advance()
            elif time.monotonic() - start > _PROGRESS_AFTER:
                advance = stack.enter_context(progress("calibrating", total, done=done))
            yield batch
