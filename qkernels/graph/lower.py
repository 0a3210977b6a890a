"""Runs of steps that the core knows become programs: one operator each, no Python and no allocation inside.

What a run hands to torch, or to the caller, is float32 of torch's own layout; within it int8 flows as NHWC.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qkernels.graph import trace as nodes
from qkernels.graph.layers import ChainedLayer, Int8AvgPool2d, Int8MaxPool2d, QParams
from qkernels.graph.program import TorchProgram
from qkernels.graph.tables import Lookup
from qkernels.graph.tokens import ChainedAttention, ChainedNorm
from qkernels.nn import MeanPool2d, QuantConv2d
from qkernels.program.format import Step, Value, assemble

_Lowering = Callable[["_Builder", fx.Node], None]


def lower(traced: fx.GraphModule, max_batch: int | None = None) -> TorchProgram | None:
    """Put a `TorchProgram` where a run of known steps holds an int8 layer. Returns the one that is the whole model."""
    runs: list[list[fx.Node]] = []
    for lowerable, group in itertools.groupby(
        list(traced.graph.nodes), lambda n: _lowering(traced, n) is not None
    ):
        run = list(group)
        if lowerable and _is_worth_it(traced, run):
            runs.append(run)
    builders = [_Builder(traced, run) for run in runs]
    programs = [_replace(traced, f"program_{i}", b, max_batch) for i, b in enumerate(builders)]
    nodes.rebuild(traced)
    calls = [n for n in traced.graph.nodes if n.op.startswith("call") and not is_part(traced, n)]
    if len(calls) != 1 or not _is_program(traced, call := calls[0]):
        return None
    given = [n for n in traced.graph.nodes if n.op == "placeholder"]
    returned = traced.graph.output_node().args[0]
    whole = returned is call or _parts(call, returned)
    return programs[0] if whole and list(call.args) == given else None


def _is_worth_it(traced: fx.GraphModule, run: list[fx.Node]) -> bool:
    """A run of layers whose ends are float: int8 is at home in programs only, where its bytes suit the kernels."""
    ends = set(_leaving(run))
    ends |= {x for n in run for x in n.all_input_nodes} - set(run)
    holds_layer = any(isinstance(nodes.module_of(traced, n), ChainedLayer) for n in run)
    return holds_layer and not any(stored(n) for n in ends)


def left_to_torch(traced: fx.GraphModule) -> list[fx.Node]:
    """The steps of a lowered graph that torch computes."""
    ours = (
        TorchProgram, ChainedLayer, ChainedNorm, ChainedAttention, Lookup, Int8MaxPool2d, Int8AvgPool2d, MeanPool2d,
    )  # fmt: skip
    return [
        n
        for n in traced.graph.nodes
        if n.op.startswith("call")
        and not isinstance(nodes.module_of(traced, n), ours)
        and not (is_part(traced, n) or nodes.asks_shape(n) or n.target == "contiguous")
    ]


def is_part(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it is one of a program's outputs."""
    return node.target is operator.getitem and _is_program(traced, node.args[0])


