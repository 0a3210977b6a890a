"""From a float model to one that trains as int8, and from there to the int8 model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from qkernels.nn import fix_mean_order_
from qkernels.qat.modules import FakeQuantMixin, empty_twin
from qkernels.quantization.calibration import Calibration
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.convert import call_layers_plainly, input_qparams
from qkernels.quantization.fold import Layer, fold_batch_norm_, replace_module
from qkernels.quantization.plan import make_plan


def prepare_qat(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    *,
    learn_scales: bool = True,
) -> nn.Module:
    """A model whose Conv2d and Linear compute as their int8 layers, and train.

    Before a step is made it answers, bit for bit, as `quantize(model, config, calibration)` does. Batch norms are
    folded first, as they are deployed: nothing of the deployed arithmetic is missing in training. Ranges come from
    `calibration` once; then only learning moves them. Train with a small lr (a hundredth of the float one).

    Args:
        model: trained float weights; not changed.
        config: as for `quantize`; all its layers must be static.
        calibration: as for `quantize`.
        learn_scales: whether scales learn too (LSQ); else only weights and biases do.

    Raises:
        ValueError: as `quantize`; for a layer that is not static.
    """
    config = QuantConfig.of(config)
    plan = make_plan(model, config)
    other = [name for name, layer in plan.layers.items() if layer.activation != "static"]
    if other:
        raise ValueError(
            f"layer {other[0]!r} is {plan.layers[other[0]].activation}: only static layers train"
        )
    if calibration is None:
        raise ValueError("quantization-aware training starts from ranges: give calibration=...")
    model = copy.deepcopy(model).eval()
    if config.fold_batch_norm:
        fold_batch_norm_(model, only=plan.layers)
    call_layers_plainly(model, plan.layers)
    fix_mean_order_(model)
    qparams = input_qparams(model, plan, calibration)
    for name, settings in plan.layers.items():
        layer = cast(Layer, model.get_submodule(name))
        twin = empty_twin(layer)
        twin.start(
            layer,
            *qparams[name],
            per_channel=settings.weight == "per_channel",
            symmetric=bool(settings.symmetric),
            learn_scales=learn_scales,
        )
        for alias in plan.names[name]:
            model = replace_module(model, alias, twin)
    return model.train()


def convert_qat(model: nn.Module) -> nn.Module:
    """The int8 model of a trained `prepare_qat` model, which stays as it is; in eval mode.

    It answers as the trained model in eval mode does, bit for bit, and saves and loads as any int8 model.

    Raises:
        ValueError: for a model without fake-quant layers.
    """
    model = copy.deepcopy(model)
    layers = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, FakeQuantMixin)
    ]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no fake-quant layer: prepare_qat makes them")
    int8 = {module: module.to_int8() for _, module in layers}
    for name, module in layers:
        model = replace_module(model, name, int8[module])
    return model.eval()
