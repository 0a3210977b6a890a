"""Int8 convolutions and linear layers."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from qkernels.graph import nodes
from qkernels.graph.builder import Builder, LeftToTorch, output_fields
from qkernels.graph.formats import Format, Role, input_of, stored
from qkernels.graph.fuse import ours
from qkernels.graph.places import Atom, Place, groups_by_axis
from qkernels.graph.steps.table import step


@step(ours.conv2d.default, role=Role.LAYER, exact=True)
def conv2d(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    x = b.image(_input(b, node, given))
    y = like_image(b, node, x, stored(node))
    left, right, top, bottom = given["padding"]
    (kh, kw), (sh, sw), (dh, dw) = given["kernel_size"], given["stride"], given["dilation"]
    residual = [b.read(b.image(r))] if (r := _residual(b, given)) is not None else []
    made = b.add(
        "conv2d", "", b.read(x, anywhere=True), y.value, *residual, kh=kh, kw=kw, groups=given["groups"], stride_h=sh,
        stride_w=sw, dilation_h=dh, dilation_w=dw, pad_top=top, pad_bottom=bottom, pad_left=left, pad_right=right,
        pad_mode=given["padding_mode"],
    )  # fmt: skip
    _finish(b, node, made, given)
    b.put(node, y)


@step(ours.linear.default, role=Role.LAYER, exact=True)
def linear(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    x = b.rows(_input(b, node, given))
    shape = nodes.shape(node)
    assert shape is not None
    lead = [i for i in range(len(x.atoms)) if x.atoms[i].axis < 3]
    atoms = (*(x.atoms[i] for i in lead), Atom(3, shape[-1], True))
    y = b.write(Place(-1, atoms, (*x.axes[:-1], (len(lead),))), b.rank(x), stored(node))
    residual = [b.read(b.like(r, y))] if (r := _residual(b, given)) is not None else []
    k = math.prod(x.atoms[a].size for a in groups_by_axis(x)[3])
    made = b.add("linear", "", b.read(x), y.value, *residual, k=k)
    _finish(b, node, made, given)
    b.put(node, y)


def _input(b: Builder, node: fx.Node, given: dict[str, Any]) -> Place:
    """The input, in the layer's own scale where it is int8 already."""
    x, wanted = b.place(given["x"]), input_of(node)
    return x if b.formats[x.value] is None else b.as_format(x, wanted)


def _residual(b: Builder, given: dict[str, Any]) -> Place | None:
    return None if given["residual"] is None else b.place(given["residual"])


def _finish(b: Builder, node: fx.Node, made: Any, given: dict[str, Any]) -> None:
    """What convolutions and linear layers share."""
    low, high = given["clamp_min"], given["clamp_max"]
    made.fields |= {
        "lo": -math.inf if low is None else low,
        "hi": math.inf if high is None else high,
    }
    if node.meta.get("activation") is not None:
        made.fields["activation"], made.fields["parameter"] = node.meta["activation"]
    if (scale := input_of(node)) is not None:
        made.fields["x_scale"], made.fields["x_zero"] = scale
    else:
        made.fields["range"] = "dynamic_symmetric" if given["symmetric"] else "dynamic_asymmetric"
    if len(made.reads) > 1:
        made.fields |= b.input_fields(made.reads[1], "residual")
    made.fields |= output_fields(stored(node))
    for name, key in (("weight", "weight"), ("w_scale", "weight_scale"), ("bias", "bias")):
        if given[key] is None:
            continue
        tensor = b.constant(given[key])
        if tensor is None:
            raise LeftToTorch(f"its {key} is computed")
        made.constants[name] = b.array(tensor)


def like_image(b: Builder, node: fx.Node, x: Place, format: Format) -> Place:
    """A new image of the node's sizes, of the batch of ``x``.

    A size is free where it is, and follows from one of ``x`` that is.
    """
    y = nodes.value(node)
    assert y is not None
    free = [
        not nodes.is_fixed(size) and any(not x.atoms[a].fixed for a in axis)
        for size, axis in zip(y.shape[2:], x.axes[2:], strict=True)
    ]
    n, (_, c, h, w) = [x.atoms[a] for a in x.axes[0]], nodes.sizes(y)
    k, atoms = len(n), (*n, Atom(1, h, not free[0]), Atom(2, w, not free[1]), Atom(3, c, True))
    return b.write(Place(-1, atoms, (tuple(range(k)), (k + 2,), (k,), (k + 1,))), 4, format)
