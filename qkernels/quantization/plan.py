"""Which layers a conversion will touch, and why not the others. Names only: no module is held."""

from __future__ import annotations

import difflib
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qkernels.nn import QuantConv2d, QuantLinear, QuantModule
from qkernels.quantization.config import QuantConfig, matches
from qkernels.quantization.fold import own_weight

QUANTIZED: dict[type[nn.Module], type[QuantLinear] | type[QuantConv2d]] = {
    nn.Linear: QuantLinear,
    nn.Conv2d: QuantConv2d,
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST_K = 65535  # so that sums and their zero-point corrections fit int32


@dataclass
class Plan:
    """Every name is the first of a module; `names` lists all names it is registered under.

    Attributes:
        layers: name -> settings of the layers to convert.
        skipped: name -> why a layer with weights stays float.
        excluded: names in `skipped` that the config itself asked to leave.
        names: name -> all names of the same module object.
        notes: sentences for the report.
    """

    layers: dict[str, QuantConfig] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def make_plan(model: nn.Module, config: QuantConfig) -> Plan:
    """Decide for every layer with weights of its own.

    Raises:
        ValueError: when nothing is left to convert, or weights have no values (meta device).
    """
    plan = Plan()
    first_name: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        plan.names.setdefault(first_name.setdefault(module, name), []).append(name)
    for name in plan.names:
        _decide(plan, config, name, model.get_submodule(name))
    plan.notes += _unmatched_patterns(model, config) + _tied_weights(model, plan)
    if not plan.layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(plan.skipped.items())[:5])
        raise ValueError(
            f"{type(model).__name__} has no layer to convert to int8"
            + (f" ({reasons})" if reasons else ": it holds no Conv2d or Linear")
        )
    return plan


def _decide(plan: Plan, config: QuantConfig, name: str, module: nn.Module) -> None:
    if not _has_matrix(module):
        return
    aliases, kind = plan.names[name], type(module).__name__
    unwanted = next(filter(None, (config.why_not(alias, kind) for alias in aliases)), None)
    settings = config.for_layer(name, kind)
    reason = _why_impossible(module, settings.activation) or unwanted
    if reason is None:
        plan.layers[name] = settings
        return
    plan.skipped[name] = reason
    if unwanted is not None:
        plan.excluded.add(name)


def _has_matrix(module: nn.Module) -> bool:
    """Whether the module itself owns weights of two or more dimensions."""
    known = isinstance(module, (*QUANTIZED, QuantModule))
    return known or any(weight.dim() >= 2 for weight in module.parameters(recurse=False))


def _why_impossible(module: nn.Module, activation: str) -> str | None:
    kind = type(module).__name__
    if isinstance(module, QuantModule):
        return "already int8"
    if type(module) not in QUANTIZED:
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return "MultiheadAttention reads its weight without calling it"
        if isinstance(module, nn.MultiheadAttention):
            return "it multiplies by its own weights, without Linear layers"
        if isinstance(module, tuple(QUANTIZED)):
            return f"{kind} is a subclass that may compute something else"
        return f"no int8 layer for {kind}"
    if activation == "weight_only" and type(module) is nn.Conv2d:
        return "a convolution has no weight_only form"
    if not own_weight(module):
        return "a hook recomputes its weight (pruning, weight norm): make it permanent first"
    weight = module._parameters["weight"]
    assert weight is not None
    if weight.is_meta:
        raise ValueError("the model is on the meta device: load its weights before quantizing it")
    if weight.dtype not in _DTYPES:
        return f"its weight is {weight.dtype}; int8 layers take float32, float16 and bfloat16"
    if weight.numel() == 0:
        return "its weight is empty"
    if weight[0].numel() > _LARGEST_K:
        return f"its sums of {weight[0].numel()} products are above the limit of {_LARGEST_K}"
    return None


def _unmatched_patterns(model: nn.Module, config: QuantConfig) -> list[str]:
    modules = [(name, type(m).__name__) for name, m in model.named_modules(remove_duplicate=False)]
    names = [name for name, _ in modules if name]

    def nearest(pattern: str) -> str:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.6)
        return f"; the nearest: {', '.join(near)}" if near else ""

    return [
        f"pattern {pattern!r} of the config matches no module{nearest(pattern)}"
        for pattern in config.patterns()
        if not any(matches(pattern, name, kind) for name, kind in modules)
    ]


def _tied_weights(model: nn.Module, plan: Plan) -> list[str]:
    owners: dict[Tensor, list[str]] = defaultdict(list)
    for name in plan.names:
        for key, weight in model.get_submodule(name).named_parameters(recurse=False):
            owners[weight].append(f"{name}.{key}".lstrip("."))
    return [
        f"{', '.join(names)} were one tied parameter; converted layers now hold int8 copies"
        for names in owners.values()
        if len(names) > 1 and any(name.rpartition(".")[0] in plan.layers for name in names)
    ]
