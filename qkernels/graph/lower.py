"""Runs of steps that programs take become programs: one operator each, no Python and no allocation inside.

What a run hands to torch, or to the caller, is float32 of torch's own layout; within it int8 flows in the order that
the kernels read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qkernels.graph import nodes
from qkernels.graph.builder import Builder, LeftToTorch
from qkernels.graph.formats import Role, stored
from qkernels.graph.program import TorchProgram
from qkernels.graph.steps import Row, role_of
from qkernels.program.format import assemble

Rows = Callable[[fx.Node], Row | None]


class Refused(Exception):
    """No program takes these nodes, for these reasons."""

    def __init__(self, reasons: dict[fx.Node, str]) -> None:
        super().__init__()
        self.reasons = reasons


def build(graph: fx.GraphModule, rows: Rows) -> list[Builder]:
    """The programs of a graph whose values have formats.

    Raises:
        Refused: where some step cannot be in one after all.
    """
    refused: dict[fx.Node, str] = {}
    builders = []
    found = [
        part
        for run in runs(graph.graph, lambda n: rows(n) is not None)
        for part in _by_batch(graph.graph, run)
    ]
    for run in found:
        if not any(role_of(rows(n)) is Role.LAYER for n in run):
            continue
        if len(found) > 1 and not any(_gains(n, rows) for n in run):
            continue  # its layers stay operators, which torch calls
        builder, failed = _build(graph, run, rows)
        refused |= failed
        builders.append(builder)
    if refused:
        raise Refused(refused)
    return builders


def _build(
    graph: fx.GraphModule, run: list[fx.Node], rows: Rows
) -> tuple[Builder, dict[fx.Node, str]]:
    """The program of a run, and why some of its nodes cannot be in one; others read those as they will read torch's."""
    builder = Builder(graph, run, sorted(_leaving(run), key=_place_among_results), rows)
    failed: dict[fx.Node, str] = {}
    for node in run:
        if nodes.has_many_owners(node):
            continue
        try:
            builder.lower(node, rows(node))
        except LeftToTorch as why:
            failed[node] = str(why)
    for node in builder.outputs if not failed else ():
        try:
            builder.results[node] = builder.finish(node)
        except LeftToTorch as why:
            failed[node] = str(why)
    return builder, failed


def _by_batch(graph: fx.Graph, run: list[fx.Node]) -> list[list[fx.Node]]:
    """Parts of a run, each over a batch of its own: a program has one."""
    batches = nodes.batches(graph)
    if len(batches) < 2:
        return [run]
    parts: dict[Any, list[fx.Node]] = {}
    home: dict[fx.Node, Any] = {}
    for node in run:
        own = nodes.batch_of(nodes.value(node), batches)  # type: ignore[arg-type]
        reads = next((home[x] for x in node.all_input_nodes if x in home), None)
        home[node] = reads if own is None else own
        parts.setdefault(home[node], []).append(node)
    return list(parts.values())


def _gains(node: fx.Node, rows: Rows) -> bool:
    """Whether a program makes a step faster than torch's call of the same operator does.

    It does where a value stays int8, or where the step need not have the bits of torch's.
    """
    row = rows(node)
    return (
        bool(stored(node))
        or node.meta.get("activation") is not None
        or (row is not None and not row.exact)
    )


def runs(graph: fx.Graph, ours: Callable[[fx.Node], bool]) -> list[list[fx.Node]]:
    """Put the nodes into an order with few changes between ours and torch's; ours between two of torch's are a run."""
    waiting = {n: len(n.all_input_nodes) for n in graph.nodes}
    ready: dict[bool, list[fx.Node]] = {False: [], True: []}
    for node, count in waiting.items():
        if count == 0:
            ready[ours(node)].append(node)
    order: list[fx.Node] = []
    found: list[list[fx.Node]] = []
    turn = False
    while ready[False] or ready[True]:
        run = []
        while ready[turn]:
            node = ready[turn].pop(0)
            run.append(node)
            for user in node.users:
                waiting[user] -= 1
                if waiting[user] == 0:
                    ready[ours(user)].append(user)
        order += run
        if turn and run:
            found.append(run)
        turn = not turn
    end = graph.output_node()
    for node in order:
        if node is not end:
            end.prepend(node)
    return found


