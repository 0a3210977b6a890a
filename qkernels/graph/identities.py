"""Steps that are something simpler: lookups by positions in order, masks of which a part is always true.

They are what transformers make masks and segment ids of; without them a mask is a view of what the caller gave. And
windows along a line are windows of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qkernels.graph import nodes

aten = torch.ops.aten


def simplify(graph: fx.GraphModule) -> bool:
    """Put a simpler step in the place of what is one; whether there was any."""
    found = False
    for node in list(graph.graph.nodes):
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        with graph.graph.inserting_before(node):
            new = rule(graph, node) if rule is not None else None
        if new is not None:
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
            found = True
    return found


def _call(node: fx.Node, operator: Any, *args: Any) -> fx.Node:
    """A step that gives what ``node`` gave."""
    new = node.graph.call_function(operator, args)
    new.meta = dict(node.meta)
    return new


# ---- x[positions in order, ...] is a view of x


def _index(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    x, indices = node.args[0], node.args[1]
    source, result = nodes.value(x), nodes.value(node)
    if source is None or result is None or len(indices) != source.dim():  # type: ignore[arg-type]
        return None
    homes = [
        axis_in_order(graph, index, source.shape[i], result.dim())
        for i, index in enumerate(indices)  # type: ignore[arg-type]
    ]
    if None in homes or sorted(set(homes)) != homes:  # type: ignore[type-var]
        return None
    assert isinstance(x, fx.Node)
    new = x
    for axis in range(result.dim()):
        if axis not in homes:
            new = _unsqueezed(new, axis)
    new.meta = dict(node.meta)
    return new


def _unsqueezed(x: fx.Node, axis: int) -> fx.Node:
    new = x.graph.call_function(aten.unsqueeze.default, (x, axis))
    new.meta = {"val": nodes.value(x).unsqueeze(axis)}  # type: ignore[union-attr]
    return new


def axis_in_order(graph: fx.GraphModule, index: Any, size: Any, rank: int) -> int | None:
    """The axis of the result along which an index counts 0, 1, ... to ``size``; None where it does not."""
    given = nodes.value(index)
    if given is None or given.dtype != torch.int64:
        return None
    axes = [i for i, n in enumerate(given.shape) if not (nodes.is_fixed(n) and nodes.hint(n) == 1)]
    if len(axes) != 1 or not nodes.same_size(given.shape[axes[0]], size):
        return None
    if index.op == "get_attr":
        counted = nodes.tensor_of(graph, index).flatten()
        in_order = torch.equal(counted, torch.arange(len(counted)))
    else:
        in_order = _counts(index)
    return axes[0] + rank - given.dim() if in_order else None


def _counts(index: Any) -> bool:
    """Whether it is a view of an arange from 0 on."""
    while isinstance(index, fx.Node) and index.target in _VIEWS:
        if index.target is aten.slice.Tensor and not _takes_all(index):
            return False
        index = index.args[0]
    return isinstance(index, fx.Node) and index.target is aten.arange.default


_VIEWS = (aten.unsqueeze.default, aten.reshape.default, aten.slice.Tensor)


def _takes_all(node: fx.Node) -> bool:
    x, y = nodes.value(node.args[0]), nodes.value(node)
    return x is not None and y is not None and nodes.alike(x, y)


# ---- tokens that are padded are joined with constants


def _pad(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    given = nodes.arguments(node)
    x, widths = (given["self"] if "self" in given else given["input"]), list(given["pad"])
    if not any(widths):
        return x
    source = nodes.value(x)
    assert source is not None
    known = all(isinstance(w, int) and w >= 0 for w in widths) and not any(widths[4:])
    known = known and given.get("mode") in (None, "constant")
    batch = nodes.with_batch_of(node.graph, source)
    if source.dim() != 3 or not known or batch is None:
        return None
    if not all(map(nodes.is_fixed, source.shape[1:])):
        return None
    for i in range(0, len(widths), 2):
        dim = 2 - i // 2
        before, after = (
            _filled(graph, node, x, dim, width, given["value"] or 0.0, batch) if width else None
            for width in widths[i : i + 2]
        )
        parts = [p for p in (before, x, after) if p is not None]
        if len(parts) > 1:
            joined = _call(node, aten.cat.default, parts, dim)
            joined.meta["val"] = torch.cat([nodes.value(p) for p in parts], dim)  # type: ignore[misc]
            x = joined
    return x


def _filled(
    graph: fx.GraphModule,
    node: fx.Node,
    x: fx.Node,
    dim: int,
    width: int,
    number: float,
    given: fx.Node,
) -> fx.Node:
    """A tensor as ``x`` but for one size, of one number; ``given`` has its batch."""
    source = nodes.value(x)
    assert source is not None
    sizes = [width if i == dim else nodes.hint(n) for i, n in enumerate(source.shape)][1:]
    batch = node.graph.call_function(aten.sym_size.int, (given, 0))
    batch.meta = {"val": source.shape[0]}
    one = torch.full((1, *sizes), number)
    many = nodes.repeated(graph, f"constant_{node.name}_{dim}_{width}", one, batch)
    many.meta = dict(node.meta) | {"val": source.new_empty((source.shape[0], *sizes))}
    return many


# ---- x & True is x, x | False is x


def _joined_with(value: bool) -> Callable[[fx.GraphModule, fx.Node], fx.Node | None]:
    def rule(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        for known, other in (node.args[:2], node.args[1::-1]):
            if _is_all(graph, known, value) and nodes.value(other) is not None:
                return _expanded(node, other)
        return None

    return rule


def _is_all(graph: fx.GraphModule, node: Any, value: bool) -> bool:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    tensor = nodes.tensor_of(graph, node)
    return tensor.dtype == torch.bool and bool((tensor == value).all())


def _expanded(node: fx.Node, x: Any) -> fx.Node:
    """``x`` repeated to the sizes of ``node``."""
    source, result = nodes.value(x), nodes.value(node)
    assert source is not None and result is not None
    if nodes.alike(source, result):
        return x
    sizes = [-1] * result.dim()
    for i, (size, wanted) in enumerate(
        zip(reversed(source.shape), reversed(result.shape), strict=False)
    ):
        if not nodes.same_size(size, wanted):
            sizes[-1 - i] = nodes.hint(wanted)
    for i in range(result.dim() - source.dim()):
        sizes[i] = nodes.hint(result.shape[i])
    return _call(node, aten.expand.default, x, sizes)


# ---- places of a tensor of the model that holds one number have that number


def _gather(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    repeated, result = node.args[0], nodes.value(node)
    assert isinstance(repeated, fx.Node) and result is not None
    source = repeated.args[0] if repeated.target is aten.expand.default else None
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    tensor, sizes = nodes.tensor_of(graph, source).flatten(), result.shape[1:]
    if not len(tensor) or (tensor != tensor[0]).any() or not all(map(nodes.is_fixed, sizes)):
        return None
    one = tensor[0].expand(1, *map(nodes.hint, sizes)).contiguous()
    batch = repeated.args[1][0]  # type: ignore[index]
    new = nodes.repeated(graph, f"constant_{node.name}", one, batch)
    new.meta = dict(node.meta)
    return new


# ---- keys and values repeated for their queries are fewer heads


def _attention(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    given = nodes.arguments(node)
    if nodes.value(node).dim() == 5:  # type: ignore[union-attr]
        return _of_windows(node, given)
    few = [_heads_before(given[name]) for name in ("key", "value")]
    if None in few or given["enable_gqa"]:
        return None
    new = node.graph.call_function(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
    nodes.set_arguments(new, key=few[0], value=few[1], enable_gqa=True)
    new.meta = dict(node.meta)
    return new


def _of_windows(node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    """Attention [images, windows, heads, ...] as one of images that are windows; None where it has a mask."""
    named = [given.pop(name) for name in ("query", "key", "value")]
    read = list(map(nodes.value, named))
    if given["attn_mask"] is not None or any(x is None or x.dim() != 5 for x in read):
        return None
    windows = read[0].shape[1]  # type: ignore[union-attr]
    if not nodes.is_fixed(windows) or not all(
        nodes.same_size(x.shape[i], read[0].shape[i])  # type: ignore[union-attr]
        for x in read
        for i in (0, 1)
    ):
        return None
    parts = []
    for x, value in zip(named, read, strict=True):
        parts.append(_call(node, aten.flatten.using_ints, x, 0, 1))
        parts[-1].meta["val"] = value.flatten(0, 1)  # type: ignore[union-attr]
    y = _call(node, node.target, *parts)
    y.kwargs = {k: v for k, v in given.items() if k != "attn_mask"}
    y.meta["val"] = nodes.value(node).flatten(0, 1)  # type: ignore[union-attr]
    return _call(node, aten.unflatten.int, y, 0, [-1, nodes.hint(windows)])


def _heads_before(node: Any) -> fx.Node | None:
    """x [N, H, T, C] where a node is x[:, :, None] expanded and reshaped to [N, H * r, T, C]."""
    steps = (aten.reshape.default, aten.expand.default, aten.unsqueeze.default)
    chain = [node]
    for step in steps:
        if not isinstance(chain[-1], fx.Node) or chain[-1].target is not step:
            return None
        chain.append(chain[-1].args[0])
    repeated, many, one, x = map(nodes.value, chain)
    if repeated is None or many is None or one is None or x is None:
        return None
    if chain[2].args[1] != 2 or x.dim() != 4 or many.dim() != 5 or repeated.dim() != 4:
        return None
    heads = nodes.hint(many.shape[1]) * nodes.hint(many.shape[2])
    kept = all(nodes.same_size(repeated.shape[i], x.shape[i]) for i in (0, 2, 3))
    same = nodes.same_size(many.shape[1], x.shape[1])
    return chain[3] if kept and same and nodes.hint(repeated.shape[1]) == heads else None


# ---- what is written over a part of a tensor stands between the rest of it


def _slice_scatter(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    given = nodes.arguments(node)
    x, part, dim = given["self"], given["src"], given["dim"]
    source, written = nodes.value(x), nodes.value(part)
    assert source is not None and written is not None
    if nodes.alike(source, written):
        return part
    size, count = source.shape[dim], written.shape[dim]
    start = given["start"] or 0
    if (
        given["step"] != 1
        or not isinstance(start, int)
        or not nodes.is_fixed(size)
        or not nodes.is_fixed(count)
    ):
        return None
    size, count = nodes.hint(size), nodes.hint(count)
    start = min(start % size if start < 0 else start, size)
    kept = [(0, start), (start + count, size)]
    before, after = (_sliced(node, x, dim, *ends) if ends[0] < ends[1] else None for ends in kept)
    return _call(node, aten.cat.default, [p for p in (before, part, after) if p is not None], dim)


def _sliced(node: fx.Node, x: fx.Node, dim: int, start: int, end: int) -> fx.Node:
    part = _call(node, aten.slice.Tensor, x, dim, start, end)
    part.meta["val"] = nodes.value(x).narrow(dim, start, end - start)  # type: ignore[union-attr]
    return part


# ---- a copy of a tensor of the same form is the tensor


def _copy(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    written, source = node.args[:2]
    x, y = nodes.value(written), nodes.value(source)
    return source if x is not None and y is not None and nodes.alike(x, y) else None  # type: ignore[return-value]


# ---- windows along a line, and norms of it, are those of an image of height 1


def _group_norm(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    given = nodes.arguments(node)
    if nodes.value(given["input"]).dim() != 3:  # type: ignore[union-attr]
        return None
    image = _unsqueezed(given["input"], 2)
    normed = _call(node, node.target, image, *list(given.values())[1:])
    normed.meta["val"] = nodes.value(image)
    return _call(node, aten.squeeze.dim, normed, 2)


def _along_line(two: Any, *sizes: str) -> Callable[[fx.GraphModule, fx.Node], fx.Node | None]:
    """``two`` of an image of one line; ``sizes`` are the arguments that it has for height and width."""

    def rule(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        given = nodes.arguments(node)
        x = given.pop("self")
        if nodes.value(x).dim() != 3:  # type: ignore[union-attr]
            return None
        for name in sizes:
            own = given[name] if isinstance(given[name], int) else (*given[name], None)[0]
            given[name] = [] if own is None else [int(name != "padding"), own]
        image = _unsqueezed(x, 2)
        pooled = graph.graph.call_function(two, (image,), given)
        pooled.meta = dict(node.meta) | {"val": two(nodes.value(image), **given)}
        return _call(node, aten.squeeze.dim, pooled, 2)

    return rule


# ---- x.reshape_as(y) is x.reshape of the sizes of y


def _reshape_as(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    result = nodes.value(node)
    assert result is not None
    sizes = [int(n) if nodes.is_fixed(n) else -1 for n in result.shape]
    if sizes.count(-1) > 1:
        return None
    return _call(node, aten.reshape.default, node.args[0], sizes)


# ---- x.expand_as(y) is x.expand to the sizes of y


def _expand_as(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    x, result = nodes.value(node.args[0]), nodes.value(node)
    assert x is not None and result is not None
    new = result.dim() - x.dim()
    sizes = [
        -1 if i >= new and nodes.same_size(x.shape[i - new], n) else n
        for i, n in enumerate(result.shape)
    ]
    if not all(map(nodes.is_fixed, sizes)):
        return None
    return _call(node, aten.expand.default, node.args[0], list(map(int, sizes)))


# ---- products of matrices are one operator


def _bmm(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    return _call(node, aten.matmul.default, *node.args)


# ---- axes are swapped by one operator


def _swapaxes(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    return _call(node, aten.transpose.int, *node.args)


# ---- a tensor rolled along an axis is its end before its beginning


def _roll(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    given = nodes.arguments(node)
    x, shifts, dims = given["self"], given["shifts"], given["dims"]
    sizes = [nodes.value(x).shape[dim] for dim in dims]  # type: ignore[union-attr]
    if (
        not dims
        or not all(isinstance(s, int) for s in shifts)
        or not all(map(nodes.is_fixed, sizes))
    ):
        return None
    for shift, dim, size in zip(shifts, dims, map(nodes.hint, sizes), strict=True):
        if begin := -shift % max(size, 1):
            end, start = _sliced(node, x, dim, begin, size), _sliced(node, x, dim, 0, begin)
            x = _call(node, aten.cat.default, [end, start], dim)
    return x


_RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], fx.Node | None]] = {
    aten.index.Tensor: _index,
    aten.reshape_as.default: _reshape_as,
    aten.view_as.default: _reshape_as,
    aten.expand_as.default: _expand_as,
    aten.roll.default: _roll,
    aten.bmm.default: _bmm,
    aten.swapaxes.default: _swapaxes,
    aten.swapdims.default: _swapaxes,
    aten.slice_scatter.default: _slice_scatter,
    aten.copy.default: _copy,
    aten.group_norm.default: _group_norm,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    **dict.fromkeys((aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default), _joined_with(True)),
    **dict.fromkeys((aten.__or__.Tensor, aten.bitwise_or.Tensor, aten.logical_or.default), _joined_with(False)),
    aten.scaled_dot_product_attention.default: _attention,
    aten.max_pool1d.default: _along_line(aten.max_pool2d.default, "kernel_size", "stride", "padding", "dilation"),
    aten.avg_pool1d.default: _along_line(aten.avg_pool2d.default, "kernel_size", "stride", "padding"),
    aten.adaptive_avg_pool1d.default: _along_line(aten.adaptive_avg_pool2d.default, "output_size"),
    aten.gather.default: _gather,
}  # fmt: skip
