"""`quantize`: a float model in, an int8 model out, on which a report hangs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from qkernels import reports
from qkernels.nn import QuantModule, fix_mean_order_, quantize_weight
from qkernels.quantization.calibration import Calibration, calibrate
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.fold import Folds, Layer, fold_batch_norm_, has_hooks, replace_module
from qkernels.quantization.observers import make_observers
from qkernels.quantization.plan import QUANTIZED, Plan, make_plan
from qkernels.quantization.report import LayerReport, QuantReport
from qkernels.renamed import explains_old_arguments

QParams = tuple[float, int]


@explains_old_arguments
def quantize(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | str | None = None,
    calibration: Calibration | None = None,
) -> nn.Module:
    """Swap every Conv2d and Linear for its int8 layer.

    Batch norms are folded first, static ranges are found by running `calibration`, then layers
    are swapped one by one, each float weight freed as its int8 form appears. Shared modules stay
    shared. The returned model is in eval mode, on the device of `model`.

    Args:
        model: float weights; not changed (`quantize_` converts it in place).
        config: a QuantConfig, a dict of its fields, or an activation name ("static", "dynamic",
            "weight_only"). None: static, per-channel, percentile 99.999.
        calibration: needed by static layers, see `calibrate`.

    Returns:
        The int8 model; `qkernels.report(model)` is its `QuantReport`.

    Raises:
        ValueError: for an unknown setting, no layer to convert, static layers without calibration
            data, bad calibration data; with `config.strict`, for any layer with weights that
            would stay float without being excluded.
    """
    return quantize_(copy.deepcopy(model), config, calibration)


def quantize_(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | str | None = None,
    calibration: Calibration | None = None,
) -> nn.Module:
    """Convert `model` itself as `quantize` converts a copy, so that both never exist at once.

    Arguments, result and errors are those of `quantize`. Use the returned model: a root that is
    itself a Linear is replaced. If calibration fails, batch norms are already folded.
    """
    config = QuantConfig.of(config)
    plan = make_plan(model, config)
    _check_calibration(plan, calibration)
    _check_strict(plan, config)
    model.eval()
    report = QuantReport(config=config, notes=plan.notes, bytes_before=stored_bytes(model))
    if config.fold_batch_norm:
        folds = reports.report(fold_batch_norm_(model, only=plan.layers), Folds)
        report.folded, report.notes = folds.pairs, report.notes + folds.notes
    call_layers_plainly(model, plan.layers)
    fix_mean_order_(model)
    qparams = input_qparams(model, plan, calibration)
    _check_strict(plan, config)
    for name in plan.names:
        if name in plan.layers:
            model = _convert(model, name, plan, qparams.get(name), report)
        elif name in plan.skipped:
            report.layers.append(_skipped(model.get_submodule(name), name, plan))
    report.bytes_after = stored_bytes(model)
    return reports.hang(model, report)


def stored_bytes(model: nn.Module, recurse: bool = True) -> int:
    """Bytes of the state dict, shared tensors once; packed weights count as the int8 they hold."""
    tensors: set[Tensor] = set()
    packed = 0
    for module in model.modules() if recurse else [model]:
        tensors.update(module.parameters(recurse=False))
        derived = module._non_persistent_buffers_set
        tensors.update(b for k, b in module.named_buffers(recurse=False) if k not in derived)
        if isinstance(module, QuantModule):
            packed += math.prod(module.weight_size)
    return packed + sum(tensor.nbytes for tensor in tensors)


def call_layers_plainly(model: nn.Module, names: Iterable[str]) -> None:
    """Make torch's TransformerEncoderLayer call its layers instead of reading their weights.

    In eval mode it otherwise hands `linear1.weight` to a fused float kernel, past our layers.
    """
    for name in names:
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # torch: "not a fused activation"


def input_qparams(
    model: nn.Module, plan: Plan, calibration: Calibration | None
) -> dict[str, QParams]:
    """Scale and zero point of each static layer; layers never reached move to `plan.skipped`."""
    static = {name: layer for name, layer in plan.layers.items() if layer.activation == "static"}
    observers = make_observers(static)
    if static and calibration is not None:
        calibrate(model, observers, calibration)
    for name, observer in observers.items():
        if observer.count == 0:
            plan.skipped[name] = "the calibration data never reached it"
            del plan.layers[name]
    if not plan.layers:
        raise ValueError("the calibration data reached no layer: does it run the whole model?")
    return {name: observer.qparams() for name, observer in observers.items() if observer.count}


def _convert(
    model: nn.Module, name: str, plan: Plan, qparams: QParams | None, report: QuantReport
) -> nn.Module:
    layer, settings = cast(Layer, model.get_submodule(name)), plan.layers[name]
    scale, zero_point = qparams or (None, None)
    try:
        converted = QUANTIZED[type(layer)].from_float(
            cast(Any, layer),
            activation=settings.activation,
            weight=quantize_weight(layer.weight, per_channel=settings.weight == "per_channel"),
            input_scale=scale,
            input_zero_point=zero_point,
            symmetric=bool(settings.symmetric),
        )
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error} (exclude it to keep it in float)") from error
    report.layers.append(
        LayerReport(
            name=name,
            type=type(layer).__name__,
            action="converted",
            scheme=converted.scheme(),
            input_scale=scale,
            input_zero_point=zero_point,
            bytes_before=stored_bytes(layer),
            bytes_after=stored_bytes(converted),
            aliases=plan.names[name][1:],
        )
    )
    if has_hooks(layer):
        report.notes.append(f"the forward hooks of {name!r} are gone: the int8 layer has none")
    for alias in plan.names[name]:
        model = replace_module(model, alias, converted.eval())
    return model


def _skipped(layer: nn.Module, name: str, plan: Plan) -> LayerReport:
    size = stored_bytes(layer, recurse=False)
    return LayerReport(
        name=name,
        type=type(layer).__name__,
        action="skipped",
        reason=plan.skipped[name],
        bytes_before=size,
        bytes_after=size,
        aliases=plan.names[name][1:],
    )


def _check_calibration(plan: Plan, calibration: Calibration | None) -> None:
    static = [
        name
        for name, layer in plan.layers.items()
        if layer.activation == "static" and layer.observer != "fixed"
    ]
    if static and calibration is None:
        raise ValueError(
            f"{len(static)} layers are static (first: {static[0]!r}) and need calibration data: "
            'give calibration=..., or activation="dynamic"'
        )
    if calibration is not None and not static:
        plan.notes.append("no layer takes its range from data: the calibration data was not used")


def _check_strict(plan: Plan, config: QuantConfig) -> None:
    left = {name: why for name, why in plan.skipped.items() if name not in plan.excluded}
    if config.strict and left:
        listed = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise ValueError(f"strict: {len(left)} layers would stay float ({listed}); exclude them")