def replace(graph: fx.GraphModule, builders: list[Builder], max_batch: int | None) -> None:
    """Put the programs in the place of the nodes that they stand for."""
    now: dict[fx.Node, fx.Node] = {}  # what stands for a value that programs hand to each other
    for i, builder in enumerate(builders):
        now |= _replace(graph, f"program_{i}", builder, max_batch, now)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _replace(
    graph: fx.GraphModule,
    name: str,
    builder: Builder,
    max_batch: int | None,
    now: dict[fx.Node, fx.Node],
) -> dict[fx.Node, fx.Node]:
    outputs = [builder.results[n] for n in builder.outputs]
    in_order = {n: i for i, n in enumerate(graph.graph.nodes)}
    read = sorted(builder.inputs, key=lambda n: in_order[now.get(n, n)])
    inputs = [builder.place(n).value for n in read]
    data = assemble(builder.values, builder.steps, inputs, outputs, max_batch)
    graph.add_submodule(name, TorchProgram(torch.from_numpy(data)))
    with graph.graph.inserting_after(builder.run[-1]):
        call = graph.graph.call_module(name, tuple(now.get(n, n) for n in read))
    parts: dict[fx.Node, fx.Node] = {}
    if len(outputs) == 1:
        call.meta = dict(builder.outputs[0].meta)
        builder.outputs[0].replace_all_uses_with(call)
        parts[builder.outputs[0]] = call
    else:
        for i, node in reversed(list(enumerate(builder.outputs))):
            with graph.graph.inserting_after(call):
                part = graph.graph.call_function(operator.getitem, (call, i))
            part.meta = dict(node.meta)
            node.replace_all_uses_with(part)
            parts[node] = part
    for node in reversed(builder.run):
        if not nodes.has_many_owners(node):  # torch computes it too, if it reads it
            graph.graph.erase_node(node)
    return parts


def whole(graph: fx.GraphModule) -> TorchProgram | None:
    """The one program that the graph is; None where torch has a part in it."""
    calls = [n for n in graph.graph.nodes if n.op.startswith("call") and not is_part(graph, n)]
    if len(calls) != 1 or not isinstance(program := module_of(graph, calls[0]), TorchProgram):
        return None
    call = calls[0]
    given = list(graph.graph.find_nodes(op="placeholder"))
    (returned,) = graph.graph.output_node().args
    assert isinstance(returned, tuple | list)
    index = [
        0 if n is call else n.args[1] if isinstance(n, fx.Node) and n.args[:1] == (call,) else None
        for n in returned
    ]
    count = max(1, sum(is_part(graph, n) for n in graph.graph.nodes))
    return program if index == list(range(count)) and list(call.args) == given else None


def left_to_torch(graph: fx.GraphModule) -> list[fx.Node]:
    """The steps of a lowered graph that torch computes."""
    return [
        n
        for n in graph.graph.nodes
        if n.op == "call_function"
        and nodes.value(n) is not None
        and not is_part(graph, n)
        and n.target not in OURS
    ]


OURS = tuple(
    getattr(torch.ops.qkernels, name).default
    for name in ("conv2d", "linear", "lookup", "max_pool2d", "avg_pool2d", "mean_pool2d")
)


def is_part(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it is one of a program's outputs."""
    return node.target is operator.getitem and isinstance(
        module_of(graph, node.args[0]), TorchProgram
    )


def module_of(graph: fx.GraphModule, node: Any) -> Any:
    """The module that a node calls."""
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return graph.get_submodule(str(node.target)) if called else None


def _leaving(run: list[fx.Node]) -> list[fx.Node]:
    """The values of a run that others read and do not have anew."""
    inside = set(run)
    return [n for n in run if not inside.issuperset(n.users) and not nodes.has_many_owners(n)]


def _place_among_results(node: fx.Node) -> int:
    """The place among what the model returns; those that it does not return come last."""
    (returned,) = node.graph.output_node().args
    results = returned if isinstance(returned, list | tuple) else [returned]
    return next((i for i, result in enumerate(results) if result is node), len(results))
