"""``qkernels.compile``: a quantized model as one program, or as few as its steps allow."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from qkernels.graph.chain import chain_on_cpu, chain_on_device
from qkernels.graph.compiled import Argument, CompiledGraph, CompiledModel, Signature, in_float32
from qkernels.graph.lower import whole as whole_program
from qkernels.graph.parts import compile_parts
from qkernels.graph.report import ChainReport
from qkernels.graph.trace import Traced, trace
from qkernels.modules.calling import Call, example_call
from qkernels.modules.capture import CaptureError
from qkernels.modules.copying import copied
from qkernels.modules.eval_mode import answering
from qkernels.modules.outputs import output_sqnrs

_LEAST_EXACT = (
    60.0  # dB; bits that a step of torch rounds otherwise in another memory format are nearer
)
_LEAST_FAST = 3.0  # int8 noise drawn anew, on random weights, is nearer


def compile(
    model: nn.Module,
    example_inputs: Any,
    *,
    exact: bool = False,
    max_batch: int | None = None,
) -> CompiledModel:
    """Make of a quantized model its compiled form; ``model`` itself stays as it is, with weights of its own.

    On the CPU its steps become programs. On a CUDA device they stay operators, on torch's current stream: torch.compile
    goes through them, and a CUDA graph can hold them. The result stays on the kind of device that ``model`` is on.

    The fast form adds residuals in the int8 that the next layer reads, takes SiLU, GELU, hard-swish and their like
    between two layers from int8 to int8, and on the CPU computes norms, attention, means and the like in an order of
    its own, the same on every processor and for any number of threads.

    Args:
        model: a quantized model in eval mode. One in bfloat16 or float16 is compiled in float32, on the CPU and in the
            fast form, and is called and answers as it was; its file takes and gives float32.
        example_inputs: what ``model`` is called with: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. The batch may differ later; so may image sizes and token counts where the model and its steps
            allow it.
        exact: return the bits of the layer-by-layer model instead of the fast form.
        max_batch: refuse larger batches; None takes any.

    The example runs through both models, and ``report.sqnr_db`` says how near their answers are (inf: the same bits).
    Where torch.export cannot follow the model, since it branches on values, say, the largest parts that it can follow
    are compiled, and ``report.uncaptured`` says why and which.

    Raises:
        ValueError: torch.export cannot follow the model nor any part of it (the message has its reason), it is in
            training mode or on several devices, it has no int8 layer, or the two answers have nothing to do with each
            other.
    """
    call = example_call(example_inputs)
    for i, x in enumerate(pytree.tree_leaves((call.args, call.kwargs))):
        if isinstance(x, Tensor) and x.dtype is torch.float64:
            raise ValueError(f"example input {i} is float64, which no int8 layer takes")
    if model.training:
        raise ValueError("the model is in training mode; call .eval() first")
    device = _device_of(model)

    def whole(part: nn.Module, call: Call) -> CompiledModel:
        compiled = _compiled(part, call, device, exact, max_batch)
        _check_answer(part, compiled, call, exact)
        return compiled

    try:
        return whole(model, call)
    except CaptureError as why:
        if max_batch is not None:
            raise ValueError(
                f"max_batch is {max_batch}, but only a model that is captured knows its batch: {why}"
            ) from why
        return compile_parts(model, call, why, whole)


def _compiled(
    model: nn.Module, call: Call, device: torch.device, exact: bool, max_batch: int | None
) -> CompiledGraph:
    half = _half_dtype(model, call)
    if half is not None:
        if exact or device.type != "cpu":
            form = "with exact=True" if exact else f"on {device}"
            raise ValueError(f"the model is in {half}; {form} only a float32 model can be chained")
        return _of_half(model, call, device, max_batch)
    traced = trace(model, call)
    if device.type != "cpu":
        graph, report = chain_on_device(traced.graph, model, exact)
        return assembled(graph, report, traced, call, max_batch)
    graph, report = chain_on_cpu(traced.graph, model, exact, max_batch)
    if report.unfused and traced.free_sizes:
        fixed = trace(model, call, free_sizes=False)
        other, fewer = chain_on_cpu(fixed.graph, model, exact, max_batch)
        if len(fewer.unfused) < len(report.unfused):
            graph, report, traced = other, fewer, fixed
    return assembled(graph, report, traced, call, max_batch)


def assembled(
    graph: fx.GraphModule, report: ChainReport, traced: Traced, call: Call, max_batch: int | None
) -> CompiledGraph:
    """The model of a chained graph."""
    known = [Argument.of(value) for value in pytree.tree_leaves((call.args, call.kwargs))]
    signature = Signature(known, traced.inputs, traced.output, traced.sizes, max_batch)
    return CompiledGraph(graph, whole_program(graph), signature, report)


def _half_dtype(model: nn.Module, call: Call) -> torch.dtype | None:
    """bfloat16 or float16, where the model or its call holds such values."""
    values = (*model.parameters(), *model.buffers(), *pytree.tree_leaves((call.args, call.kwargs)))
    dtypes = {x.dtype for x in values if isinstance(x, Tensor)}
    return next((d for d in (torch.bfloat16, torch.float16) if d in dtypes), None)


def _of_half(
    model: nn.Module, call: Call, device: torch.device, max_batch: int | None
) -> CompiledGraph:
    """A model in half precision: compiled in float32, which it is called with and answers in as it was."""
    with answering(model):
        answer = call.run(model)
    args, kwargs = pytree.tree_map(in_float32, (call.args, call.kwargs))
    compiled = _compiled(
        copied(model)[0].float(), Call(args, kwargs), device, exact=False, max_batch=max_batch
    )
    signature = compiled.signature
    signature.known = [Argument.of(value) for value in pytree.tree_leaves((call.args, call.kwargs))]
    signature.dtypes = [x.dtype for x in pytree.tree_leaves(answer) if isinstance(x, Tensor)]
    return compiled


def _check_answer(model: nn.Module, compiled: CompiledModel, call: Call, exact: bool) -> None:
    """Put into the report how near the answers of both models are on the example, and refuse what rounding cannot be.

    Raises:
        ValueError: they are further apart than that; the graph that was seen is not the forward that runs.
    """
    tensors = pytree.tree_leaves((call.args, call.kwargs))
    if detect_fake_mode(tensors) is not None:  # tensors without values, as another device has them
        return
    with answering(model):
        levels = output_sqnrs(call.run(model), call.run(compiled))
    compiled.report.sqnr_db = levels
    least = _LEAST_EXACT if exact else _LEAST_FAST
    for name, db in levels.items():
        if not db >= least:
            why = (
                "so that the graph that was seen cannot be the forward that runs"
                if exact
                else "since its values are too small for int8 between layers; exact=True keeps the model's bits"
            )
            raise ValueError(
                f"{type(model).__name__} stays un-chained: chained, its {name} keeps {db:.1f} dB of the model's own on "
                f"the example, {why}"
            )


def _device_of(model: nn.Module) -> torch.device:
    devices = {t.device for t in itertools.chain(model.parameters(), model.buffers())}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"the model is on {names}; compile the part on each device by itself")
    return devices.pop() if devices else torch.device("cpu")
