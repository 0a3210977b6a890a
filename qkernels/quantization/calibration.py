"""Run calibration data through a float model and watch the inputs of its layers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.eval_mode import eval_mode
from qkernels.quantization.observers import Observer
from qkernels.renamed import explains_old_arguments

Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Calibration = Tensor | Iterable[Batch] | Mapping[str, Any] | Callable[[nn.Module], object]

_PROGRESS_AFTER = 2.0  # seconds


@explains_old_arguments
def calibrate(
    model: nn.Module, observers: Mapping[str, Observer], calibration: Calibration
) -> None:
    """Show each named layer's inputs to its observer, while `calibration` runs through the model.

    The model runs in eval mode under `torch.inference_mode`, on the device it is on; the training
    flags and the model itself are left as they were.

    Args:
        observers: full name of a layer (`""` is the model itself) -> its observer.
        calibration: an iterable of batches, a single Tensor or dict as the only batch, or a callable
            that is handed the model and runs it. A batch is a Tensor, a tuple or list whose
            first item is the model's input (labels may follow), or a dict of keyword arguments.

    Raises:
        ValueError: for no batches, a batch of another type, or NaN and infinity in a layer's
            input (it names the layer). A layer the data never reaches keeps `count == 0`.
    """
    with _watching(model, observers):
        run_data(model, calibration)


def run_data(model: nn.Module, data: Calibration) -> None:
    """Run all of `data` (see `calibrate`) through the model in eval and inference mode."""
    with evaluating(model):
        if callable(data):
            data(model)
            return
        batches = 0
        for batch in _with_progress([data] if isinstance(data, Tensor | Mapping) else data):
            run_batch(model, batch)
            batches += 1
        if batches == 0:
            raise ValueError("calibration data is empty: give at least one batch")


def rereadable(data: Calibration) -> Calibration:
    """The data for several passes: what an iterator yields only once becomes a list."""
    return list(data) if isinstance(data, Iterator) else data


def run_batch(model: nn.Module, batch: Batch) -> None:
    """Call the model on one batch (see `calibrate`), moved to its device."""
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    device = _device_of(model)
    if isinstance(inputs, Tensor):
        model(_to_device(inputs, device))
    elif isinstance(inputs, Mapping):
        model(**_to_device(inputs, device))
    else:
        raise ValueError(
            f"a calibration batch is a {type(inputs).__name__}: give a Tensor, a tuple whose "
            "first item is the input, or a dict of keyword arguments"
        )


@contextlib.contextmanager
def _watching(model: nn.Module, observers: Mapping[str, Observer]) -> Iterator[None]:
    def hook(observer: Observer) -> Callable[..., None]:
        def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            observer.observe(args[0] if args else kwargs["input"])

        return watch

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook(observer), with_kwargs=True)
        for name, observer in observers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and inference mode inside; every module's training flag restored after."""
    with eval_mode(model), torch.inference_mode():
        yield


def _device_of(model: nn.Module) -> torch.device | None:
    """The one device of the model; None (batches stay where they are) for several or none."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def _to_device(value: Any, device: torch.device | None) -> Any:
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_device(item, device) for item in value]
    return value


def _with_progress(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, with a bar on stderr once they take long (if rich is there to draw it)."""
    total = len(batches) if isinstance(batches, Sized) else None
    start, bar = time.monotonic(), None
    with contextlib.ExitStack() as stack:
        for done, batch in enumerate(batches):
            if bar is None and time.monotonic() - start > _PROGRESS_AFTER:
                bar = _progress_bar(stack, total)
            if bar is not None:
                bar(done)
            yield batch


def _progress_bar(stack: contextlib.ExitStack, total: int | None) -> Callable[[int], None]:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return lambda done: None
    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task("calibrating", total=total)
    return lambda done: bar.update(task, completed=done)
