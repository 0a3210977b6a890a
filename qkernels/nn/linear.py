"""A drop-in int8 ``nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.nn.module import Activation, QuantModule, require_float
from qkernels.nn.weights import quantize_weight

_linear, _linear_weight_only = torch.ops.qkernels.linear, torch.ops.qkernels.linear_weight_only


class QuantLinear(QuantModule, nn.Linear):
    """``y = x @ weight.T + bias`` with an int8 weight [out_features, in_features].

    ``x`` [..., in_features] is float32, float16 or bfloat16, any strides; the output has its dtype. ``activation``:
    ``static`` (one calibrated scale), ``dynamic`` (each row's own range; ``symmetric`` or not) or ``weight_only``
    (``x`` stays float). in_features is at most 65535.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | str | None = None,
        *,
        activation: Activation = "dynamic",
        symmetric: bool = True,
    ) -> None:
        size = (out_features, in_features)
        super().__init__(size, 1, bias, activation, symmetric, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def from_float(  # type: ignore[override]
        cls,
        linear: nn.Linear,
        *,
        activation: Activation = "dynamic",
        weight: tuple[Tensor, Tensor] | None = None,
        input_scale: Tensor | float | None = None,
        input_zero_point: Tensor | int | None = None,
        symmetric: bool = True,
    ) -> QuantLinear:
        """The int8 form of a float layer, which is left as it was.

        ``weight``: int8 values and scales, by default ``quantize_weight(linear.weight)``. ``input_scale`` and
        ``input_zero_point``: for static activations, from calibration.

        Raises:
            ValueError: a scale, zero point or shape that does not fit, or NaN in the weight.
        """
        new = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            linear.weight.device,
            linear.weight.dtype,
            activation=activation,
            symmetric=symmetric,
        )
        new._set_tensors(
            weight or quantize_weight(linear.weight), linear.bias, input_scale, input_zero_point
        )
        return new

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_floating_point():
            require_float(self, input)
        return self.multiply(input, self._buffers["bias"])

    def multiply(self, input: Tensor, bias: Tensor | None) -> Tensor:
        b = self._buffers  # attributes of a module cost more than the product of a small layer
        weight = (b["packed_weight"], b["weight_scale"], bias)
        try:
            if self.activation == "weight_only":
                y = _linear_weight_only(input, *weight)
            else:
                y = _linear(input, *weight, b["input_scale"], b["input_zero_point"], self.symmetric)
        except RuntimeError as error:
            if input.shape[-1:] == (self.in_features,):
                raise
            raise RuntimeError(
                f"QuantLinear takes [..., {self.in_features}]; its input is {list(input.shape)}"
            ) from error
        return ops.guard(y, input) if input.requires_grad else y

    def scheme(self) -> dict[str, Any]:
        return {
            "kind": "QuantLinear",
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "activation": self.activation,
            "symmetric": self.symmetric,
            "dtype": self.dtype_name,
        }

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self._scheme_repr()}"
