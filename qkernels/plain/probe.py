"""A module is run on a few random inputs, to see which function it computes and with which weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qkernels.modules.eval_mode import eval_mode

_MAGNITUDES = (1.0, 1e-3, 100.0, 0.0)  # of the samples of each input
# of a sample's largest value; the sums of two equal functions may be added in another order
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")  # fmt: skip
_PRODUCTS: dict[Any, tuple[str, ...]] = {
    F.linear: _ARGUMENTS[:3],
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _ARGUMENTS),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _TRANSPOSED),
}


@dataclass
class Product:
    """One call of ``F.linear`` or a convolution, with its arguments by name."""

    function: Any
    arguments: dict[str, Any]


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            named = dict(zip(_PRODUCTS[func], args, strict=False)) | (kwargs or {})
            self.products.append(Product(func, named))
        return func(*args, **(kwargs or {}))


@dataclass
class Answer:
    """What a module made of one input: its output, or the error it raised."""

    input: Tensor
    output: Tensor | None
    error: Exception | None
    products: list[Product]


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Inside, the module may run: attributes, buffers, training flags and random state are put back after."""
    kept = [(m, {**vars(m)}, _registered(m)) for m in module.modules()]
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), eval_mode(module):
            yield
    finally:
        for m, attributes, registered in kept:
            vars(m).clear()
            vars(m).update(attributes)
            for name, entries in registered.items():
                vars(m)[name].clear()
                vars(m)[name].update(entries)
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)


def _registered(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: {**vars(module)[name]} for name in ("_parameters", "_buffers", "_modules")}


def ask(module: nn.Module, inputs: list[Tensor]) -> list[Answer]:
    """The answer to each input, of the module's forward alone: its hooks do not run."""
    answers = []
    for x in inputs:
        with _Watch() as watch:
            try:
                output, error = module.forward(x.clone()), None
            except Exception as raised:  # whatever a forward raises on an input it cannot take
                output, error = None, raised
        if output is not None and not isinstance(output, Tensor):
            output, error = None, TypeError(f"it returns a {type(output).__name__}, not a tensor")
        answers.append(Answer(x, output, error, watch.products))
    return answers


def same_answers(candidate: nn.Module, answers: list[Answer]) -> bool:
    """Whether the candidate gives these answers to float rounding; inputs that the module refused do not count."""
    for answer in answers:
        if answer.output is None:
            continue
        try:
            y = candidate(answer.input)
        except (RuntimeError, ValueError, TypeError):
            return False
        if not close(y, answer.output):
            return False
    return True


def close(y: Tensor, expected: Tensor) -> bool:
    """Whether each sample is as expected to rounding of its own largest value."""
    if y.shape != expected.shape or y.dtype != expected.dtype or not expected.numel():
        return False
    if not torch.isfinite(expected).all():
        return False
    largest = expected.abs().flatten(1).amax(1).view(-1, *[1] * (y.dim() - 1))
    return bool(((y - expected).abs() <= _ROUNDING[y.dtype] * largest).all())


def vector_inputs(width: int, like: Tensor) -> list[Tensor]:
    """Inputs [..., width] of two to four dimensions, and one with its channels second; the last sample is zeros."""
    n, other = len(_MAGNITUDES), 3 + (width == 3)
    return _random([(n, width), (n, 3, width), (n, 2, 3, width), (n, width, other)], like)


def image_inputs(
    channels: int, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], like: Tensor
) -> list[Tensor]:  # fmt: skip
    """Inputs [N, channels, ...] from the size of one window up, with every remainder by a stride up to four."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    step = max(stride)
    shapes = [
        (len(_MAGNITUDES), channels, *(span + more + axis for axis, span in enumerate(spans)))
        for more in sorted({0, 1, *range(min(step, 4)), step - 1, 2 * step + 1})
    ]  # no axis is as long as another
    return _random(shapes, like)


def _random(shapes: list[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    """Samples of each magnitude."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        x *= torch.tensor(_MAGNITUDES).view(-1, *[1] * (len(shape) - 1))
        made.append(x.to(like.device, like.dtype))
    return made
