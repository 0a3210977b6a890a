"""Layer normalization and attention as steps of a program, whose bits do not depend on processor, threads or batch.

They are not torch's bits, so they take part only where a model need not be exact. Attention is found by what its views
do, not by how they are written: done to an array of indices, they must give queries, keys and values side by side.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qkernels.graph import trace as nodes
from qkernels.graph.layers import QParams
from qkernels.program import kernel_core

_VIEW_METHODS = (
    "chunk", "contiguous", "flatten", "permute", "reshape", "split", "transpose", "unbind", "unflatten", "view",
)  # fmt: skip
_VIEWS = (
    operator.getitem, torch.chunk, torch.flatten, torch.permute, torch.reshape, torch.split, torch.transpose,
    torch.unbind, torch.unflatten,
)  # fmt: skip
_ARITHMETIC = (operator.add, operator.floordiv, operator.mul, operator.sub)  # of sizes


class TokenStep(nn.Module):
    """float32 in; float32 out, or int8 of ``output``, the scale of the layer that reads it. ``name``: in the model."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.output: QParams | None = None

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"threads": min(torch.get_num_threads(), 256)}
        if self.output:
            scale, zero = self.output
            options |= {"out_dtype": "s8", "output_scale": scale, "output_zero_point": zero}
        return options


class ChainedNorm(TokenStep):
    """``nn.LayerNorm`` over the last axis of tokens or rows."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, name: str) -> None:
        super().__init__(name)
        width = norm.normalized_shape[0]
        weight = torch.ones(width) if norm.weight is None else norm.weight.detach().clone()
        bias = torch.zeros(width) if norm.bias is None else norm.bias.detach().clone()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.epsilon = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        rows, weight, bias = (
            v.detach().numpy() for v in (x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        )
        y = kernel_core.layer_norm(rows, weight, bias, self.epsilon, **self._options())
        return torch.from_numpy(y).view(x.shape)


class ChainedAttention(TokenStep):
    """[N, T, 3 * C] of queries, keys and values to [N, T, C]: softmax(scale * q k^T) v in ``heads`` subspaces."""

    def __init__(self, heads: int, scale: float, name: str) -> None:
        super().__init__(name)
        self.heads = heads
        self.exponent = scale / math.log(2)  # 2^(x * log2(e)) is e^x

    def forward(self, x: Tensor) -> Tensor:
        y = kernel_core.attention(x.detach().numpy(), self.heads, self.exponent, **self._options())
        return torch.from_numpy(y)


def put_token_steps(traced: fx.GraphModule) -> None:
    """Put the modules above where the graph computes what they do, in place."""
    for node in list(traced.graph.nodes):
        norm = nodes.module_of(traced, node)
        if isinstance(norm, nn.LayerNorm) and _normalizes_last(norm, node):
            _put(traced, ChainedNorm(norm, str(node.target)), node, node.args[0])
        elif node.target is F.scaled_dot_product_attention:
            _put_attention(traced, node)
    for node in reversed(list(traced.graph.nodes)):
        if not node.users and _only_looks(node):
            traced.graph.erase_node(node)
    traced.recompile()


def _put(traced: fx.GraphModule, step: TokenStep, node: fx.Node, source: Any) -> None:
    name = f"step_{node.name}"
    traced.add_submodule(name, step)
    with traced.graph.inserting_before(node):
        new = traced.graph.call_module(name, (source,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    traced.graph.erase_node(node)


def _normalizes_last(norm: nn.LayerNorm, node: fx.Node) -> bool:
    shape = nodes.shape(node)
    alone = len(norm.normalized_shape) == 1 and len(node.args) == 1 and not node.kwargs
    return alone and shape is not None and len(shape) in (2, 3)


# ---- attention


def _put_attention(traced: fx.GraphModule, node: fx.Node) -> None:
    given, shape = _arguments(node), nodes.shape(node)
    if given is None or shape is None or len(shape) != 4:
        return
    source, end = _viewed(node.args[0]), _joined_heads(node)
    if end is None or not _are_thirds(source, node.args[:3], shape):
        return
    scale = given if given > 0 else 1 / math.sqrt(shape[3])
    _put(traced, ChainedAttention(shape[1], scale, node.name), end, source)


def _arguments(node: fx.Node) -> float | None:
    """The scale, 0 where it is the usual one; None where there is more to the call than a scale."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    plain = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "enable_gqa": False}
    if len(node.args) < 3 or any(given.get(name, usual) != usual for name, usual in plain.items()):
        return None
    scale = given.get("scale") or 0.0
    return float(scale) if isinstance(scale, int | float) and scale >= 0 else None


def _are_thirds(source: Any, parts: tuple[Any, ...], heads: torch.Size) -> bool:
    """Whether the views ``parts`` [N, heads, T, width] of ``source`` are its queries, keys and values."""
    shape = nodes.shape(source)
    n, h, t, d = heads
    if shape is None or shape != (n, t, 3 * h * d):
        return False
    index = torch.arange(math.prod(shape)).view(shape)
    thirds = index.view(n, t, 3, h, d).permute(2, 0, 3, 1, 4)
    seen = [_look(part, source, index) for part in parts]
    return all(_same(a, b) for a, b in zip(seen, thirds, strict=True))


def _joined_heads(node: fx.Node) -> fx.Node | None:
    """The view of attention's result that is [N, T, C], heads side by side."""
    n, h, t, d = nodes.shape(node) or (0, 0, 0, 0)
    index = torch.arange(n * h * t * d).view(n, h, t, d)
    goal, end = index.transpose(1, 2).flatten(2), node
    while len(users := [user for user in end.users if not nodes.asks_shape(user)]) == 1:
        end = users[0]
        seen = _look(end, node, index)
        if _same(seen, goal):
            return end
        if seen is None:
            return None
    return None


def _same(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and torch.equal(a, b)


def _is_view(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target in _VIEW_METHODS
    return node.op == "call_function" and node.target in _VIEWS


def _only_looks(node: fx.Node) -> bool:
    """Whether a node without readers may go: it computes views and sizes only."""
    sizes = node.op == "call_function" and node.target in _ARITHMETIC
    attends = node.target is F.scaled_dot_product_attention
    return _is_view(node) or nodes.asks_shape(node) or sizes or attends


def _viewed(node: Any) -> Any:
    """The value that a chain of views begins with."""
    while _is_view(node):
        node = node.args[0]
    return node


def _size(node: fx.Node) -> Any:
    """The answer of a node that asks a shape."""
    shape = nodes.shape(node.args[0])
    if shape is None:
        raise LookupError
    if node.target == "dim":
        return len(shape)
    return shape if node.target is getattr or len(node.args) == 1 else shape[node.args[1]]  # type: ignore[index]


def _look(node: fx.Node, source: fx.Node, index: Tensor) -> Any:
    """What ``node``, which only views ``source``, is where ``source`` is ``index``; None where it does more."""
    seen: dict[fx.Node, Any] = {source: index}

    def value(n: fx.Node) -> Any:
        if n not in seen:
            seen[n] = compute(n)
        return seen[n]

    def compute(n: fx.Node) -> Any:
        if nodes.asks_shape(n):
            return _size(n)
        if not (_is_view(n) or (n.op == "call_function" and n.target in _ARITHMETIC)):
            raise LookupError
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), value)
        if n.op == "call_method":
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        return n.target(*args, **kwargs)  # type: ignore[operator]

    try:
        return value(node)
    except (LookupError, TypeError):
        return None
