"""What transformers do to tokens: attention and embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from qkernels.graph import nodes
from qkernels.graph.builder import Builder, LeftToTorch, output_fields
from qkernels.graph.formats import Role, stored
from qkernels.graph.places import Atom, Place
from qkernels.graph.steps.table import INTEGERS, role_of, step
from qkernels.graph.words import looked_up, numbers, table_of

aten = torch.ops.aten

# Keys from which on attention multiplies int8: with fewer, turning what it reads into int8 takes what that saves.
INT8_FROM = 128


@step(aten.scaled_dot_product_attention.default, role=Role.COMPUTES)
def attention(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    if given["dropout_p"]:
        raise LeftToTorch("it drops at random")
    shapes = [nodes.shape(given[k]) for k in ("query", "key", "value")]
    if any(s is None or len(s) != 4 for s in shapes):
        raise LeftToTorch("it attends in other than four dimensions")
    (_, heads, _, width), (_, kv_heads, _, _), (_, _, _, v_width) = shapes  # type: ignore[misc]
    if kv_heads != heads and not given["enable_gqa"]:
        raise LeftToTorch("its keys have other heads than its queries")
    scale = given["scale"] or 1 / math.sqrt(width)
    read, channels = zip(*(_heads(b, given[k]) for k in ("query", "key", "value")), strict=True)
    q = read[0]
    bias, fields, constants = _bias(b, given["attn_mask"], nodes.value(given["key"]).shape[2])  # type: ignore[union-attr]
    lead = [i for i, a in enumerate(q.atoms) if a.axis < 3]
    n = [i for i in lead if q.atoms[i].axis == 0]
    t = [i for i in lead if q.atoms[i].axis > 0]
    k = len(lead)
    atoms = (*(q.atoms[i] for i in lead), Atom(3, heads, True), Atom(3, v_width, True))
    y = b.write(Place(-1, atoms, (tuple(n), (k,), tuple(t), (k + 1,))), 3, stored(node))
    for name, x in zip("qkv", read, strict=True):
        fields |= b.input_fields(x.value, name)
    made = b.add(
        "attention", "", b.read(q), y.value, *(b.read(x) for x in read[1:]), *bias, heads=heads, kv_heads=kv_heads,
        width=width, v_width=v_width, q_channel=channels[0], k_channel=channels[1], v_channel=channels[2],
        exponent=scale / math.log(2), causal=int(given["is_causal"]), int8_from=INT8_FROM,
        **fields, **output_fields(stored(node)),
    )  # fmt: skip
    made.constants |= constants
    b.put(node, y)


def _heads(b: Builder, node: Any) -> tuple[Place, int]:
    """A box [n, t, 1, c] that holds [N, heads, T, width], and the channel at which the heads begin."""
    x = b.place(node)
    n, heads, t, width = x.axes
    inner = [*heads, *width]
    lead = [*n, *t]
    rest = [a for a in range(len(x.atoms)) if a not in lead and a not in inner]
    channel = _channel(x, rest, inner)
    if (
        channel is not None
        and lead == list(range(len(lead)))
        and sorted([*rest, *inner]) == list(range(len(lead), len(x.atoms)))
    ):
        whole = Place(
            x.value,
            _without_slices(x, len(lead)),
            (n, tuple(t), tuple(range(len(lead), len(x.atoms)))),
        )
        if all(x.atoms[a].is_whole for a in lead):
            groups = (n, tuple(t), (), tuple(range(len(lead), len(x.atoms))))
            return b.arranged(whole, groups, 3), channel
    return b.arranged(x, (n, t, (), tuple(inner)), 3), 0


def _without_slices(x: Place, first: int) -> tuple[Atom, ...]:
    return tuple(a if i < first else Atom(a.axis, a.size, a.fixed) for i, a in enumerate(x.atoms))


def _channel(x: Place, rest: list[int], inner: list[int]) -> int | None:
    """The channel at which a slice of channels begins, if its atoms lie side by side; else None."""
    if inner != sorted(inner) or (rest and inner and max(rest) > min(inner)):
        return None
    channel, step = 0, 1
    for a in reversed(inner):
        atom = x.atoms[a]
        if atom.stride != 1 or (not atom.is_whole and a != inner[0]):
            return None
        channel += atom.start * step
        step *= atom.size
    for a in reversed(rest):
        channel += x.atoms[a].start * step
        step *= x.atoms[a].size
    return channel


def _bias(b: Builder, mask: Any, keys: Any) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    """What is added to the scores: a value, or a tensor of the model [1 or n, 1 or heads, 1 or Tq, Tk]."""
    if mask is None:
        return [], {}, {}
    tensor = b.constant(_of_windows(mask))
    if tensor is not None:
        if tensor.dtype == torch.bool:
            tensor = torch.zeros(tensor.shape).masked_fill(~tensor, -math.inf)
        tensor = tensor.float().reshape([1] * (4 - tensor.dim()) + list(tensor.shape))
        if tensor.shape[-1] == 1 and not nodes.is_fixed(keys):
            raise LeftToTorch("its mask repeats along a free number of keys")
        tensor = (
            tensor.expand(*tensor.shape[:3], nodes.hint(keys)) if tensor.shape[-1] == 1 else tensor
        )
        n, h, q, k = tensor.shape
        return (
            [],
            {"bias_n": n, "bias_heads": h, "bias_q": q, "bias_k": k},
            {"bias": b.array(tensor)},
        )
    x = b.compact(b.as_format(_summand(b, mask), None))
    if len(x.axes) != 4:
        raise LeftToTorch("its mask has other than four dimensions")
    return [b.read(b.arranged(x, (x.axes[0], x.axes[1], x.axes[2], x.axes[3]), 4))], {}, {}


def _of_windows(mask: fx.Node) -> Any:
    """The masks [windows, ...] that are repeated for every image, which image n reads at n % windows; else the mask."""
    if mask.target is not aten.repeat.default:
        return mask
    tensor, (_, *repeats) = nodes.arguments(mask).values()
    return tensor if all(n == 1 for n in repeats) else mask


def _summand(b: Builder, mask: fx.Node) -> Place:
    """A mask as what is added to scores: -inf where truth values are false."""
    if nodes.value(mask).dtype != torch.bool:  # type: ignore[union-attr]
        return b.place(mask)
    table = table_of(b, mask)
    if table is not None:
        return looked_up(b, mask, torch.where(table, 0.0, -math.inf), None)
    x = b.compact(b.place(mask))
    y = b.write_like(x, None)
    b.compute("unary", x, y, function="log")  # of 1 and 0
    return y


@step(aten.embedding.default, role=Role.COMPUTES, exact=True)
def embedding(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    table = b.constant(given["weight"])
    if table is None:
        raise LeftToTorch("its table is computed")
    _rows(b, node, given["indices"], {"table": b.array(table.float())})


@step(torch.ops.qkernels.embedding.default, role=Role.COMPUTES, exact=True)
def int8_embedding(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    packed, scale = b.constant(given["weight"]), b.constant(given["weight_scale"])
    if packed is None or scale is None:
        raise LeftToTorch("its table is computed")
    codes = b.unpacked(packed, [len(scale), given["columns"]])
    _rows(b, node, given["ids"], {"table": b.array(codes), "scale": b.array(scale)})


def _rows(b: Builder, node: fx.Node, ids: Any, constants: dict[str, Any]) -> None:
    """The rows of a table that integers [N, T] name, the caller's or computed."""
    given = nodes.value(ids)
    if given is None or given.dim() != 2 or not nodes.is_integer(ids):
        raise LeftToTorch("its ids are no integers [N, T]")
    if _is_input(ids):
        x = b.place(ids)
        x = b.arranged(x, (x.axes[0], (), (), x.axes[1]), 2)
    else:
        x = numbers(b, ids)
        x = b.arranged(x, (x.axes[0], x.axes[1], (), ()), 3)
    rows, columns = constants["table"].shape
    atoms = (
        *(x.atoms[a] for a in x.axes[0]),
        *(Atom(1, x.atoms[a].size, x.atoms[a].fixed) for a in x.axes[1]),
        Atom(3, columns, True),
    )
    y = b.write(Place(-1, atoms, (*x.axes, (len(atoms) - 1,))), 3, stored(node))
    made = b.add("embedding", "", b.read(x), y.value, rows=rows, **output_fields(stored(node)))
    made.constants |= constants
    b.put(node, y)


def _is_input(node: Any) -> bool:
    """Whether the words are those of an input, in some view, and no function of them."""
    while isinstance(node, fx.Node) and role_of(INTEGERS.get(node.target)) is Role.MOVES:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "placeholder"
