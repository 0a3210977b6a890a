"""Quantized models as ONNX files in the QDQ form, which ONNX Runtime and OpenVINO run as int8."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qkernels.graph import CompiledModel
from qkernels.modules.calling import Call, example_call
from qkernels.modules.swap import ModuleSwap
from qkernels.nn import MeanPool2d
from qkernels.nn.module import QuantModule
from qkernels.utils.extras import require
from qkernels.utils.files import replacing


def export_onnx(model: nn.Module, example_inputs: Any, path: str | os.PathLike[str]) -> None:
    """Write a model from `qkernels.quantize` as one ONNX file, its batch (dimension 0 of every input) free.

    Int8 layers become QuantizeLinear, DequantizeLinear and a float operator; weights are int8 with a scale an output
    channel. Everything else is what torch.onnx makes of it. The file passes ONNX's checker.

    Results agree with ours up to rounding, not bit for bit: ONNX divides by the scale where we multiply by its
    reciprocal (a tie may fall to the other side), and runtimes fuse and round biases, sums and scales in their own way.

    Args:
        model: what `quantize` returned; not changed.
        example_inputs: what `model` is called with: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments, whose names the inputs of the file then have; floats are float32.
        path: of the file to write, which is replaced at once.

    Raises:
        ValueError: a dynamic layer, a chained model, no int8 layer, a forward that torch cannot export.
        ImportError: without the `onnx` extra.
    """
    onnx = require("onnx", "onnx")
    require("onnxscript", "onnx")
    call = example_call(example_inputs)
    _check_float32(model, call)
    args, kwargs = pytree.tree_map(_two, (call.args, call.kwargs))
    try:
        with _quiet():
            float_layers = _with_qdq_layers(model)
            program = torch.onnx.export(
                float_layers,
                args,
                kwargs=kwargs,
                dynamic_shapes=_shapes(float_layers, Call(args, kwargs)),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from error
    assert program is not None
    for node in program.model.graph:  # stack traces, with the paths of this machine
        node.metadata_props.clear()
    with replacing(path) as aside:
        program.save(aside, external_data=False)
        onnx.checker.check_model(aside, full_check=True)


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


def _check_float32(model: nn.Module, call: Call) -> None:
    for tensor in (*model.parameters(), *pytree.tree_leaves((call.args, call.kwargs))):
        if (
            isinstance(tensor, Tensor)
            and tensor.is_floating_point()
            and tensor.dtype != torch.float32
        ):
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


def _shapes(model: nn.Module, call: Call) -> Any:
    """The batch of every tensor of the call is free, and one for all."""
    shapes = torch.export.ShapesCollection()
    for x in pytree.tree_leaves((call.args, call.kwargs)):
        if isinstance(x, Tensor) and x.dim():
            shapes[x] = {0: "batch"}
    return shapes.dynamic_shapes(model, call.args, call.kwargs)
