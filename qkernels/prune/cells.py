"""Channels that can only leave whole cells: heads of attention, groups of convolutions and of group norms.

Without one of its cells such a layer answers as with that cell silent: statistics, scales and the order of the others
stay. Where only some channels of a cell went, the others would be read as channels of another head or group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from qkernels.models.channels import HEADS, WIDTHS
from qkernels.modules.calling import Call
from qkernels.modules.copying import copied
from qkernels.modules.outputs import output_error, rounding
from qkernels.modules.watching import watching
from qkernels.prune.attention import is_joined

Side = Literal["out", "in"]


@dataclass(frozen=True)
class Cells:
    """`entries[layer, side]` int64 [cells, entries of one] are what each cell holds of that side.

    `counts` are the attributes of the module, and how much of each goes with a cell.
    """

    module: str
    counts: dict[str, int]
    entries: dict[tuple[str, Side], Tensor]

    def shrink(self, module: nn.Module, gone: int) -> None:
        """Tell the module that so many cells are gone."""
        for attribute, each in self.counts.items():
            setattr(module, attribute, getattr(module, attribute) - each * gone)


def is_grouped(layer: nn.Module) -> bool:
    """Whether a convolution has groups of more than one channel in or out; a depthwise one has none."""
    if not isinstance(layer, _ConvNd):
        return False
    return layer.groups > 1 and not layer.groups == layer.in_channels == layer.out_channels


def find_cells(model: nn.Module, example_inputs: Tensor) -> list[Cells]:
    """The cells of every module that has any, in a model in eval mode."""
    found = []
    for name, module in model.named_modules():
        if is_grouped(module):
            sides: dict[Side, int] = {"out": module.out_channels, "in": module.in_channels}
            parts = {(name, side): _even(n, module.groups) for side, n in sides.items()}
            found.append(Cells(name, {"groups": 1}, parts))
        elif isinstance(module, nn.GroupNorm):
            parts = {(name, "out"): _even(module.num_channels, module.num_groups)}
            found.append(Cells(name, {"num_groups": 1}, parts))
    for name, module, call in _attentions(model, example_inputs):
        cells = _separate(name, module) or _fused(name, module, call)
        if cells is not None:
            found.append(cells)
    return found


def _even(count: int, cells: int) -> Tensor:
    return torch.arange(count).view(cells, -1)


def heads_of(module: nn.Module) -> int | None:
    """How many heads a module says that it has."""
    for attribute in HEADS:
        value = getattr(module, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _attentions(model: nn.Module, example_inputs: Tensor) -> list[tuple[str, nn.Module, Call]]:
    """(name, module, its first call) of modules with heads and linear layers of their own."""
    calls: dict[str, Call] = {}
    modules = {
        name: module
        for name, module in model.named_modules()
        if heads_of(module) is not None and not is_joined(module)
    }

    def keep(name: str, call: Call) -> None:
        calls.setdefault(name, call)

    with watching(modules, keep), torch.no_grad():
        model(example_inputs)
    return [(name, modules[name], call) for name, call in calls.items()]


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in module.named_children() if isinstance(m, nn.Linear)}


def _counts(module: nn.Module, heads: int, width: int) -> dict[str, int]:
    counts = {a: 1 for a in HEADS if getattr(module, a, None) == heads}
    return counts | {a: width // heads for a in WIDTHS if getattr(module, a, None) == width}


def _separate(name: str, module: nn.Module) -> Cells | None:
    """Query, key and value as layers of their own: the first three linear layers of one width.

    Those that read the same width are it rather than others; in attention to something else they need not.
    """
    heads = heads_of(module)
    assert heads is not None
    alike: dict[tuple[int, ...], list[str]] = {}
    for shape in (lambda x: (x.out_features, x.in_features)), (lambda x: (x.out_features,)):
        for child, linear in _linears(module).items():
            alike.setdefault(shape(linear), []).append(child)
    for (width, *_), children in alike.items():
        if len(children) >= 3 and width % heads == 0:
            parts: dict[tuple[str, Side], Tensor] = {
                (f"{name}.{child}".lstrip("."), "out"): _even(width, heads)
                for child in children[:3]
            }
            return Cells(name, _counts(module, heads, width), parts)
    return None


def _fused(name: str, module: nn.Module, call: Call) -> Cells | None:
    """One layer makes query, key and value: three times as wide as what the last layer reads."""
    heads, linears = heads_of(module), _linears(module)
    assert heads is not None
    for made, first in linears.items():
        for read, last in linears.items():
            width = last.in_features
            if made == read or first.out_features != 3 * width or width % heads:
                continue
            for rows in _layouts(width, heads):
                parts: dict[tuple[str, Side], Tensor] = {
                    (f"{name}.{made}".lstrip("."), "out"): rows,
                    (f"{name}.{read}".lstrip("."), "in"): _even(width, heads),
                }
                cells = Cells(name, _counts(module, heads, width), parts)
                if _holds(module, made, read, cells, call):
                    return cells
    return None


def _layouts(width: int, heads: int) -> Iterator[Tensor]:
    """The rows of each head, [heads, 3 width / heads], as [3, heads, size] and as [heads, 3, size] lie."""
    rows = torch.arange(3 * width)
    yield rows.view(3, heads, -1).transpose(0, 1).flatten(1)
    yield rows.view(heads, -1)


def _holds(module: nn.Module, made: str, read: str, cells: Cells, call: Call) -> bool:
    """Whether the module without its first head answers as with that head silent."""
    rows, columns = cells.entries.values()
    if len(rows) < 2:
        return False
    silent, smaller = copied(module)[0], copied(module)[0]
    with torch.no_grad():
        muted: Any = silent.get_submodule(read)
        muted.weight[:, columns[0]] = 0
        first: Any = smaller.get_submodule(made)
        last: Any = smaller.get_submodule(read)
        keep, kept = rows[1:].flatten().sort().values, columns[1:].flatten()
        first.weight, first.out_features = nn.Parameter(first.weight[keep]), len(keep)
        if first.bias is not None:
            first.bias = nn.Parameter(first.bias[keep])
        last.weight, last.in_features = nn.Parameter(last.weight[:, kept]), len(kept)
        cells.shrink(smaller, 1)
        expected = call.run(silent)
        try:
            found = call.run(smaller)
        except Exception:  # whatever a forward says whose sizes no longer fit
            return False
    return output_error(expected, found) <= rounding({torch.float32})


def components(pairs: Sequence[Tensor], count: int) -> Tensor:
    """The least node of the component that each of `count` nodes is in, where every tensor of `pairs` is connected."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for nodes in pairs:
        first, *others = nodes.tolist()
        for other in others:
            a, b = root(first), root(other)
            parent[max(a, b)] = min(a, b)
    return torch.tensor([root(node) for node in range(count)], dtype=torch.int64)


def is_transposed(layer: nn.Module) -> bool:
    """Whether the first dimension of a layer's weight is that of its inputs."""
    return isinstance(layer, _ConvTransposeNd)
