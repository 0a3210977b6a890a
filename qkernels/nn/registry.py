"""What the library knows of each kind of layer, in one place that users add to."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import nn

from qkernels.nn.conv import QuantConv2d
from qkernels.nn.conv1d import QuantConv1d
from qkernels.nn.conv3d import QuantConv3d
from qkernels.nn.conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d
from qkernels.nn.embedding import QuantEmbedding, QuantEmbeddingBag
from qkernels.nn.linear import QuantLinear
from qkernels.nn.module import QuantModule

Lazy = (
    type | str | None
)  # a class, or "module:name" of one that is imported when it is first asked for


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """A kind of layer and everything that quantization does with it.

    Attributes:
        float_class: it counts for subclasses too, as long as they inherit its forward.
        int8_class: has `from_float`, `scheme` and `from_scheme` as `QuantLinear` has them, and says in ACTIVATIONS
            which schemes it knows. Its layers have ``weight`` and ``bias``.
        channel_axis: the axis of the output that holds the channels.
        weight_axis: the axis of the weight that holds the output's channels: a batch norm folds along it.
        input_axis: the axis of the weight that holds the input's channels, for equalization; None: takes no part.
        training_class: the fake-quantizing twin for quantization-aware training; None: the layer does not train.
        qdq_class: the layer in ONNX's QDQ form; None: it is not exported.
        observed: whether a static scheme needs the range of the layer's input.
    """

    float_class: type[nn.Module]
    int8_class: type[QuantModule]
    channel_axis: int
    weight_axis: int = 0
    input_axis: int | None = None
    training_class: Lazy = None
    qdq_class: Lazy = None
    observed: bool = True

    def training(self) -> Any:
        """The training class itself, or None."""
        return _loaded(self.training_class)

    def qdq(self) -> Any:
        """The QDQ class itself, or None."""
        return _loaded(self.qdq_class)


_SPECS: dict[type[nn.Module], LayerSpec] = {}


def register_layer(spec: LayerSpec) -> None:
    """Let every part of the library treat layers of ``spec.float_class`` so; a later spec of a class wins.

    Raises:
        TypeError: classes that do not fit together.
    """
    if not issubclass(spec.int8_class, QuantModule):
        raise TypeError(f"int8_class={spec.int8_class.__name__} is no QuantModule")
    _SPECS[spec.float_class] = spec


def spec_of(module: nn.Module) -> LayerSpec | None:
    """The spec of a float layer; None where its class is not known, or has a forward of its own."""
    kind = type(module)
    for base in kind.__mro__:
        spec = _SPECS.get(base)
        if spec is not None:
            same = (
                getattr(kind, f, None) is getattr(base, f, None)
                for f in ("forward", "_conv_forward")
            )
            return spec if all(same) and not isinstance(module, QuantModule) else None
    return None


def spec_of_int8(kind: type[nn.Module] | str) -> LayerSpec | None:
    """The spec of an int8 class, given itself or by its name."""
    name = kind if isinstance(kind, str) else kind.__name__
    return next((s for s in _SPECS.values() if s.int8_class.__name__ == name), None)


def float_classes() -> tuple[type[nn.Module], ...]:
    """The float classes that have an int8 form."""
    return tuple(_SPECS)


def activation_names() -> tuple[str, ...]:
    """The schemes that some int8 layer knows."""
    return tuple(dict.fromkeys(name for s in _SPECS.values() for name in s.int8_class.ACTIVATIONS))


def _loaded(lazy: Lazy) -> Any:
    if not isinstance(lazy, str):
        return lazy
    module, _, name = lazy.partition(":")
    return getattr(importlib.import_module(module), name)


_OURS = (
    LayerSpec(
        float_class=nn.Linear,
        int8_class=QuantLinear,
        channel_axis=-1,
        input_axis=1,
        training_class="qkernels.qat.modules:FakeQuantLinear",
        qdq_class="qkernels.export.qdq:QdqLinear",
    ),
    LayerSpec(
        float_class=nn.Conv2d,
        int8_class=QuantConv2d,
        channel_axis=1,
        input_axis=1,
        training_class="qkernels.qat.modules:FakeQuantConv2d",
        qdq_class="qkernels.export.qdq:QdqConvolution",
    ),
    LayerSpec(
        float_class=nn.Conv1d,
        int8_class=QuantConv1d,
        channel_axis=1,
        input_axis=1,
        qdq_class="qkernels.export.qdq:QdqConvolution",
    ),
    LayerSpec(
        float_class=nn.Conv3d,
        int8_class=QuantConv3d,
        channel_axis=1,
        input_axis=1,
        qdq_class="qkernels.export.qdq:QdqConvolution",
    ),
    LayerSpec(
        float_class=nn.ConvTranspose1d,
        int8_class=QuantConvTranspose1d,
        channel_axis=1,
        weight_axis=1,
        qdq_class="qkernels.export.qdq:QdqConvTranspose",
    ),
    LayerSpec(
        float_class=nn.ConvTranspose2d,
        int8_class=QuantConvTranspose2d,
        channel_axis=1,
        weight_axis=1,
        qdq_class="qkernels.export.qdq:QdqConvTranspose",
    ),
    LayerSpec(
        float_class=nn.Embedding,
        int8_class=QuantEmbedding,
        channel_axis=-1,
        observed=False,
        qdq_class="qkernels.export.qdq:QdqEmbedding",
    ),
    LayerSpec(
        float_class=nn.EmbeddingBag, int8_class=QuantEmbeddingBag, channel_axis=-1, observed=False
    ),
)
for _spec in _OURS:
    register_layer(_spec)
