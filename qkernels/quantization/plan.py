"""Which layers a conversion will touch, and why not the others. Names only: no module is held."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qkernels.modules.swap import has_own_forward
from qkernels.nn import QuantModule
from qkernels.nn.registry import LayerSpec, float_classes, spec_of
from qkernels.ops import FLOAT_DTYPES
from qkernels.quantization.config import Lineage, QuantConfig, matches
from qkernels.quantization.fold import own_weight


@dataclass
class Plan:
    """Every name is the first of a module; `names` lists all names it is registered under.

    Attributes:
        layers: name -> settings of the layers to convert.
        skipped: name -> why a layer with weights stays float.
        excluded: names in `skipped` that the config itself asked to leave.
        names: name -> all names of the same module object.
        kinds: name -> class name, of the module that the model came with.
        tied: groups of names of layers to convert that hold one and the same weight.
        notes: sentences for the report.
    """

    layers: dict[str, QuantConfig] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    names: dict[str, list[str]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    tied: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lineage(self, name: str) -> Lineage:
        """The module of this name and all around it, each with its class name."""
        parts = name.split(".") if name else []
        names = [".".join(parts[:i]) for i in range(len(parts), -1, -1)]
        return [(n, self.kinds[n]) for n in names]


def make_plan(
    model: nn.Module,
    config: QuantConfig,
    *,
    kinds: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Plan:
    """Decide for every layer with weights of its own.

    Args:
        model: plain already, see `qkernels.plain`.
        config: what it includes, excludes and overrides.
        kinds: class names of modules that were made plain before, by their names.
        refused: name -> why a layer could not be made plain.

    Raises:
        ValueError: when nothing is left to convert, or weights have no values (meta device, lazy modules).
    """
    plan = Plan()
    first_name: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        plan.names.setdefault(first_name.setdefault(module, name), []).append(name)
        plan.kinds[name] = (kinds or {}).get(name, type(module).__name__)
    for name in plan.names:
        _decide(plan, config, name, model.get_submodule(name), refused or {})
    plan.notes += _unmatched_patterns(plan, config)
    _find_tied(model, plan)
    if not plan.layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(plan.skipped.items())[:5])
        raise ValueError(
            f"{type(model).__name__} has no layer to convert to int8"
            + (f" ({reasons})" if reasons else ": it holds no Conv2d or Linear")
        )
    return plan


def unwanted(plan: Plan, config: QuantConfig, name: str) -> str | None:
    """Why the config does not ask for the module under one of its names; None where it does."""
    reasons = (config.why_not(plan.lineage(alias)) for alias in plan.names[name])
    return next(filter(None, reasons), None)


def _decide(
    plan: Plan, config: QuantConfig, name: str, module: nn.Module, refused: Mapping[str, str]
) -> None:
    if not _has_matrix(module):
        return
    unasked, settings = unwanted(plan, config, name), config.for_layer(plan.lineage(name))
    spec = spec_of(module)
    reason = refused.get(name) or why_impossible(module, spec, settings.activation) or unasked
    if reason is None:
        plan.layers[name] = settings
        return
    plan.skipped[name] = reason
    if unasked is not None:
        plan.excluded.add(name)


def _has_matrix(module: nn.Module) -> bool:
    """Whether the module itself owns weights of two or more dimensions."""
    known = isinstance(module, (*float_classes(), QuantModule))
    return known or any(is_lazy(w) or w.dim() >= 2 for w in module.parameters(recurse=False))


def why_impossible(module: nn.Module, spec: LayerSpec | None, activation: str) -> str | None:
    """Why the module has no int8 form with this activation; None where it has one."""
    kind = type(module).__name__
    if isinstance(module, QuantModule):
        return "already int8"
    if any(is_lazy(weight) for weight in module.parameters(recurse=False)):
        raise ValueError(f"{kind} has no weights yet: run the model once before quantizing it")
    if has_own_forward(module):
        return "its forward was replaced on the object, as hooks of accelerate do: it may compute something else"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "MultiheadAttention reads its weight without calling it"
    if spec is None:
        if isinstance(module, float_classes()):
            return f"{kind} has a forward of its own, which may compute something else"
        held = [k for k, w in module.named_parameters(recurse=False) if w.dim() >= 2]
        return f"no int8 layer for {kind}, which holds {', '.join(held)} itself"
    if spec.observed and activation not in spec.int8_class.ACTIVATIONS:
        what = "convolution" if "Conv" in spec.float_class.__name__ else spec.float_class.__name__
        return f"a {what} has no {activation} form"
    if not own_weight(module):
        return "a hook recomputes its weight (pruning, weight norm): make it permanent first"
    weight = module._parameters["weight"]
    assert weight is not None
    if weight.is_meta:
        raise ValueError("the model is on the meta device: load its weights before quantizing it")
    if weight.dtype not in FLOAT_DTYPES:
        return f"its weight is {weight.dtype}; int8 layers take float32, float16 and bfloat16"
    if weight.numel() == 0:
        return "its weight is empty"
    return spec.int8_class.why_not(module)


def _unmatched_patterns(plan: Plan, config: QuantConfig) -> list[str]:
    def nearest(pattern: str) -> str:
        near = difflib.get_close_matches(pattern, filter(None, plan.kinds), n=3, cutoff=0.6)
        return f"; the nearest: {', '.join(near)}" if near else ""

    return [
        f"pattern {pattern!r} of the config matches no module{nearest(pattern)}"
        for pattern in config.patterns()
        if not any(matches(pattern, [module]) for module in plan.kinds.items())
    ]


def _find_tied(model: nn.Module, plan: Plan) -> None:
    """Note which parameters are tied, and keep those whose owners are all converted, so that they stay tied."""
    owners: dict[Tensor, list[str]] = defaultdict(list)
    for name in plan.names:
        for key, weight in model.get_submodule(name).named_parameters(recurse=False):
            owners[weight].append(f"{name}.{key}".lstrip("."))
    for names in owners.values():
        layers = [name.rpartition(".")[0] for name in names]
        if len(names) < 2 or not plan.layers.keys() & layers:
            continue
        if plan.layers.keys() >= {*layers}:
            plan.tied.append(layers)
        else:
            plan.notes.append(
                f"{', '.join(names)} were one tied parameter; converted layers now hold int8 copies"
            )
