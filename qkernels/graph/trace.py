"""The call of a quantized model as one functional graph of ATen operators, by torch.export.

What torch.export leaves in a graph that is no step goes here: asserts, dropout, in-place forms, constants that could be
computed once. Batch, sizes and token counts are free where the model allows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import Max

from qkernels.graph.identities import simplify
from qkernels.graph.nodes import (
    alike,
    arguments,
    expression,
    filled_with,
    hint,
    is_fixed,
    put_constant,
    repeated,
    same_size,
    sizes,
    tensor_of,
    value,
)
from qkernels.graph.windows import cuts_windows
from qkernels.modules.calling import Call
from qkernels.modules.capture import CaptureError, exported

aten = torch.ops.aten


@dataclass
class Traced:
    """A model's call as a graph.

    Attributes:
        graph: takes the tensors of the call in order and returns a tuple of the tensors of the answer.
        inputs: how the arguments of a call are flattened; only its tensors are inputs.
        output: how the answer is put together.
        sizes: of each input, a size where it has to be that of the example, None where it is free.
        free_sizes: whether other sizes than the batch were left free where they could be.
    """

    graph: fx.GraphModule
    inputs: pytree.TreeSpec
    output: pytree.TreeSpec
    sizes: list[tuple[int | None, ...]]
    free_sizes: bool = False


def trace(model: nn.Module, call: Call, *, free_sizes: bool = True) -> Traced:
    """The graph of ``model`` for such a call; the model is left as it was.

    ``free_sizes``: sizes other than the batch may differ later where the model allows it, and makes no tensor of them.

    Raises:
        CaptureError: torch.export cannot follow the forward, or it changes its own buffers.
    """
    if free_sizes and not cuts_windows(model, call):
        traced = _traced(model, call, all_sizes=True)
        if not any(_follows_from_sizes(node) for node in traced.graph.graph.nodes):
            traced.free_sizes = True
            return traced
    return _traced(model, call, all_sizes=False)


# ---- capture


def _traced(model: nn.Module, call: Call, all_sizes: bool) -> Traced:
    """The graph of a batch of at least 2 where that leaves the batch free; else of the sizes of the call alone."""
    traced = _normalized(_exported(model, call, all_sizes), call)
    tensors = [x for x in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor)]
    if all(map(_is_taken, tensors, traced.sizes)):
        return traced
    return _normalized(exported(model, call, all_sizes), call)


def _is_taken(x: Tensor, sizes: tuple[int | None, ...]) -> bool:
    return all(needed in (None, size) for size, needed in zip(x.shape, sizes, strict=True))


def _exported(model: nn.Module, call: Call, all_sizes: bool) -> torch.export.ExportedProgram:
    """The export of a batch of at least 2, since a size of 1 is a constant to torch.export; of 1 where that fails."""
    twice = _twice(call)
    if twice is not None:
        try:
            program = exported(model, twice, all_sizes)
        except CaptureError:
            pass
        else:
            if _has_free_batch(program):
                return program
    return exported(model, call, all_sizes)


def _twice(call: Call) -> Call | None:
    tensors = [x for x in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor)]
    if not tensors or any(x.dim() == 0 or len(x) != 1 for x in tensors):
        return None
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda x: torch.cat([x, x]), (call.args, call.kwargs)
    )
    return Call(args, kwargs)


def _has_free_batch(program: torch.export.ExportedProgram) -> bool:
    inputs = [x for n in _inputs(program) if (x := value(n)) is not None]
    return not any(is_fixed(x.shape[0]) for x in inputs)


def _inputs(program: torch.export.ExportedProgram) -> list[fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [n for n in program.graph.find_nodes(op="placeholder") if n.name in names]


def _normalized(program: torch.export.ExportedProgram, call: Call) -> Traced:
    _share_batch(program)
    graph = _flat(program)
    if not _make_functional(graph):
        program = program.run_decompositions({})
        graph = _flat(program)
        if not _make_functional(graph):
            raise CaptureError("it writes into its own tensors")
    _part_splits(graph)
    _fold_constants(graph)
    _fold_repeated(graph)
    while simplify(graph):
        _fold_constants(graph)
        _fold_repeated(graph)
    graph.graph.eliminate_dead_code()
    for node in graph.graph.find_nodes(op="placeholder"):
        if value(node) is None:
            if node.users:
                raise CaptureError(f"its argument {node.name!r} is a number that may change")
            graph.graph.erase_node(node)
    _note_ranges(graph, call)
    known = _sizes(program)
    for node, needed in zip(graph.graph.find_nodes(op="placeholder"), known, strict=True):
        node.meta["sizes"] = needed
    graph.recompile()
    spec = pytree.tree_structure((call.args, call.kwargs))
    output = program.call_spec.out_spec
    assert output is not None
    return Traced(graph, spec, output, known)


def _share_batch(program: torch.export.ExportedProgram) -> None:
    """Words and their masks, integers of one shape, are of one batch: a compiled model is called with no other."""
    first: dict[Any, Any] = {}
    for node in _inputs(program):
        x = value(node)
        if (
            x is not None
            and not x.is_floating_point()
            and x.dim() == 2
            and not is_fixed(x.shape[0])
        ):
            batch = first.setdefault(hint(x.shape[0]), x.shape[0])
            assert batch == x.shape[0]  # asked of symbols, this makes them one


def _note_ranges(graph: fx.GraphModule, call: Call) -> None:
    """Keep the least and the largest of the example's integers."""
    tensors = [x for x in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor)]
    if detect_fake_mode(tensors) is not None:
        return
    for node, x in zip(graph.graph.find_nodes(op="placeholder"), tensors, strict=True):
        if not x.is_floating_point() and x.numel():
            node.meta["range"] = int(x.min()), int(x.max())


