"""Steps that move values, which do to int8 what they do to float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qkernels.graph import nodes
from qkernels.graph.builder import Builder, LeftToTorch
from qkernels.graph.formats import Role, stored
from qkernels.graph.places import Atom, Place, Tangled
from qkernels.graph.steps.layers import like_image
from qkernels.graph.steps.pointwise import joined
from qkernels.graph.steps.table import step

aten = torch.ops.aten
_END = 2**31  # and beyond: where a slice ends that takes all


# ---- views, which move nothing


VIEWS: list[Any] = []  # the operators of this section


def _view(*operators: Any) -> Any:
    VIEWS.extend(operators)
    return step(*operators, role=Role.MOVES, exact=True)


@_view(
    aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims,
    aten.squeeze.default,
)  # fmt: skip
def reshape(b: Builder, node: fx.Node) -> None:
    x, source, y = b.place(node.args[0]), nodes.value(node.args[0]), nodes.value(node)
    assert source is not None and y is not None
    if x.repeats(nodes.sizes(source)):
        raise LeftToTorch("it makes a view of repeated values")
    shape, fixed = nodes.sizes(y), [nodes.is_fixed(s) for s in y.shape]
    try:
        place = x.reshaped(shape, fixed)
    except Tangled:
        place = b.in_order(x).reshaped(shape, fixed)
    b.put(node, place)


@_view(aten.unsqueeze.default)
def unsqueeze(b: Builder, node: fx.Node) -> None:
    x = b.place(node.args[0])
    dim = nodes.arguments(node)["dim"]
    b.put(node, x.with_axis(dim % (len(x.axes) + 1)))


@_view(aten.permute.default)
def permute(b: Builder, node: fx.Node) -> None:
    x = b.place(node.args[0])
    b.put(node, x.permuted([d % len(x.axes) for d in nodes.arguments(node)["dims"]]))


@_view(aten.transpose.int)
def transpose(b: Builder, node: fx.Node) -> None:
    x = b.place(node.args[0])
    order = list(range(len(x.axes)))
    i, j = node.args[1], node.args[2]
    order[i], order[j] = order[j], order[i]  # type: ignore[index]
    b.put(node, x.permuted(order))


@_view(aten.t.default, aten.numpy_T.default)
def reverse_axes(b: Builder, node: fx.Node) -> None:
    x = b.place(node.args[0])
    b.put(node, x.permuted(list(range(len(x.axes)))[::-1]))


@_view(aten.slice.Tensor)
def slice_(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    x, y = b.place(given["self"]), nodes.value(node)
    source = nodes.value(given["self"])
    assert y is not None and source is not None
    dim = given["dim"] % len(x.axes)
    start, stride = given["start"] or 0, given["step"]
    whole, taken = source.shape[dim], y.shape[dim]
    if nodes.same_size(whole, taken):
        b.put(node, x)
        return
    if not isinstance(stride, int) or not isinstance(start, int):
        raise LeftToTorch("where its slice begins follows from the input")
    if start < 0 and not nodes.is_fixed(whole):
        raise LeftToTorch("its slice counts from the end of a free size")
    start = start % nodes.hint(whole) if start < 0 else start
    to_end = given["end"] is None or (isinstance(given["end"], int) and given["end"] >= _END)
    if not nodes.is_fixed(taken) and not to_end:
        raise LeftToTorch("where its slice ends follows from the input")
    count = nodes.hint(taken) if nodes.is_fixed(taken) else None
    b.put(node, _with_one_part(b, x, dim, stride).sliced(dim, start, count, stride))


@_view(aten.select.int)
def select(b: Builder, node: fx.Node) -> None:
    given: dict[str, Any] = nodes.arguments(node)
    x, source = b.place(given["self"]), nodes.value(given["self"])
    assert source is not None
    dim, index = given["dim"] % len(x.axes), given["index"]
    size = source.shape[dim]
    if not isinstance(index, int) or (index < 0 and not nodes.is_fixed(size)):
        raise LeftToTorch("what it selects follows from the input")
    if not x.axes[dim]:
        b.put(node, x.without_axes([dim]))
        return
    index = index % nodes.hint(size) if index < 0 else index
    b.put(node, _with_one_part(b, x, dim).selected(dim, index))


@_view(aten.expand.default)
def expand(b: Builder, node: fx.Node) -> None:
    x, y = b.place(node.args[0]), nodes.value(node)
    assert y is not None
    b.put(node, Place(x.value, x.atoms, (*[()] * (y.dim() - len(x.axes)), *x.axes)))


def _with_one_part(b: Builder, x: Place, dim: int, stride: int = 1) -> Place:
    """The tensor in a place where that axis is one atom, of which every ``stride``-th can be taken."""
    if len(x.axes[dim]) == 1:
        atom = x.atoms[x.axes[dim][0]]
        if atom.is_whole or atom.stride == stride == 1:
            return x
    return b.in_order(x)


# ---- joins


@step(aten.cat.default, aten.concat.default, role=Role.MOVES, exact=True)
def cat(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    parts = list(given["tensors"])
    y = nodes.value(node)
    assert y is not None
    dim = given["dim"] % y.dim()
    first = next((p for p in parts if b.constant(p) is None), None)
    if first is None:
        raise LeftToTorch("it joins constants")
    x = b.split_at(b.as_format(b.place(first), stored(node)), dim)
    total = nodes.sizes(y)[dim]
    if not nodes.is_fixed(y.shape[dim]):
        raise LeftToTorch("the size of what it joins is free")
    atoms, axes, axis = _joined(x, dim, total)
    out = b.write(Place(-1, atoms, axes), b.rank(x), stored(node))
    at = 0
    for part in parts:
        size = nodes.sizes(nodes.value(part))[dim]  # type: ignore[arg-type]
        join = {"join_axis": axis, "join_at": at, "join_total": total}
        if (tensor := b.constant(part)) is not None:
            b.add_constant(tensor, out, x, join)
        else:
            b.add_part(b.as_format(_whole(b, part), stored(node)), out, dim, join)
        at += size
    b.put(node, out)


def _whole(b: Builder, node: fx.Node) -> Place:
    """The place of a value, whose numbers are there as often as it has them."""
    place, x = b.place(node), nodes.value(node)
    assert x is not None
    if not place.repeats(nodes.sizes(x)):
        return place
    if not all(map(nodes.is_fixed, x.shape[1:])):
        raise LeftToTorch("it joins what is repeated along a free size")
    sizes = (1, *nodes.sizes(x)[1:])
    return joined(b, "mul", place, torch.ones(sizes), nodes.sizes(x), b.formats[place.value])


def _joined(
    x: Place, dim: int, total: int
) -> tuple[tuple[Atom, ...], tuple[tuple[int, ...], ...], int]:
    """The box of ``x`` with another size along an axis of the tensor, which is one of the box."""
    if len(x.axes[dim]) == 1:
        at = x.axes[dim][0]
        axis = x.atoms[at].axis
        atoms = (*x.atoms[:at], Atom(axis, total, True), *x.atoms[at + 1 :])
        return atoms, x.axes, axis
    if x.axes[dim]:
        raise LeftToTorch("it joins along an axis of several parts")
    axis = next(a for a in (1, 2, 3) if all(atom.axis != a for atom in x.atoms))
    at = sum(atom.axis < axis for atom in x.atoms)
    atoms = (*x.atoms[:at], Atom(axis, total, True), *x.atoms[at:])
    axes = tuple(
        (at,) if i == dim else tuple(a + (a >= at) for a in group) for i, group in enumerate(x.axes)
    )
    return atoms, axes, axis


# ---- windows that keep the scale


@step(aten.max_pool2d.default, role=Role.MOVES, exact=True)
def max_pool2d(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    x = b.image(b.place(given["self"]))
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = window(given)
    y = like_image(b, node, x, b.formats[x.value])
    b.add(
        "max_pool", "", b.read(x), y.value, kh=kh, kw=kw, stride_h=sh, stride_w=sw, pad_h=ph, pad_w=pw,
        dilation_h=dh, dilation_w=dw, ceil_mode=int(given["ceil_mode"]),
    )  # fmt: skip
    b.put(node, y)


@step(aten.pad.default, aten.constant_pad_nd.default, role=Role.MOVES, exact=True)
def pad(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    widths, mode = list(given["pad"]), given.get("mode", "constant")
    if any(not isinstance(w, int) or w < 0 for w in widths):
        raise LeftToTorch("its padding is negative or follows from the input")
    x = b.image(b.place(given["self"]))
    left, right, top, bottom, before, _ = widths[:6] + [0] * (6 - len(widths))
    format = b.formats[x.value]
    y = like_image(b, node, x, b.formats[x.value])
    sides = {"pad_left": left, "pad_right": right, "pad_top": top, "pad_bottom": bottom}
    if mode != "constant":
        b.add("pad", "", b.read(x), y.value, pad_mode=mode, **sides)
        b.put(node, y)
        return
    if given["value"] not in (None, 0, 0.0) or any(widths[6:]):
        raise LeftToTorch("it fills with another value than 0, or pads the batch")
    b.add(
        "copy", "", b.read(x), y.value, channel=before, fill=1, fill_value=format[1] if format else 0, **sides
    )  # fmt: skip
    b.put(node, y)


@step(
    aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, aten._upsample_nearest_exact2d.vec,
    aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default, role=Role.MOVES,
)  # fmt: skip
def resize(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    x, y = b.image(b.place(given["input" if "input" in given else "self"])), nodes.value(node)
    assert y is not None
    factors = given.get("scale_factors") or [given.get("scales_h"), given.get("scales_w")]
    fields: dict[str, Any] = {}
    for name, size, factor in zip("hw", y.shape[2:], factors, strict=True):
        if not nodes.is_fixed(size) and factor is None:
            raise LeftToTorch("its size follows from the input")
        fields[f"scale_{name}"] = 0.0 if factor is None else float(factor)
        fields[f"out_{name}"] = nodes.hint(size) if nodes.is_fixed(size) else 0
    modes = ("bilinear", "nearest-exact", "nearest")  # the first whose words the operator has
    mode = next(m for m in modes if all(word in str(node.target) for word in m.split("-")))
    out = like_image(b, node, x, b.formats[x.value])
    b.add(
        "resize",
        "",
        b.read(x),
        out.value,
        mode=mode,
        align_corners=int(bool(given.get("align_corners"))),
        **fields,
    )
    b.put(node, out)


def window(given: dict[str, Any]) -> list[list[int]]:
    """Kernel, stride, padding and dilation of a pooling, each for height and width."""
    kernel = _pair(given["kernel_size"])
    stride = _pair(given["stride"]) if given["stride"] else kernel
    return [kernel, stride, _pair(given["padding"]), _pair(given.get("dilation", [1]))]


def _pair(v: Any) -> list[int]:
    v = [v] if isinstance(v, int) else list(v)
    return v * 2 if len(v) == 1 else v
