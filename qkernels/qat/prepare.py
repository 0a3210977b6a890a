"""The way from a float model to one that trains as int8, and from there to the int8 model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from qkernels.modules.copying import copied, unwrapped
from qkernels.modules.eval_mode import answering
from qkernels.modules.swap import ModuleSwap
from qkernels.nn.registry import LayerSpec, spec_of
from qkernels.qat.modules import OWN_TENSORS, FakeQuantMixin
from qkernels.quantization.calibration import Calibration
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.prepare import Prepared, prepare_
from qkernels.quantization.products import Products


@torch.inference_mode(False)  # whose tensors cannot learn
def prepare_qat(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    *,
    example_inputs: Any = None,
    learn_scales: bool = True,
) -> nn.Module:
    """A model whose Conv2d and Linear compute as their int8 layers, and train.

    Before a step is made it answers, bit for bit, as `quantize(model, config, calibration)` does. Batch norms are
    folded first, as they are deployed: nothing of the deployed arithmetic is missing in training. Ranges come from
    `calibration` once; then only learning moves them. Layers of a kind without a training class (see
    `qkernels.nn.LayerSpec`) stay float. Train with a small lr (a hundredth of the float one).

    Args:
        model: trained float weights; not changed.
        config: as for `quantize`; all its layers must be static.
        calibration: as for `quantize`.
        example_inputs: as for `quantize`.
        learn_scales: whether scales learn too (LSQ); else only weights and biases do.

    Raises:
        ValueError: as `quantize`; for a layer that is not static, or whose weight the model reads without calling it.
    """
    config = QuantConfig.of(config)
    if calibration is None:
        raise ValueError("quantization-aware training starts from ranges: give calibration=...")
    ready = prepare_(copied(unwrapped(model)[0])[0], config, calibration, example_inputs)
    uncalled = _uncalled(ready)
    swap = ModuleSwap(ready.model)
    for name, settings in ready.plan.layers.items():
        layer = ready.model.get_submodule(name)
        kind = cast(LayerSpec, spec_of(layer)).training()
        if kind is None:
            continue
        if settings.activation != "static":
            raise ValueError(f"layer {name!r} is {settings.activation}: only static layers train")
        if name in uncalled:
            raise ValueError(
                f"layer {name!r} is never called, the model multiplies by its weight itself: exclude it"
            )
        twin = kind.empty(layer)
        twin.start(
            layer,
            *ready.qparams[name],
            per_channel=settings.weight == "per_channel",
            symmetric=bool(settings.symmetric),
            learn_scales=learn_scales,
        )
        swap.put(layer, twin, own=("weight", "bias"))
        ready.model = swap.model
    return swap.finish().train()


def _uncalled(ready: Prepared) -> list[str]:
    """The layers whose weight the model reads instead of calling them: a training class in their place does nothing."""
    products = Products(ready.model, {name: lambda x: None for name in ready.plan.layers})
    if ready.call is not None:
        with answering(ready.model), products:
            ready.call.run(ready.model)
    return products.uncalled()


def convert_qat(model: nn.Module) -> nn.Module:
    """The int8 model of a trained `prepare_qat` model, which stays as it is; in eval mode.

    It answers as the trained model in eval mode does, bit for bit, and saves and loads as any int8 model.

    Raises:
        ValueError: for a model without fake-quant layers.
    """
    model = copied(model)[0]
    layers = [module for module in model.modules() if isinstance(module, FakeQuantMixin)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no fake-quant layer: prepare_qat makes them")
    swap = ModuleSwap(model)
    for layer in layers:
        swap.put(layer, layer.to_int8(), own=OWN_TENSORS)
    return swap.finish().eval()
