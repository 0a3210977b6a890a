"""Quantized models as ONNX files in the QDQ form, which ONNX Runtime and OpenVINO run as int8."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.data.extras import require
from qkernels.graph import CompiledModel
from qkernels.nn import MeanPool2d
from qkernels.nn.module import QuantModule
from qkernels.swap import ModuleSwap


def export_onnx(
    model: nn.Module, example_inputs: Tensor | tuple[Any, ...], path: str | os.PathLike[str]
) -> None:
    """Write a model from `qkernels.quantize` as one ONNX file, its batch (dimension 0 of every input) free.

    Int8 layers become QuantizeLinear, DequantizeLinear and a float operator; weights are int8 with a scale an output
    channel. Everything else is what torch.onnx makes of it. The file passes ONNX's checker.

    Results agree with ours up to rounding, not bit for bit: ONNX divides by the scale where we multiply by its
    reciprocal (a tie may fall to the other side), and runtimes fuse and round biases, sums and scales in their own way.

    Args:
        model: what `quantize` returned; not changed.
        example_inputs: what `model` is called with, float32.
        path: of the file to write, which is replaced at once.

    Raises:
        ValueError: a dynamic layer, a chained model, no int8 layer, a forward that torch cannot export.
        ImportError: without the `onnx` extra.
    """
    onnx = require("onnx", "onnx")
    require("onnxscript", "onnx")
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    _check_float32(model, examples)
    try:
        with _quiet():
            program = torch.onnx.export(
                _with_qdq_layers(model),
                tuple(_two(x) for x in examples),
                dynamic_shapes=tuple(_batch(x) for x in examples),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from error
    assert program is not None
    for node in program.model.graph:  # stack traces, with the paths of this machine
        node.metadata_props.clear()
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        program.save(part, external_data=False)
        onnx.checker.check_model(part, full_check=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _with_qdq_layers(model: nn.Module) -> nn.Module:
    from qkernels.export.qdq import to_qdq  # torch.onnx, which few need, takes long to import

    if any(isinstance(module, CompiledModel) for module in model.modules()):
        raise ValueError(
            "a chained model has no QDQ form: export the quantized model it is made of"
        )
    swap = ModuleSwap(copy.deepcopy(model))
    layers = [(n, m) for n, m in swap.model.named_modules() if isinstance(m, QuantModule)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no int8 layer to export; quantize it first")
    for pool in [m for m in swap.model.modules() if isinstance(m, MeanPool2d)]:
        swap.put(pool, nn.AdaptiveAvgPool2d(1))
    for name, layer in layers:
        swap.put(layer, to_qdq(name, layer))
    return swap.finish().eval()


def _check_float32(model: nn.Module, examples: tuple[Any, ...]) -> None:
    tensors = (*model.parameters(), *(x for x in examples if isinstance(x, Tensor)))
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(
                f"the model or its input is {tensor.dtype}; only float32 models are exported"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the exporter's notes on packages that are not there and on its own use of torch."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _two(x: Any) -> Any:
    """A batch of one as two: torch.export takes a size of 1 for a constant."""
    return x.repeat(2, *[1] * (x.dim() - 1)) if isinstance(x, Tensor) and x.shape[:1] == (1,) else x


def _batch(x: Any) -> dict[int, str] | None:
    return {0: "batch"} if isinstance(x, Tensor) and x.dim() else None
