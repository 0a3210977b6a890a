"""Norms, means and pooling: one number of many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qkernels.graph import nodes
from qkernels.graph.builder import Builder, LeftToTorch
from qkernels.graph.formats import Role, stored
from qkernels.graph.fuse import ours
from qkernels.graph.places import Place, groups_by_axis
from qkernels.graph.steps.layers import like_image
from qkernels.graph.steps.moves import window
from qkernels.graph.steps.table import step

aten = torch.ops.aten


# ---- means


@step(ours.mean_pool2d.default, role=Role.COMPUTES, exact=True)
def mean_pool2d(b: Builder, node: fx.Node) -> None:
    """The mean over an image, whose order of sums is its own."""
    x = b.image(b.place(node.args[0]))
    if b.formats[x.value]:
        b.put(node, reduced(b, node, x, [2, 3], True, "mean"))
        return
    atoms = tuple(a for a in x.atoms if a.axis in (0, 3))
    batch = len(atoms) - len(x.axes[1])
    axes = (tuple(range(batch)), tuple(range(batch, len(atoms))), (), ())
    y = b.write(Place(-1, atoms, axes), 4, None)
    b.add("mean", "", b.read(x), y.value)
    node.meta["int8"] = None  # a layer that reads it quantizes it
    b.put(node, y)


_REDUCTIONS: dict[Any, str] = {
    aten.mean.dim: "mean",
    aten.amax.default: "max",
    aten.amin.default: "min",
    aten.sum.dim_IntList: "sum",
}


@step(
    *_REDUCTIONS,
    aten.adaptive_avg_pool2d.default,
    role=Role.COMPUTES,
)
def reduce(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    op, keep = _REDUCTIONS.get(node.target, "mean"), bool(given.get("keepdim", True))
    x = b.compact(b.place(given["self"]))
    rank = len(x.axes)
    if "output_size" in given:
        if any(size != 1 for size in given["output_size"]):
            adaptive_avg_pool(b, node, given["output_size"])
            return
        dims = list(range(rank - len(given["output_size"]), rank))
    else:
        if given.get("dtype") is not None:
            raise LeftToTorch("it sums in another dtype")
        dims = [given["dim"]] if isinstance(given["dim"], int) else given["dim"] or []
        dims = [d % rank for d in dims] or list(range(rank))
    gone = [x.axis_of(a) in dims for a in range(len(x.atoms))]
    if gone[0]:
        raise LeftToTorch("it reduces the batch")
    x = b.by_runs(x, gone)
    b.put(node, reduced(b, node, x, dims, keep, op))


def reduced(b: Builder, node: fx.Node, x: Place, dims: list[int], keep: bool, op: str) -> Place:
    """Over axes of a tensor that are axes of its box."""
    gone = [x.axis_of(a) in dims for a in range(len(x.atoms))]
    over = {
        name: int(any(gone[a] for a in group))
        for name, group in zip("nhwc", groups_by_axis(x), strict=True)
    }
    kept = [i for i, g in enumerate(gone) if not g]
    new = {a: i for i, a in enumerate(kept)}
    axes = [tuple(new[a] for a in axis if a in new) for axis in x.axes]
    if not keep:
        axes = [axis for i, axis in enumerate(axes) if i not in dims]
    atoms = tuple(x.atoms[a] for a in kept)
    y = b.write(Place(-1, atoms, tuple(axes)), b.rank(x), stored(node))
    b.compute("reduce", x, y, op=op, over_h=over["h"], over_w=over["w"], over_c=over["c"])
    return y


# ---- windows


@step(aten.avg_pool2d.default, role=Role.COMPUTES)
def avg_pool2d(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    if given["divisor_override"] is not None:
        raise LeftToTorch("its divisor is given")
    x = b.image(b.place(given["self"]))
    (kh, kw), (sh, sw), (ph, pw), _ = window(given)
    _pool(
        b, node, x, kh=kh, kw=kw, stride_h=sh, stride_w=sw, pad_h=ph, pad_w=pw, ceil_mode=int(given["ceil_mode"]),
        count_include_pad=int(given["count_include_pad"]),
    )  # fmt: skip


def adaptive_avg_pool(b: Builder, node: fx.Node, size: list[int]) -> None:
    """The mean over as many windows as asked for."""
    given = nodes.arguments(node)
    x = b.image(b.place(given["self"]))
    if x.shape[2:] == tuple(size):
        b.put(node, x)
        return
    _pool(b, node, x, adaptive=1, out_h=size[0], out_w=size[1])


def _pool(b: Builder, node: fx.Node, x: Place, **fields: Any) -> None:
    y = like_image(b, node, x, stored(node))
    given, made = b.formats[x.value], b.formats[y.value]
    same = made is not None and made == given and "adaptive" not in fields
    b.compute("avg_pool", x, y, same_scale=int(same), **fields)
    b.put(node, y)


# ---- norms


@step(aten.layer_norm.default, role=Role.COMPUTES)
def layer_norm(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    x = b.place(given["input"])
    over = len(given["normalized_shape"])
    flat = x if over == 1 else _last_axes_as_one(x, over)
    rows = b.rows(flat)
    width = rows.shape[-1]
    weight = _parameter(b, given["weight"], torch.ones(width))
    bias = _parameter(b, given["bias"], torch.zeros(width))
    y = b.write_like(rows, stored(node))
    made = b.compute("layer_norm", rows, y, epsilon=given["eps"])
    made.constants |= {"weight": b.array(weight), "bias": b.array(bias)}
    shape = nodes.shape(node)
    assert shape is not None
    x_shape = nodes.value(node).shape  # type: ignore[union-attr]
    b.put(node, y if over == 1 else y.reshaped(shape, [nodes.is_fixed(s) for s in x_shape]))


def _last_axes_as_one(x: Place, count: int) -> Place:
    last = tuple(a for axis in x.axes[-count:] for a in axis)
    return Place(x.value, x.atoms, (*x.axes[:-count], last))


def _parameter(b: Builder, node: Any, usual: Tensor) -> Tensor:
    if node is None:
        return usual
    tensor = b.constant(node)
    if tensor is None:
        raise LeftToTorch("its weight is computed")
    return tensor.reshape(-1).float()


@step(aten.rms_norm.default, role=Role.COMPUTES)
def rms_norm(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    if len(given["normalized_shape"]) != 1:
        raise LeftToTorch("it normalizes several axes")
    rows = b.rows(b.place(given["input"]))
    weight = _parameter(b, given["weight"], torch.ones(rows.shape[-1]))
    eps = given["eps"] if given["eps"] is not None else torch.finfo(torch.float32).eps
    y = b.write_like(rows, stored(node))
    made = b.compute("rms_norm", rows, y, epsilon=eps)
    made.constants["weight"] = b.array(weight)
    b.put(node, y)


@step(aten.group_norm.default, role=Role.COMPUTES)
def group_norm(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    x = b.image(b.place(given["input"]))
    channels = x.shape[1]
    y = like_image(b, node, x, stored(node))
    made = b.compute("group_norm", x, y, groups=given["num_groups"], epsilon=given["eps"])
    made.constants |= {
        "weight": b.array(_parameter(b, given["weight"], torch.ones(channels))),
        "bias": b.array(_parameter(b, given["bias"], torch.zeros(channels))),
    }
    b.put(node, y)


@step(
    aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default, role=Role.COMPUTES
)
def batch_norm(b: Builder, node: fx.Node) -> None:
    """A batch norm that stands before a layer: a factor and a summand a channel."""
    given = nodes.arguments(node)
    mean, var = (b.constant(given[k]) for k in ("running_mean", "running_var"))
    if mean is None or var is None:
        raise LeftToTorch("its statistics are those of the batch")
    weight = _parameter(b, given["weight"], torch.ones_like(mean))
    factor = weight.double() / (var.double() + given["eps"]).sqrt()
    summand = _parameter(b, given["bias"], torch.zeros_like(mean)).double() - mean.double() * factor
    x = b.place(given["input"])
    rank = len(x.axes)
    last = [0, *range(2, rank), 1]
    rows = b.rows(x.permuted(last))
    y = b.write_like(rows, stored(node))
    made = b.compute("affine", rows, y)
    made.constants |= {"weight": b.array(factor.float()), "bias": b.array(summand.float())}
    b.put(node, y.permuted([last.index(i) for i in range(rank)]))


# ---- softmax


@step(
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    role=Role.COMPUTES,
)
def softmax(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    x = b.place(given["self"])
    rank, dim = len(x.axes), given["dim"] % len(x.axes)
    last = [i for i in range(rank) if i != dim] + [dim]
    rows = b.rows(x.permuted(last))
    y = b.write_like(rows, stored(node))
    b.compute("softmax", rows, y, log=int("log" in str(node.target)))
    b.put(node, y.permuted([last.index(i) for i in range(rank)]))
