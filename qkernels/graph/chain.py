"""Rewrites the graph of a model so that its int8 layers hand each other int8.

Adds and clamps move into the epilogue of the layer before them. Then every value gets a format. On the CPU runs of
steps become programs; on other devices operators take and return int8.

The bits stay those of the model as it was where that is asked for (docs/graph.md). Else a value that a layer reads as
int8 and a residual add reads too is added as int8, an activation between two layers becomes a table, and norms,
attention and the like become steps of our own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from qkernels.graph import borders, nodes, tables
from qkernels.graph.formats import Formats, Role, stored
from qkernels.graph.fuse import fuse, merge_linears, name_layers, ours
from qkernels.graph.lower import Refused, build, left_to_torch, replace
from qkernels.graph.report import ChainReport, LayerChain
from qkernels.graph.spellings import respell
from qkernels.graph.steps import Row, role_of, row
from qkernels.graph.steps.moves import window

aten = torch.ops.aten


def chain_on_cpu(
    graph: fx.GraphModule, model: nn.Module, exact: bool, max_batch: int | None
) -> tuple[fx.GraphModule, ChainReport]:
    """The graph with programs in it."""
    if not exact:
        respell(graph)
    rows = _prepared(graph, model, activations=not exact)
    torchs: set[fx.Node] = set()  # what programs refused, and what is torch's at their borders

    def row_of(node: fx.Node) -> Row | None:
        return None if node in torchs else row(node, exact)

    while True:
        torchs |= borders.planes_of_torch(graph.graph, row_of)
        views = borders.views_of_torch(graph.graph, row_of)
        torchs |= views
        formats = Formats(
            graph.graph, lambda n: role_of(row_of(n)), exact=exact, rescales=not exact
        )
        try:
            builders = build(graph, row_of)
        except Refused as error:
            torchs = (torchs - views) | set(error.reasons)
        else:
            break
    report = _report(rows, formats)
    borders.call_methods(views)
    replace(graph, builders, max_batch)
    report.unfused = [nodes.where(node) for node in left_to_torch(graph) if node not in views]
    return graph, report


def chain_on_device(
    graph: fx.GraphModule, model: nn.Module, exact: bool
) -> tuple[fx.GraphModule, ChainReport]:
    """The graph of operators, which torch's stream runs one after the other."""
    rows = _prepared(graph, model, activations=False)

    def role(node: fx.Node) -> Role | None:
        found = role_of(row(node, exact))
        return None if found is Role.COMPUTES else found

    formats = Formats(graph.graph, role, exact=exact, rescales=False)
    for node in list(graph.graph.nodes):
        _apply(graph, node, role(node))
    report = _report(rows, formats)
    graph.graph.lint()
    graph.recompile()
    report.unfused = [nodes.where(node) for node in left_to_torch(graph)]
    return graph, report


def _prepared(
    graph: fx.GraphModule, model: nn.Module, *, activations: bool
) -> dict[fx.Node, LayerChain]:
    name_layers(graph)
    merge_linears(graph, model)
    fused = fuse(graph, activations=activations)
    if not fused:
        raise ValueError(f"{type(model).__name__} has no int8 layer to chain; quantize it first")
    return fused


def _report(rows: dict[fx.Node, LayerChain], formats: Formats) -> ChainReport:
    for node, line in rows.items():
        x = nodes.arguments(node)["x"]
        line.reads = "int8" if stored(x) else "float32"
        line.writes, line.why = ("int8", "") if stored(node) else ("float32", formats.why[node])
    return ChainReport(list(rows.values()))


# ---- as operators


def _apply(graph: fx.GraphModule, node: fx.Node, role: Role | None) -> None:
    format = stored(node)
    if role is Role.LAYER:
        _apply_layer(graph, node)
    elif role is Role.TABLE and format and (x := stored(node.args[0])):  # type: ignore[arg-type]
        table = tables.table_of(tables.function_of(node), x, format)  # type: ignore[arg-type]
        device = nodes.value(node).device  # type: ignore[union-attr]
        with graph.graph.inserting_before(node):
            held = nodes.constant(graph, f"table_{node.name}", table.to(device))
        node.target, node.args, node.kwargs = ours.lookup.default, (node.args[0], held), {}
    elif role is Role.MOVES:
        _apply_mover(graph, node, format)
    elif role is None and node.op == "call_function":
        _give_contiguous(graph, node)


def _apply_layer(graph: fx.GraphModule, node: fx.Node) -> None:
    given = nodes.arguments(node)
    new: dict[str, Any] = {}
    if given["residual"] is not None and (r := stored(given["residual"])):
        new |= {"residual_scale": r[0], "residual_zero_point": r[1]}
    if format := stored(node):
        new |= {"out_dtype": torch.int8, "output_scale": format[0], "output_zero_point": format[1]}
    x = given["x"]
    torchs = x.op == "placeholder" or (x.op == "call_function" and not _is_ours(x))
    if torchs and node.target is ours.conv2d.default:  # int8 flows as NHWC
        with graph.graph.inserting_before(node):
            last: dict[str, Any] = {"memory_format": torch.channels_last}
            new["x"] = graph.graph.call_function(aten.contiguous.default, (x,), last)
        new["x"].meta = dict(x.meta)
    nodes.set_arguments(node, **new)


def _is_ours(node: fx.Node) -> bool:
    return role_of(row(node, False)) not in (None, Role.COMPUTES)


def _apply_mover(graph: fx.GraphModule, node: fx.Node, format: Any) -> None:
    if not format:
        return
    given = nodes.arguments(node)
    if node.target is aten.max_pool2d.default:
        kernel, stride, padding, dilation = window(given)
        node.target = ours.max_pool2d.default
        node.args = (given["self"], kernel, stride, padding, dilation, given["ceil_mode"])
        node.kwargs = {}
    elif node.target in (aten.pad.default, aten.constant_pad_nd.default):
        nodes.set_arguments(node, value=format[1])


def _give_contiguous(graph: fx.GraphModule, node: fx.Node) -> None:
    """Steps left to torch see the memory format that they would without us."""
    for x in node.all_input_nodes:
        if x.op == "call_function" and _is_ours(x) and len(nodes.shape(x) or ()) == 4:
            with graph.graph.inserting_before(node):
                plain = graph.graph.call_function(aten.contiguous.default, (x,))
            plain.meta = dict(x.meta)
            node.replace_input_with(x, plain)
