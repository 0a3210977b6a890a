"""One model on several devices: cut before named modules, each piece where there is room for it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from qkernels.nn import MeanPool2d, QuantModule
from qkernels.plain import is_plain
from qkernels.quantization.fold import FoldedBatchNorm


class LayerwiseTracer(fx.Tracer):
    """Leaves our layers whole: their forwards ask what they are given."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, QuantModule | FoldedBatchNorm | MeanPool2d) or is_plain(m)
        return ours or super().is_leaf_module(m, module_qualified_name)


class Stage(nn.Module):
    """A piece of a model on one device, which fetches what it is given.

    It is a plain module for `torch.distributed.pipelining.PipelineStage` too, where the stages are ranks.
    """

    def __init__(self, piece: nn.Module, device: torch.device | str) -> None:
        super().__init__()
        self.piece, self.device = piece.to(device), torch.device(device)

    def forward(self, *values: Any) -> Any:
        return self.piece(*(v.to(self.device) if isinstance(v, Tensor) else v for v in values))

    def extra_repr(self) -> str:
        return f"device={str(self.device)!r}"


class Staged(nn.Module):
    """What `split_at` returns: `stages` in order, joined so that the whole answers as the model did."""

    def __init__(self, joined: fx.GraphModule) -> None:
        super().__init__()
        self.joined = joined

    @property
    def stages(self) -> list[Stage]:
        """The pieces, first to last."""
        return [piece for piece in self.joined.children() if isinstance(piece, Stage)]

    def forward(self, x: Tensor) -> Tensor:
        return self.joined(x)


def split_at(
    model: nn.Module, cuts: Sequence[str], devices: Sequence[torch.device | str]
) -> Staged:
    """`model` in len(cuts) + 1 stages, a new one beginning before each named module; same weights, same answer.

    Args:
        model: anything torch.fx can trace, int8 layers included. Its parameters are moved, not copied: drop it.
        cuts: names of modules in the order they run, such as "layer2". Values that several stages read, residuals
            among them, travel too; few do where blocks begin.
        devices: one a stage. The answer is on the last.

    Raises:
        ValueError: an unknown module (the nearest names follow), cuts out of order, or as many devices as do not fit.
    """
    if len(devices) != len(cuts) + 1:
        raise ValueError(f"{len(cuts)} cuts make {len(cuts) + 1} stages, not {len(devices)}")
    traced = fx.GraphModule(model, LayerwiseTracer().trace(model))
    starts = [_first_node(model, traced, name) for name in cuts]
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    places = [order[node] for node in starts]
    if places != sorted(set(places)):
        raise ValueError(f"cuts={list(cuts)} must be modules in the order in which they run")
    joined = split_module(traced, model, lambda node: sum(order[node] >= p for p in places))
    for (name, piece), device in zip(list(joined.named_children()), devices, strict=True):
        setattr(joined, name, Stage(piece, device))
    return Staged(joined)


def _first_node(model: nn.Module, traced: fx.GraphModule, name: str) -> fx.Node:
    for node in traced.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and (target == name or target.startswith(f"{name}.")):
            return node
    known = [known for known, _ in model.named_modules() if known]
    near = difflib.get_close_matches(name, known, n=3) or known[:3]
    raise ValueError(f"no module {name!r} runs in this model; near are {', '.join(near)}")