def _is_program(traced: fx.GraphModule, node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(nodes.module_of(traced, node), TorchProgram)


def _parts(call: fx.Node, returned: Any) -> bool:
    """Whether the outputs of a program are, in order, what the model returns."""
    if not isinstance(returned, list | tuple):
        return False
    index = [
        n.args[1] if isinstance(n, fx.Node) and n.args[:1] == (call,) else None for n in returned
    ]
    return index == list(range(len(call.users)))


# ---- which steps the core knows


def _lowering(traced: fx.GraphModule, node: fx.Node) -> _Lowering | None:
    module = nodes.module_of(traced, node)
    if isinstance(module, ChainedLayer):
        known = isinstance(module.layer, QuantConv2d) or len(_shape(node)) in (2, 3)
        return _Builder.layer if known else None
    if isinstance(module, ChainedNorm):
        return _Builder.layer_norm
    if isinstance(module, ChainedAttention):
        return _Builder.attention
    if isinstance(module, nn.MaxPool2d | Int8MaxPool2d):
        return _Builder.max_pool if len(_shape(node)) == 4 and not _of_input(node) else None
    if isinstance(module, Int8AvgPool2d):
        return _Builder.avg_pool if len(_shape(node)) == 4 and not _of_input(node) else None
    if isinstance(module, Lookup):
        return _Builder.lookup
    if isinstance(module, MeanPool2d):
        return _Builder.mean if len(_shape(node)) == 4 else None
    if node.op == "call_method" and node.target == "contiguous" and len(_shape(node.args[0])) == 4:
        return _Builder.layout
    if parts := nodes.joined(node):
        inside = all(part.op != "placeholder" for part in parts)
        return _Builder.join if inside else None
    if _flattens(traced, node):
        return _Builder.flatten if not _of_input(node) else None
    if nodes.is_zero_pad(node) or (
        node.target is F.pad and stored(node)
    ):  # the chain gave it its zero point
        images = len(_shape(node)) == 4 and not _of_input(node)
        return _Builder.pad if images and _borders(node) is not None else None
    if node.target is operator.getitem and len(_shape(node)) == 4 and not _of_input(node):
        return _Builder.stride if _strides(node) is not None else None
    return None


def _shape(node: Any) -> torch.Size:
    return nodes.shape(node) or torch.Size()


def _source(node: fx.Node) -> fx.Node:
    assert isinstance(node.args[0], fx.Node)
    return node.args[0]


def _moved(node: fx.Node) -> Any:
    """The value that a change of layout, which the chain put in, is of."""
    return node.args[0] if node.target == "contiguous" and "tensor_meta" not in node.meta else node


def _of_input(node: fx.Node) -> bool:
    return isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"


def _flattens(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it makes rows of images, whatever the batch."""
    x = node.args[0] if node.args else None
    if len(_shape(node)) != 2 or len(_shape(x)) != 4:
        return False
    module = nodes.module_of(traced, node)
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) in ((1, -1), (1, 3))
    if node.target in (torch.flatten, "flatten"):
        return (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1), (1, 3))
    return False


def _borders(node: fx.Node) -> list[int] | None:
    """(left, right, top, bottom, before, after) of a padding of images that removes nothing."""
    widths = list(node.args[1])  # type: ignore[arg-type]
    widths += [0] * (6 - len(widths))
    known = len(widths) == 6 and all(isinstance(w, int) and w >= 0 for w in widths)
    return widths if known else None


def _strides(node: fx.Node) -> tuple[int, int] | None:
    """Of x[:, :, ::h, ::w]."""
    index = node.args[1]
    if not isinstance(index, tuple) or len(index) != 4:
        return None
    slices = [s for s in index if isinstance(s, slice) and s.start is None and s.stop is None]
    if len(slices) != 4:
        return None
    steps: list[Any] = [s.step or 1 for s in slices]
    known = steps[:2] == [1, 1] and all(isinstance(s, int) and s > 0 for s in steps)
    return (steps[2], steps[3]) if known else None


# ---- one run


class _Builder:
    def __init__(self, traced: fx.GraphModule, run: list[fx.Node]) -> None:
        self.traced, self.run = traced, run
        self.lowerings = [_lowering(traced, node) for node in run]
        self.values: list[Value] = []
        self.steps: list[Step] = []
        self.at: dict[fx.Node, int] = {}
        self.inputs: list[fx.Node] = []
        self.outputs = sorted(_leaving(run), key=_place_among_results)
        self.arrays: dict[int, Any] = {}

    def value(self, node: fx.Node, **fields: Any) -> int:
        shape, dtype = _shape(_moved(node)), "int8" if stored(node) else "float32"
        size = math.prod(shape) * (1 if stored(node) else 4)
        channels = shape[2 if len(shape) == 3 else 1]
        self.values.append(Value(channels, len(shape), dtype, size, **fields))
        return len(self.values) - 1

    def read(self, node: fx.Node, *, nhwc: bool = True) -> int:
        if node not in self.at:
            self.at[node] = self.value(node, callers=True)
            self.inputs.append(node)
        v = self.at[node]
        if node in self.inputs and len(_shape(node)) == 4:
            self.values[v].nhwc_only |= nhwc
        return v

    def write(self, node: fx.Node, **fields: Any) -> int:
        self.at[node] = self.value(node, callers=node in self.outputs, **fields)
        return self.at[node]

    def array(self, tensor: Tensor) -> Any:
        """One array a tensor, so that a weight used twice is held once."""
        return self.arrays.setdefault(id(tensor), tensor.detach().contiguous().numpy())

    def add(self, kind: str, node: fx.Node, x: int, y: int, *others: int, **fields: Any) -> Step:
        name = str(node.target if node.op == "call_module" else node.name)
        self.steps.append(Step(kind, name, x, y, others, fields))
        return self.steps[-1]

    # -- steps

    def layer(self, node: fx.Node) -> None:
        module = nodes.module_of(self.traced, node)
        assert isinstance(module, ChainedLayer)
        layer, source, residual = module.layer, node.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        image = isinstance(layer, QuantConv2d)
        x = self.read(source, nhwc=False)
        others = [self.read(residual)] if isinstance(residual, fx.Node) else []
        step = self.add("conv2d" if image else "linear", node, x, self.write(node), *others)
        step.name = module.name
        step.fields |= _epilogue(module)
        if isinstance(layer, QuantConv2d):
            step.fields |= _window(layer)
        else:
            step.fields["k"] = layer.in_features
        b = layer._buffers
        step.constants = {
            "weight": self.array(layer.packed_weight),
            "w_scale": self.array(layer.weight_scale),
        }
        if b["bias"] is not None:
            step.constants["bias"] = self.array(b["bias"])

    def max_pool(self, node: fx.Node) -> None:
        pool: Any = nodes.module_of(self.traced, node)
        if isinstance(pool, nn.MaxPool2d):
            pool = Int8MaxPool2d(pool)
        (kh, kw), stride, (ph, pw), (dh, dw) = pool.sizes
        sh, sw = stride or (kh, kw)
        self.add(
            "max_pool", node, self.read(_source(node)), self.write(node), kh=kh, kw=kw, stride_h=sh, stride_w=sw,
            pad_h=ph, pad_w=pw, dilation_h=dh, dilation_w=dw, ceil_mode=int(pool.ceil_mode),
        )  # fmt: skip

    def avg_pool(self, node: fx.Node) -> None:
        pool = nodes.module_of(self.traced, node)
        assert isinstance(pool, Int8AvgPool2d)
        (kh, kw), (sh, sw), (ph, pw) = pool.sizes
        self.add(
            "avg_pool", node, self.read(_source(node)), self.write(node), kh=kh, kw=kw, stride_h=sh, stride_w=sw,
            pad_h=ph, pad_w=pw, ceil_mode=int(pool.ceil_mode), count_include_pad=int(pool.count_include_pad),
            x_zero=pool.zero_point,
        )  # fmt: skip

    def mean(self, node: fx.Node) -> None:
        self.add("mean", node, self.read(_source(node)), self.write(node))

    def lookup(self, node: fx.Node) -> None:
        module = nodes.module_of(self.traced, node)
        assert isinstance(module, Lookup)
        step = self.add("lookup", node, self.read(_source(node)), self.write(node))
        step.constants["table"] = self.array(module.table)

    def layer_norm(self, node: fx.Node) -> None:
        norm = nodes.module_of(self.traced, node)
        assert isinstance(norm, ChainedNorm)
        step = self.add("layer_norm", node, self.read(_source(node)), self.write(node))
        step.name = norm.name
        step.fields |= {"epsilon": norm.epsilon, **_output(norm.output)}
        step.constants = {"weight": self.array(norm.weight), "bias": self.array(norm.bias)}

    def attention(self, node: fx.Node) -> None:
        attention = nodes.module_of(self.traced, node)
        assert isinstance(attention, ChainedAttention)
        packed = self.read(_source(node))  # queries, keys and values side by side
        step = self.add("attention", node, packed, self.write(node), packed, packed)
        step.name = attention.name
        channels = int(_shape(node)[-1])
        width = channels // attention.heads
        step.fields |= {"heads": attention.heads, "kv_heads": attention.heads}
        step.fields |= {"width": width, "v_width": width, "exponent": attention.exponent}
        step.fields |= {"k_channel": channels, "v_channel": 2 * channels}
        step.fields |= _output(attention.output)

    def flatten(self, node: fx.Node) -> None:
        x = self.read(_source(node))
        y = self.write(node)
        self.values[y].channels = 0
        self.add("planar", node, x, y)

    def layout(self, node: fx.Node) -> None:
        """Before a layer, which reads any layout, nothing; before torch or the caller, planes."""
        source = _source(node)
        if node in self.outputs:
            self.add("planar", node, self.read(source), self.write(node, planar=True))
        else:
            self.at[node] = self.read(source, nhwc=False)

    def pad(self, node: fx.Node) -> None:
        left, right, top, bottom, before, _ = _borders(node) or [0] * 6
        format = stored(node)
        self.add(
            "copy", node, self.read(_source(node)), self.write(node), pad_left=left, pad_right=right, pad_top=top,
            pad_bottom=bottom, channel=before, fill=1, fill_value=format[1] if format else 0,
        )  # fmt: skip

    def join(self, node: fx.Node) -> None:
        parts = [self.read(part) for part in nodes.joined(node)]
        y, channel = self.write(node), 0
        for part in parts:
            self.add("copy", node, part, y, channel=channel, fill=int(channel == 0))
            channel += self.values[part].channels

    def stride(self, node: fx.Node) -> None:
        h, w = _strides(node) or (1, 1)
        self.add(
            "copy", node, self.read(_source(node)), self.write(node), stride_h=h, stride_w=w, fill=1
        )


def stored(node: fx.Node) -> QParams | None:
    """The int8 format that the chain gave a value; None: float32."""
    format: QParams | None = node.meta.get("int8")
    return format


def _epilogue(module: ChainedLayer) -> dict[str, Any]:
    layer, given = module.layer, module.input
    lo, hi = module.clamp
    fields: dict[str, Any] = {
        "lo": -math.inf if lo is None else lo,
        "hi": math.inf if hi is None else hi,
    }
    if given:
        fields["x_scale"], fields["x_zero"] = given
    else:
        fields["range"] = "dynamic_symmetric" if layer.symmetric else "dynamic_asymmetric"
    if module.residual:
        fields["residual_scale"], fields["residual_zero"] = module.residual
    return fields | _output(module.output)


def _output(format: QParams | None) -> dict[str, Any]:
    """Of an int8 output; the scale is inverted in float32, as the operators do."""
    if format is None:
        return {}
    inverse = torch.tensor(1.0) / torch.tensor(format[0])
    return {"out_inv_scale": float(inverse), "out_zero": format[1]}


def _window(layer: QuantConv2d) -> dict[str, Any]:
    left, right, top, bottom = layer._borders
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    return {
        "kh": kh, "kw": kw, "groups": layer.groups, "stride_h": sh, "stride_w": sw, "dilation_h": dh,
        "dilation_w": dw, "pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right,
        "pad_mode": layer.padding_mode,
    }  # fmt: skip


def _leaving(run: list[fx.Node]) -> list[fx.Node]:
    """The values of a run that others read."""
    inside = set(run)
    return [n for n in run if not inside.issuperset(n.users)]


def _place_among_results(node: fx.Node) -> int:
    """Where the model returns a value; those that it does not return come last."""
    returned = node.graph.output_node().args[0]
    results = returned if isinstance(returned, list | tuple) else [returned]
    return next((i for i, result in enumerate(results) if result is node), len(results))


def _replace(
    traced: fx.GraphModule, name: str, builder: _Builder, max_batch: int | None
) -> TorchProgram:
    run = builder.run
    for node, lowering in zip(run, builder.lowerings, strict=True):
        assert lowering is not None
        lowering(builder, node)
    outputs = [builder.at[n] for n in builder.outputs]
    inputs = [builder.at[n] for n in builder.inputs]
    data = assemble(builder.values, builder.steps, inputs, outputs, max_batch)
    program = TorchProgram(torch.from_numpy(data))
    traced.add_submodule(name, program)
    with traced.graph.inserting_after(run[-1]):
        call = traced.graph.call_module(name, tuple(builder.inputs))
    if len(outputs) == 1:
        call.meta = dict(_moved(builder.outputs[0]).meta)
        builder.outputs[0].replace_all_uses_with(call)
    else:
        for i, node in enumerate(builder.outputs):
            with traced.graph.inserting_after(call):
                part = traced.graph.call_function(operator.getitem, (call, i))
            part.meta = dict(_moved(node).meta)
            node.replace_all_uses_with(part)
    for node in reversed(run):
        traced.graph.erase_node(node)
    return program
