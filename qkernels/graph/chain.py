"""Rewrites a traced model so that its int8 layers hand each other int8.

Three passes. Adds and clamps move into the epilogue of the layer before them. Then every value gets a format: int8
where each of its readers wants the same scale, else float32. Last, the graph is told.

The bits stay those of the model as it was (docs/graph.md), unless it need not be exact: then a value that a layer reads
as int8 and a residual add reads too is added as int8, an activation between two layers becomes a table, and on the CPU
norms and attention become steps of our own.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode

from qkernels import reports
from qkernels.eval_mode import answering
from qkernels.graph import tables
from qkernels.graph import trace as nodes
from qkernels.graph.compiled import CompiledModel
from qkernels.graph.layers import ChainedLayer, Int8MaxPool2d, QParams
from qkernels.graph.lower import left_to_torch, lower
from qkernels.graph.qkv import merge_linears_
from qkernels.graph.report import ChainReport, LayerChain
from qkernels.graph.tokens import TokenStep, put_token_steps
from qkernels.nn import QuantConv2d, QuantLinear
from qkernels.outputs import output_sqnrs

Format = QParams | None  # int8 of this scale, or float32
_ANY: Any = "any"  # a reader that takes either
_LEAST_EXACT = (
    60.0  # dB; bits that a step of torch rounds otherwise in another memory format are nearer
)
_LEAST_FAST = 3.0  # int8 noise drawn anew, on random weights, is nearer


def compile(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    exact: bool = True,
    max_batch: int | None = None,
) -> CompiledModel:
    """The same model, its int8 layers chained; ``model`` itself stays as it is, with weights of its own.

    On the CPU its steps become programs. On a CUDA device they stay operators, on torch's current stream: torch.compile
    goes through them, and a CUDA graph can hold them. The result stays on the kind of device that ``model`` is on.
    ``example_inputs``: what ``model`` is called with, float32; batch and image size may differ later.
    ``exact=False``: a residual add reads the int8 that the next layer reads, where there is one, instead of float32;
    SiLU, GELU, hard-swish and their like between two layers take int8 to int8; on the CPU, layer normalization and
    attention are steps of a program, in an order of their own. Faster, and the one thing that changes a result.
    ``max_batch``: larger batches are refused; None: any batch is taken.
    The example runs through both models, and ``report.sqnr_db`` says how near their answers are (inf: the same bits).
    Raises ValueError for a model that cannot be traced, is in training mode, is on several devices, or has no int8
    layer, and where the two answers have nothing to do with each other.
    """
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    for i, x in enumerate(examples):
        if isinstance(x, Tensor) and x.dtype != torch.float32:
            raise ValueError(f"example input {i} is {x.dtype}; only float32 models can be chained")
    if model.training:
        raise ValueError("the model is in training mode; call .eval() first")
    traced = chain(model, examples, exact)
    report = reports.report(traced, ChainReport)
    program = lower(traced, max_batch) if _device_of(model).type == "cpu" else None
    report.unfused = [node.name for node in left_to_torch(traced)]
    compiled = CompiledModel(traced, program, examples, report, max_batch)
    _check_answer(model, compiled, examples, exact)
    return compiled


def _check_answer(
    model: nn.Module, compiled: CompiledModel, examples: tuple[Any, ...], exact: bool
) -> None:
    """Put into the report how near the answers of both models are on the example, and refuse what rounding cannot be.

    Raises:
        ValueError: they are further apart than that; the graph that was seen is not the forward that runs.
    """
    if (
        detect_fake_mode(list(examples)) is not None
    ):  # tensors without values, as a trace on another device has them
        return
    with answering(model):
        levels = output_sqnrs(model(*examples), compiled(*examples))
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


def chain(model: nn.Module, examples: tuple[Any, ...], exact: bool) -> fx.GraphModule:
    """The chained model as a graph of operators, which runs where the model is; a `ChainReport` is its report."""
    on_cpu = _device_of(model).type == "cpu"
    traced = nodes.trace(model, examples)
    _drop_no_ops(traced)
    merge_linears_(traced)
    if on_cpu and not exact:
        put_token_steps(traced)
    fused = _fuse(traced)
    if not fused:
        raise ValueError(f"{type(model).__name__} has no int8 layer to chain; quantize it first")
    wants = _settled_wants(traced, fused, exact)
    report = _apply(traced, fused, wants)
    nodes.rebuild(traced)
    return reports.hang(traced, report)


def _device_of(model: nn.Module) -> torch.device:
    devices = {t.device for t in itertools.chain(model.parameters(), model.buffers())}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"the model is on {names}; compile the part on each device by itself")
    return devices.pop() if devices else torch.device("cpu")


# ---- epilogues


def _drop_no_ops(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if nodes.is_no_op(traced, node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)


def _fuse(traced: fx.GraphModule) -> dict[fx.Node, LayerChain]:
    """A ChainedLayer for every call of an int8 layer, in order. Where two layers meet in an add, the later one takes
    it, since its other operand is then known."""
    fused = {}
    for node in reversed(list(traced.graph.nodes)):
        layer = nodes.module_of(traced, node)
        if isinstance(layer, QuantConv2d | QuantLinear) and layer.activation != "weight_only":
            is_rows = isinstance(layer, QuantLinear) or len(nodes.shape(node) or ()) == 4
            if is_rows and len(node.args) == 1:
                new, row = _fuse_one(traced, node, layer)
                fused[new] = row
    return dict(reversed(fused.items()))


def _fuse_one(
    traced: fx.GraphModule, node: fx.Node, layer: QuantConv2d | QuantLinear
) -> tuple[fx.Node, LayerChain]:
    taken, residual, clamp = [node], None, None
    while clamp is None and len(taken[-1].users) == 1:
        user = next(iter(taken[-1].users))
        clamp = nodes.clamp_of(traced, user)
        other = nodes.added_to(user, taken[-1]) if residual is None else None
        if clamp is None and other is None:
            break
        residual = residual or other
        taken.append(user)
    name = f"chained_{node.name}"
    traced.add_submodule(name, ChainedLayer(layer, clamp, str(node.target)))
    with traced.graph.inserting_after(taken[-1]):
        new = traced.graph.call_module(name, (node.args[0], residual))
    new.meta = dict(taken[-1].meta)
    taken[-1].replace_all_uses_with(new)
    for old in reversed(taken):
        traced.graph.erase_node(old)
    row = LayerChain(str(node.target), "float32", tuple(old.name for old in taken[1:]))
    return new, row


# ---- formats


def _reader_wants(
    traced: fx.GraphModule, reader: fx.Node, value: fx.Node, wants: dict, exact: bool
) -> Format:
    module = nodes.module_of(traced, reader)
    if isinstance(module, ChainedLayer):
        if reader.args[1] is value and exact:
            return None
        return module.input if reader.args[0] is value else _ANY
    if nodes.asks_shape(reader):
        return _ANY
    function = None if exact else tables.function_of(traced, reader)
    if function is not None and isinstance(wants[reader][0], tuple):
        return tables.input_format(function, wants[reader][0])
    moves = nodes.keeps_scale(traced, reader) or nodes.joined(reader)
    return wants[reader][0] if moves else None


def _settled_wants(
    traced: fx.GraphModule, fused: dict[fx.Node, LayerChain], exact: bool
) -> dict[fx.Node, tuple[Format, str]]:
    """As `_wants`, with a join int8 only where all that it joins can be that."""
    floats: set[fx.Node] = set()
    while True:
        wants = _wants(traced, fused, exact, floats)
        mixed = {
            n
            for n in traced.graph.nodes
            if n not in floats
            and any(_is_float(traced, x, fused, wants, exact) for x in nodes.joined(n))
        }
        if not mixed:
            return wants
        floats |= mixed


def _is_float(
    traced: fx.GraphModule, value: Any, fused: dict[fx.Node, LayerChain], wants: dict, exact: bool
) -> bool:
    if wants[value][0] is None:
        return True
    table = not exact and tables.function_of(traced, value) is not None
    if table or nodes.keeps_scale(traced, value):
        return _is_float(traced, value.args[0], fused, wants, exact)
    return value not in fused and not nodes.joined(value)


def _wants(
    traced: fx.GraphModule,
    fused: dict[fx.Node, LayerChain],
    exact: bool,
    floats_only: set[fx.Node],
) -> dict[fx.Node, tuple[Format, str]]:
    """The format every reader of a value can take, from the last value to the first; and why, where it is float."""
    wants: dict[fx.Node, tuple[Format, str]] = {}
    for node in reversed(traced.graph.nodes):
        asked = {u: _reader_wants(traced, u, node, wants, exact) for u in node.users}
        formats = {f for f in asked.values() if f is not _ANY}
        floats = [
            f"the add of {fused[u].name}" if u in fused and u.args[0] is not node else u.name
            for u, f in asked.items()
            if f is None
        ]
        if node in floats_only:
            wants[node] = (None, "a part of what it joins is float")
        elif not formats:
            wants[node] = (_ANY, "only a residual add reads it")
        elif floats:
            wants[node] = (None, f"read in float by {', '.join(floats)}")
        elif len(formats) > 1:
            wants[node] = (None, f"its readers want {len(formats)} scales")
        else:
            wants[node] = (formats.pop(), "")
    return wants


def _apply(traced: fx.GraphModule, fused: dict[fx.Node, LayerChain], wants: dict) -> ChainReport:
    stored: dict[fx.Node, Format] = {}
    report = ChainReport()
    for node in list(traced.graph.nodes):
        if node in fused:
            stored[node] = _apply_layer(traced, node, fused[node], stored, *wants[node])
            report.layers.append(fused[node])
        elif nodes.keeps_scale(traced, node):
            stored[node] = stored.get(node.args[0])
            _apply_mover(traced, node, stored[node])
        elif nodes.joined(node):
            want = wants[node][0]
            stored[node] = None if want is _ANY else want
        elif isinstance(step := nodes.module_of(traced, node), TokenStep):
            want = wants[node][0]
            stored[node] = step.output = None if want is _ANY else want
        elif _apply_table(traced, node, stored, wants):
            stored[node] = wants[node][0]
        else:
            _give_contiguous(traced, node, stored)
    for node, format in stored.items():
        node.meta["int8"] = format
    return report


def _apply_layer(
    traced: fx.GraphModule, node: fx.Node, row: LayerChain, stored: dict, want: Format, why: str
) -> Format:
    module = traced.get_submodule(str(node.target))
    assert isinstance(module, ChainedLayer)
    x, residual = node.args
    module.residual = stored.get(residual)
    module.output = None if want is _ANY else want
    row.reads = "int8" if stored.get(x) else "float32"
    row.writes, row.why = ("int8", "") if module.output else ("float32", why)
    if isinstance(module.layer, QuantConv2d) and x not in stored:  # int8 flows as NHWC
        last: dict[str, Any] = {"memory_format": torch.channels_last}
        with traced.graph.inserting_before(node):
            node.update_arg(0, traced.graph.call_method("contiguous", (x,), last))
    return module.output


def _apply_mover(traced: fx.GraphModule, node: fx.Node, stored: Format) -> None:
    module = nodes.module_of(traced, node)
    if node.op == "call_method" and node.target == "view":
        node.target = "reshape"  # NHWC has no such view
    if stored and isinstance(module, nn.MaxPool2d):
        name = f"int8_{node.name}"
        traced.add_submodule(name, Int8MaxPool2d(module))
        node.target = name
    elif stored and nodes.is_zero_pad(node):
        node.kwargs = {"value": stored[1]}


def _apply_table(traced: fx.GraphModule, node: fx.Node, stored: dict, wants: dict) -> bool:
    """Whether the node is a function that now takes int8 to int8; only its reading int8 can have made it one."""
    function = tables.function_of(traced, node)
    if function is None or not stored.get(node.args[0]):
        return False
    name = f"table_{node.name}"
    table = tables.table_of(function, stored[node.args[0]], wants[node][0])
    traced.add_submodule(name, tables.Lookup(table.to(_device_of(traced))))
    node.op, node.target, node.kwargs = "call_module", name, {}
    return True


def _give_contiguous(traced: fx.GraphModule, node: fx.Node, stored: dict) -> None:
    """Steps left to torch see the memory format that they would without us."""
    if nodes.asks_shape(node):
        return
    for value in node.all_input_nodes:
        if value in stored and len(nodes.shape(value) or ()) == 4:
            with traced.graph.inserting_before(node):
                node.replace_input_with(value, traced.graph.call_method("contiguous", (value,)))
