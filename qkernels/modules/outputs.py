"""How far the outputs of two runs of a model are apart, whatever form they have."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def output_tensors(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every floating tensor in a model's answer; names are keys and positions."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield name or "output", output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from output_tensors(value, f"{name}.{key}".lstrip("."))
    elif isinstance(output, list | tuple):
        for i, value in enumerate(output):
            yield from output_tensors(value, f"{name}[{i}]")
    elif hasattr(output, "__dict__") and not callable(output):  # a dataclass, a namespace
        yield from output_tensors(vars(output), name)


def output_sqnrs(expected: Any, got: Any) -> dict[str, float]:
    """Output -> 10 log10 of its signal over the noise of `got`, in dB; inf where equal, NaN where not comparable."""
    theirs = dict(output_tensors(got))
    return {name: _sqnr(x, theirs.get(name)) for name, x in output_tensors(expected)}


def output_error(expected: Any, got: Any) -> float:
    """The largest norm of a difference over the norm of the expected output; inf where they cannot be compared."""
    levels = output_sqnrs(expected, got).values()
    return max((10 ** (-db / 20) if not math.isnan(db) else math.inf for db in levels), default=0.0)


def check_same(expected: Any, got: Any, step: str) -> None:
    """Raise RuntimeError where a step that keeps a model's function changed its answer more than rounding can."""
    dtypes = {x.dtype for _, x in output_tensors(expected)}
    error = output_error(expected, got)
    if error > rounding(dtypes):
        raise RuntimeError(
            f"{step} changed the model's answer by {error:.2g} of its size, which it must not: this is a fault of "
            "qkernels, please report the model; it was not used"
        )


def rounding(dtypes: Collection[torch.dtype]) -> float:
    """The relative change of an answer in these dtypes that the order of rounding explains."""
    return max((1e-3 if dtype.itemsize >= 4 else 5e-2 for dtype in dtypes), default=0.0)


def _sqnr(expected: Tensor, got: Tensor | None) -> float:
    if got is None or got.shape != expected.shape:
        return math.nan
    x, y = expected.detach().double(), got.detach().double()
    both = x.isfinite() & y.isfinite()
    if not (both | (x == y) | (x.isnan() & y.isnan())).all():
        return -math.inf
    x, y = x[both], y[both]
    signal, noise = x.square().sum().item(), (x - y).square().sum().item()
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
