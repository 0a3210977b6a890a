"""Layers that train through their own quantization.

Forward is the int8 layer itself, built from the present weights and scales, so training sees the bits that will be
deployed. Backward is that of the float layer on fake-quantized tensors.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkernels.modules.standing_in import StandIn
from qkernels.nn import QuantConv2d, QuantLinear, quantize_weight

_SMALLEST = 1e-12  # a learned scale stays above 0


def fake_quantize(x: Tensor, scale: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """`round(clamp(x / scale, low, high)) * scale` with the gradients of LSQ.

    To x: 1 inside the range, 0 where it clips. To the scale: `round(x / s) - x / s` inside, `low` or `high` where it
    clips, times `1 / sqrt(values per scale * 127)`, so that scales and weights move at a like pace.

    Source: Esser et al., "Learned Step Size Quantization", 2019, arXiv:1902.08153, section 2.
    """
    pace = (x.numel() / scale.numel() * 127) ** -0.5
    scale = scale.detach() + (scale - scale.detach()) * pace  # value of scale, slower gradient
    steps = torch.minimum(torch.maximum(x / scale, _as_tensor(low, x)), _as_tensor(high, x))
    return (steps + (steps.round() - steps).detach()) * scale


def _as_tensor(bound: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=like.dtype, device=like.device)


OWN_TENSORS = ("weight", "bias", "weight_scale", "input_scale", "input_zero_point")


class FakeQuantMixin(StandIn, nn.Module):
    """What both layers share: learned scales, the int8 twin, and the forward through it."""

    weight: Tensor
    bias: Any
    weight_scale: nn.Parameter
    input_scale: nn.Parameter
    input_zero_point: Tensor
    symmetric: bool

    def start(
        self,
        layer: nn.Conv2d | nn.Linear,
        input_scale: float,
        zero_point: int,
        *,
        per_channel: bool,
        symmetric: bool,
        learn_scales: bool,
    ) -> None:
        """Take the layer's own parameters, and scales that make the int8 twin that of `quantize`."""
        device = layer.weight.device
        self.weight = layer.weight
        self.bias = layer.bias
        _, scale = quantize_weight(layer.weight, per_channel=per_channel)
        self.weight_scale = nn.Parameter(scale if per_channel else scale[:1].clone(), learn_scales)
        self.input_scale = nn.Parameter(
            torch.tensor(input_scale, dtype=torch.float32, device=device), learn_scales
        )
        self.register_buffer(
            "input_zero_point", torch.tensor(zero_point, dtype=torch.int32, device=device)
        )
        self.symmetric = symmetric

    @torch.no_grad()
    def to_int8(self) -> QuantConv2d | QuantLinear:
        """The layer that will be deployed."""
        kind = QuantConv2d if isinstance(self, nn.Conv2d) else QuantLinear
        return kind.from_float(
            cast(Any, self),
            activation="static",
            weight=quantize_weight(self.weight, scale=self.weight_scale.clamp(min=_SMALLEST)),
            input_scale=self.input_scale.clamp(min=_SMALLEST),
            input_zero_point=self.input_zero_point,
            symmetric=self.symmetric,
        )

    def forward(self, x: Tensor) -> Tensor:
        exact: Tensor = self.to_int8()(x.detach())
        if not torch.is_grad_enabled():
            return exact
        zero = self.input_zero_point.to(x.dtype)
        shape = (-1, *[1] * (self.weight.dim() - 1))
        x = fake_quantize(x, self.input_scale.clamp(min=_SMALLEST), -128 - zero, 127 - zero)
        scale = self.weight_scale.clamp(min=_SMALLEST).view(shape)
        soft = self.float_forward(x, fake_quantize(self.weight, scale, -127, 127))
        return exact + (soft - soft.detach())  # the bits of exact, the gradient of soft

    def float_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the float layer answers with another weight; its gradients are those of the training."""
        raise NotImplementedError

    @classmethod
    def empty(cls, layer: Any) -> Any:
        """A twin of the same shape, without memory of its own until `start`."""
        raise NotImplementedError


class FakeQuantConv2d(FakeQuantMixin, nn.Conv2d):
    """`nn.Conv2d` that computes as `QuantConv2d` and trains; static activations."""

    @classmethod
    def empty(cls, layer: nn.Conv2d) -> FakeQuantConv2d:
        return cls(
            layer.in_channels,
            layer.out_channels,
            cast(tuple[int, int], layer.kernel_size),
            cast(tuple[int, int], layer.stride),
            cast(tuple[int, int], layer.padding),
            cast(tuple[int, int], layer.dilation),
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )

    def float_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class FakeQuantLinear(FakeQuantMixin, nn.Linear):
    """`nn.Linear` that computes as `QuantLinear` and trains; static activations."""

    @classmethod
    def empty(cls, layer: nn.Linear) -> FakeQuantLinear:
        return cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")

    def float_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)
