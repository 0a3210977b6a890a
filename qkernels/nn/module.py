"""What every int8 layer shares: its tensors, its scheme, how it is saved, moved and rebuilt."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.nn.weights import check_scale, check_zero_point

Activation = Literal["static", "dynamic", "weight_only"]


class QuantModule(nn.Module):
    """An inference-only layer with an int8 weight [N, ...] and one scale an output channel.

    The weight is held once, in the kernels' packed layout (``packed_weight``); ``weight`` unpacks it. A state dict
    holds canonical tensors only: ``weight`` int8, ``weight_scale`` float32 [N], ``bias`` float32 [N], and for static
    activations ``input_scale`` float32 [] and ``input_zero_point`` int32 []. Scales and bias stay float32 under
    ``.half()`` and ``.to(dtype)``: the output takes the input's dtype.
    """

    packed_weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(
        self,
        size: tuple[int, ...],
        groups: int,
        bias: bool,
        activation: Activation,
        symmetric: bool,
        device: Any,
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(
                f"activation={activation!r} is unknown; choose one of {', '.join(get_args(Activation))}"
            )
        self.weight_size, self.weight_groups = size, groups
        self.activation, self.symmetric = activation, symmetric
        n, static = size[0], activation == "static"
        packed = ops.pack_weight(torch.zeros(size, dtype=torch.int8, device=device), groups)
        self.register_buffer("packed_weight", packed, persistent=False)
        self.register_buffer("weight_scale", torch.ones(n, device=device))
        self.register_buffer("bias", torch.zeros(n, device=device) if bias else None)
        self.register_buffer("input_scale", torch.ones((), device=device) if static else None)
        zero = torch.zeros((), dtype=torch.int32, device=device) if static else None
        self.register_buffer("input_zero_point", zero)
        self.training = False

    # ---- tensors

    def __setattr__(self, name: str, value: Any) -> None:
        # torch would move the name to the parameters; forward reads buffers, and nothing here is trained
        if isinstance(value, nn.Parameter) and name in self._buffers:
            value = value.detach()
        super().__setattr__(name, value)

    @property
    def weight(self) -> Tensor:
        """The int8 weight in its canonical shape: a new tensor at each access."""
        return ops.unpack_weight(self.packed_weight, list(self.weight_size), self.weight_groups)

    def _set_tensors(
        self,
        weight: tuple[Tensor, Tensor],
        bias: Tensor | None,
        input_scale: Tensor | float | None,
        input_zero_point: Tensor | int | None,
    ) -> None:
        quantized, scale = weight
        if quantized.dtype != torch.int8 or tuple(quantized.shape) != tuple(self.weight_size):
            raise ValueError(
                f"the int8 weight is {quantized.dtype} {list(quantized.shape)}; int8 {list(self.weight_size)} is needed"
            )
        self.packed_weight = ops.pack_weight(quantized, self.weight_groups)
        self.weight_scale = (
            check_scale("weight scale", scale).expand(self.weight_size[0]).contiguous()
        )
        if bias is not None:
            self.bias = bias.detach().float().clone()
        if self.activation != "static":
            if input_scale is not None or input_zero_point is not None:
                raise ValueError(
                    f"input_scale and input_zero_point are for static activations, not {self.activation}"
                )
            return
        if input_scale is None or input_zero_point is None:
            raise ValueError(
                "static activations need input_scale and input_zero_point, from calibration"
            )
        device = quantized.device
        self.input_scale = check_scale("input scale", input_scale).detach().reshape(()).to(device)
        self.input_zero_point = check_zero_point(input_zero_point).detach().reshape(()).to(device)

    # ---- saving, loading, moving

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        rest = {k: v for k, v in state_dict.items() if k != key}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        weight = state_dict.get(key)
        if weight is None:
            if strict:
                missing_keys.append(key)
        elif weight.dtype != torch.int8 or tuple(weight.shape) != tuple(self.weight_size):
            error_msgs.append(
                f"{key} is {weight.dtype} {list(weight.shape)}; int8 {list(self.weight_size)} is needed "
                "(float weights go through from_float or quantize)"
            )
        else:
            to = weight.device if self.packed_weight.is_meta else self.packed_weight.device
            self.packed_weight = ops.pack_weight(weight.to(to), self.weight_groups)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantModule:
        def keep_dtype(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(keep_dtype, recurse)
        return self

    def train(self, mode: bool = True) -> QuantModule:
        """Has no effect: the layer is for inference in either mode."""
        return self

    # ---- rebuilding

    def scheme(self) -> dict[str, Any]:
        """What ``from_scheme`` needs to build this layer without its tensors; JSON-able."""
        raise NotImplementedError

    @classmethod
    def from_scheme(cls, scheme: dict[str, Any]) -> QuantModule:
        """An empty layer of this scheme, ready for ``load_state_dict``; built under ``torch.device("meta")`` too."""
        return cls(**{k: v for k, v in scheme.items() if k != "kind"})

    def _scheme_repr(self) -> str:
        if self.activation == "weight_only":
            return "int8 weight per channel, float activations"
        kind = "symmetric" if self.symmetric else "asymmetric"
        if self.activation == "dynamic":
            return f"int8 weight per channel, dynamic {kind} int8 activations"
        if self.input_scale is None or self.input_scale.is_meta:
            return "int8 weight per channel, static int8 activations"
        scale, zero = float(self.input_scale), int(self.input_zero_point)  # type: ignore[arg-type]
        return f"int8 weight per channel, static int8 activations (scale={scale:.4g}, zero_point={zero})"