def _flat(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The graph over the model's own tensors, from a flat list of inputs to a flat tuple of outputs."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    graph.graph.set_codegen(fx.graph.CodeGen())
    for node in list(graph.graph.nodes):
        if _is_inlined(node):
            _inline(graph, node)
    for node in list(graph.graph.nodes):
        if node.target in _CHECKS:
            graph.graph.erase_node(node)
        elif _is_no_op(node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # the copy that made the view possible may be gone
    graph.graph.eliminate_dead_code(
        is_impure_node=lambda n: n.op in ("placeholder", "output") or _writes(n)
    )
    graph.graph._tracer_cls = None
    return fx.GraphModule(graph, graph.graph)  # what torch.export returns cannot be pickled


_CHECKS = (
    aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg,
    aten._assert_async.default, aten.sym_constrain_range_for_size.default, aten.sym_constrain_range.default,
)  # fmt: skip
_COPIES = (
    aten.detach.default, aten.detach_.default, aten.alias.default, aten.clone.default, aten.contiguous.default,
    aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.lift.default,
)  # fmt: skip
_DROPOUTS = (
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default,
    aten.alpha_dropout.default, aten.alpha_dropout_.default, aten.feature_alpha_dropout.default,
)  # fmt: skip


def _is_no_op(node: fx.Node) -> bool:
    if node.target in _COPIES:
        return True
    if node.target in _DROPOUTS:
        return not arguments(node).get("train", arguments(node).get("training"))
    if node.op == "call_function" and getattr(node.target, "overloadpacket", None) in (
        aten.to, aten._to_copy, aten.type_as, aten.expand, aten.expand_as, aten.view, aten.reshape
    ):  # fmt: skip
        x, y = value(node.args[0]), value(node)
        return x is not None and y is not None and alike(x, y)
    return False


def _is_inlined(node: fx.Node) -> bool:
    """Whether it runs a part of the graph under a mode of autograd or autocast that has no meaning here."""
    name = getattr(node.target, "__name__", "")
    if name == "wrap_with_set_grad_enabled":
        return True
    return name == "wrap_with_autocast" and node.args[2] is False


def _inline(graph: fx.GraphModule, node: fx.Node) -> None:
    at = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
    inner = graph.get_submodule(str(node.args[at].target))  # type: ignore[union-attr]
    assert isinstance(inner, fx.GraphModule)
    given = iter(node.args[at + 1 :])
    seen: dict[fx.Node, Any] = {n: next(given) for n in inner.graph.find_nodes(op="placeholder")}
    with graph.graph.inserting_before(node):
        returned = graph.graph.graph_copy(inner.graph, seen)
    outputs = returned if isinstance(returned, tuple | list) else (returned,)
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(outputs[user.args[1]])  # type: ignore[index]
            graph.graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(outputs[0])
    graph.graph.erase_node(node)


# ---- in-place forms


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _views(node: fx.Node) -> bool:
    """Whether the node's value may share memory with what it reads."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
    )


def _make_functional(graph: fx.GraphModule) -> bool:
    """Give in-place steps their other form; False where a view of what they write would have to change with it."""
    for node in list(graph.graph.nodes):
        if not _writes(node):
            continue
        written = node.args[0]
        other = _out_of_place(node.target)
        shared = isinstance(written, fx.Node) and (
            written.op == "get_attr" or _views(written) or any(_views(u) for u in written.users)
        )
        if other is None or shared or not isinstance(written, fx.Node):
            return False
        node.target = other
        written.replace_all_uses_with(node, delete_user_cb=_later(node).__contains__)
    return True


def _later(node: fx.Node) -> set[fx.Node]:
    later = set()
    while node.next.op != "root":
        node = node.next
        later.add(node)
    return later


def _out_of_place(target: Any) -> Callable[..., Any] | None:
    packet, _, overload = target.name().removeprefix("aten::").partition(".")
    if not target.name().startswith("aten::") or not packet.endswith("_"):
        return None
    other = getattr(getattr(aten, packet[:-1], None), overload or "default", None)
    return None if other is None or other._schema.is_mutable else other


# ---- several results

_SPLITS = (
    aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int,
    aten.tensor_split.sections, aten.tensor_split.indices, aten.unsafe_chunk.default, aten.unsafe_split.Tensor,
)  # fmt: skip


def _part_splits(graph: fx.GraphModule) -> None:
    """Make of every part of a split a slice of its own."""
    for node in list(graph.graph.nodes):
        parts = node.meta.get("val")
        if node.target not in _SPLITS or any(u.target is not operator.getitem for u in node.users):
            continue
        for user in list(node.users):
            view = _part(node, parts, user.args[1])
            if view is None:
                continue
            with graph.graph.inserting_before(user):
                part = graph.graph.call_function(*view)
            part.meta = dict(user.meta)
            user.replace_all_uses_with(part)
            graph.graph.erase_node(user)


def _part(split: fx.Node, parts: Any, index: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """The operator and arguments of the view that one part of a split is; None where its sizes are free."""
    dim = arguments(split)["dim"]
    if split.target is aten.unbind.int:
        return aten.select.int, (split.args[0], dim, index)
    until = [part.shape[dim] for part in parts[: index + 1]]
    if not all(map(is_fixed, until)):
        return None
    stop = sum(map(hint, until))
    return aten.slice.Tensor, (split.args[0], dim, stop - hint(until[-1]), stop)


# ---- constants


def _fold_constants(graph: fx.GraphModule) -> None:
    """Compute what needs no input once."""
    known = {n for n in graph.graph.nodes if n.op == "get_attr" or _is_filled(n)}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not known.issuperset(node.all_input_nodes):
            continue
        if (
            not isinstance(node.target, torch._ops.OpOverload)
            or torch.Tag.nondeterministic_seeded in node.target.tags
        ):
            continue
        with torch.no_grad():
            result = _computed(node, lambda n: _known(graph, n))
        if isinstance(result, Tensor):
            known.add(put_constant(graph, node, result))


def _fold_repeated(graph: fx.GraphModule) -> None:
    """Compute what follows from the size of the batch alone, and is the same for each of it, once.

    It is computed for batches of one and of two.
    """
    batch = next((n for n in graph.graph.nodes if _is_batch(n)), None)
    known: dict[fx.Node, tuple[Any, Any]] = {}
    for node in graph.graph.nodes:
        found = _for_one_and_two(graph, node, known, batch)
        if found is not None:
            known[node] = found
    for node, (one, two) in known.items():
        leaves = isinstance(one, Tensor) and not known.keys() >= set(node.users)
        repeats = node.target is aten.expand.default and node.args[0].op == "get_attr"  # type: ignore[union-attr]
        if not leaves or node.op == "get_attr" or repeats:
            continue
        if one.shape == two.shape and torch.equal(one, two):
            put_constant(graph, node, one)
        elif one.shape[:1] == (1,) and two.shape == (2, *one.shape[1:]) and (two == one).all():
            _put_repeated(graph, node, one, batch)


def _is_batch(node: fx.Node) -> bool:
    """Whether it is the free first size of an input."""
    if node.target is not aten.sym_size.int or node.args[1] != 0:
        return False
    return node.args[0].op == "placeholder" and not is_fixed(node.meta["val"])  # type: ignore[union-attr]


def _for_one_and_two(
    graph: fx.GraphModule,
    node: fx.Node,
    known: dict[fx.Node, tuple[Any, Any]],
    batch: fx.Node | None,
) -> tuple[Any, Any] | None:
    """What a node is for batches of one and of two; None where that follows from more."""
    if node.op == "get_attr":
        tensor = tensor_of(graph, node)
        return (tensor, tensor) if isinstance(tensor, Tensor) else None
    if node.op != "call_function":
        return None
    if batch is not None and _is_batch(node):
        return (1, 2) if same_size(node.meta["val"], batch.meta["val"]) else None
    if not known.keys() >= set(node.all_input_nodes):
        return None
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or not callable(node.target):
        return None
    try:
        with torch.no_grad():
            return _computed(node, lambda n: known[n][0]), _computed(node, lambda n: known[n][1])
    except (RuntimeError, ValueError, IndexError):  # it is made for other batches
        return None


def _computed(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _put_repeated(graph: fx.GraphModule, node: fx.Node, one: Tensor, batch: fx.Node | None) -> None:
    with graph.graph.inserting_before(node):
        new = repeated(graph, f"constant_{node.name}", one, batch)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def _is_filled(node: fx.Node) -> bool:
    """Whether it is a new tensor of one number and of the model's sizes, which takes its dtype alone from another."""
    x, number = value(node), filled_with(node)
    return x is not None and isinstance(number, int | float) and all(map(is_fixed, x.shape))


def _known(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    if node.op == "get_attr":
        return tensor_of(graph, node)
    x = value(node)
    assert x is not None
    return torch.full(sizes(x), filled_with(node), dtype=x.dtype, device=x.device)


def _follows_from_sizes(node: fx.Node) -> bool:
    """Whether it is a tensor made of sizes of the inputs other than their batch."""
    if node.op != "call_function" or value(node) is None:
        return False
    reads = [n for n in node.all_input_nodes if value(n) is not None]
    return not reads


# ---- sizes


def _sizes(program: torch.export.ExportedProgram) -> list[tuple[int | None, ...]]:
    """Which sizes of the inputs the program was specialized to, or asks something of."""
    asked = set()
    for guard in _guards(program):
        of_two_inputs = all(side.is_symbol for side in guard.args)  # to which programs hold
        about_strides = guard.has(Max)
        if isinstance(guard, sympy.Eq) and not of_two_inputs and not about_strides:
            asked |= guard.free_symbols
    bounded = {s for s, r in program.range_constraints.items() if r.upper < 1 << 30}

    def size(given: int | torch.SymInt) -> int | None:
        if is_fixed(given):
            return hint(given)
        expr = expression(given)
        free = expr.is_symbol and expr not in asked and expr not in bounded
        return None if free else hint(given)

    inputs = (value(node) for node in _inputs(program))
    return [tuple(map(size, x.shape)) for x in inputs if x is not None]


def _guards(program: torch.export.ExportedProgram) -> Iterator[Any]:
    for node in _inputs(program):
        x = value(node)
        for s in () if x is None else x.shape:
            if isinstance(s, torch.SymInt):
                env = s.node.shape_env
                yield from (env.replace(guard.expr) for guard in env.guards)  # sizes that are one
                return
