"""`quantize`: a float model in, an int8 model out, on which a report hangs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qkernels import reports
from qkernels.modules.copying import copied, unwrapped
from qkernels.modules.eval_mode import answering
from qkernels.modules.outputs import output_sqnrs
from qkernels.modules.swap import ModuleSwap
from qkernels.nn import QuantModule
from qkernels.nn.registry import spec_of
from qkernels.quantization.calibration import Calibration
from qkernels.quantization.compare import call_errors
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.plan import Plan
from qkernels.quantization.prepare import Prepared, prepare_
from qkernels.quantization.report import LayerReport, QuantReport
from qkernels.utils.errors import first_line
from qkernels.utils.renamed import explains_old_arguments

_LOW_SQNR = 10.0  # dB; an output below it has lost a third of its size


@explains_old_arguments
@torch.inference_mode(False)  # whose tensors nothing could load into or train
def quantize(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | str | None = None,
    calibration: Calibration | None = None,
    *,
    example_inputs: Any = None,
) -> nn.Module:
    """Swap every layer that has an int8 form (`qkernels.nn.float_classes`) for it.

    Modules that hide their products (multi-head attention, LSTM, weight-normed layers, layers with a forward of their
    own) are made of ordinary layers first (`qkernels.plain`), batch norms are folded, static ranges are found by
    running `calibration`, then layers are swapped one by one. Shared modules and tied weights stay shared; attributes,
    hooks and references in lists go to the int8 layers. The returned model is in eval mode, on the device of `model`.
    The report says how far its answer to an example is from the float model's.

    Args:
        model: float weights; not changed (`quantize_` converts it in place). DataParallel, DistributedDataParallel and
            torch.compile are taken off.
        config: a QuantConfig, a dict of its fields, or an activation name ("static", "dynamic", "weight_only"). None:
            static, per-channel, percentile 99.999.
        calibration: needed by static layers, see `calibrate`.
        example_inputs: what the model is called with: a tensor, a tuple of positional or a dict of keyword arguments.
            None: the first batch of `calibration`.

    Returns:
        The int8 model; `qkernels.report(model)` is its `QuantReport`.

    Raises:
        RuntimeError: the forward fails with int8 layers, since it takes their parameters by name.
        ValueError: for an unknown setting, no layer to convert, static layers without calibration data, bad calibration
            data, a ScriptModule; with `config.strict`, for any layer with weights that would stay float without being
            excluded.
    """
    config = QuantConfig.of(config)
    model, unwrapping = unwrapped(model)
    copy, copying = copied(model)
    int8 = _quantize(copy, config, calibration, example_inputs, model)
    reports.report(int8, QuantReport).notes[:0] = unwrapping + copying
    return int8


@explains_old_arguments
@torch.inference_mode(False)  # whose tensors nothing could load into or train
def quantize_(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | str | None = None,
    calibration: Calibration | None = None,
    *,
    example_inputs: Any = None,
) -> nn.Module:
    """Convert `model` itself as `quantize` converts a copy, so that both never exist at once.

    Arguments, result and errors are those of `quantize`. Use the returned model: a root that is itself a Linear is
    replaced. If calibration fails, hidden layers are already plain and batch norms folded, which changes no answer.
    """
    model, unwrapping = unwrapped(model)
    int8 = _quantize(model, QuantConfig.of(config), calibration, example_inputs, None)
    reports.report(int8, QuantReport).notes[:0] = unwrapping
    return int8


def _quantize(
    model: nn.Module,
    config: QuantConfig,
    calibration: Calibration | None,
    example_inputs: Any,
    original: nn.Module | None,
) -> nn.Module:
    size = stored_bytes(model)
    ready = prepare_(model, config, calibration, example_inputs)
    report = QuantReport(config=config, folded=ready.folded, notes=ready.notes, bytes_before=size)
    swap = ModuleSwap(ready.model)
    for name in ready.plan.names:
        if name in ready.plan.layers:
            _convert(ready, name, swap, report)
        elif name in ready.plan.skipped:
            report.layers.append(_skipped(ready, name))
    int8 = swap.finish()
    _tie(int8, ready.plan)
    report.notes += swap.notes
    report.bytes_after = stored_bytes(int8)
    _check_answer(int8, ready, report, original)
    return reports.hang(int8, report)


def stored_bytes(model: nn.Module, recurse: bool = True) -> int:
    """Bytes of the state dict, shared tensors once; packed weights count as the int8 they hold."""
    tensors: set[Tensor] = set()
    packed: dict[int, int] = {}
    for module in model.modules() if recurse else [model]:
        tensors.update(module.parameters(recurse=False))
        derived = module._non_persistent_buffers_set
        tensors.update(b for k, b in module.named_buffers(recurse=False) if k not in derived)
        if isinstance(module, QuantModule):
            packed[module.packed_weight.data_ptr()] = math.prod(module.weight_size)
    return sum(packed.values()) + sum(tensor.nbytes for tensor in tensors)


def _convert(ready: Prepared, name: str, swap: ModuleSwap, report: QuantReport) -> None:
    layer = ready.model.get_submodule(name)
    spec = spec_of(layer)
    assert spec is not None
    int8 = ready.int8_layer(name)
    scale, zero_point = ready.qparams.get(name, (None, None))
    report.layers.append(
        LayerReport(
            name=name,
            type=ready.plan.kinds[name],
            action="converted",
            scheme=int8.scheme(),
            input_scale=scale,
            input_zero_point=zero_point,
            bytes_before=stored_bytes(layer),
            bytes_after=stored_bytes(int8),
            aliases=ready.plan.names[name][1:],
        )
    )
    swap.put(layer, int8, own=("weight", "bias"))
    ready.model = swap.model


def _skipped(ready: Prepared, name: str) -> LayerReport:
    size = stored_bytes(ready.model.get_submodule(name), recurse=False)
    return LayerReport(
        name=name,
        type=ready.plan.kinds[name],
        action="skipped",
        reason=ready.plan.skipped[name],
        bytes_before=size,
        bytes_after=size,
        aliases=ready.plan.names[name][1:],
    )


def _tie(model: nn.Module, plan: Plan) -> None:
    """Let layers whose float weights were one parameter hold one int8 weight."""
    for first, *others in plan.tied:
        kept = model.get_submodule(first)
        for other in map(model.get_submodule, others):
            if isinstance(kept, QuantModule) and isinstance(other, QuantModule):
                kept.tie(other)


def _check_answer(
    int8: nn.Module, ready: Prepared, report: QuantReport, original: nn.Module | None
) -> None:
    """Put into the report how near the int8 model's answer is; warn where little of it is left."""
    if ready.call is None:
        return
    with answering(int8):
        try:
            answer = ready.call.run(int8)
        except Exception as error:  # the forward wants of a layer what only the float layer has
            raise RuntimeError(
                f"the int8 model fails where the float model answers ({type(error).__name__}: {first_line(error)}): "
                "exclude the layers whose parameters its forward takes by name"
            ) from error
    report.sqnr_db = output_sqnrs(ready.answer, answer)
    low = {name: db for name, db in report.sqnr_db.items() if db < _LOW_SQNR}
    if not low:
        return
    name, db = min(low.items(), key=lambda item: item[1])
    where = ""
    if original is not None:
        errors = call_errors(original, int8, ready.call)
        worst = sorted(errors, key=lambda e: e.sqnr_db)[:3]
        where = "".join(f"; {e.name} keeps {e.sqnr_db:.1f} dB" for e in worst)
    sentence = (
        f"the int8 model's {name} keeps {db:.1f} dB of the float model's on the example{where}"
    )
    report.notes.append(sentence)
    warnings.warn(f"{sentence} (docs/quantization.md says what helps)", stacklevel=6)
