"""What every int8 layer shares: its tensors, its scheme, how it is saved, moved and rebuilt."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.modules.standing_in import StandIn
from qkernels.nn.dequantized import DequantizedWeight
from qkernels.nn.weights import check_scale, check_zero_point, quantize_weight
from qkernels.reference import MAX_K

Activation = Literal["static", "dynamic", "weight_only"]


class QuantModule(StandIn, nn.Module):
    """An inference-only layer with an int8 weight [N, ...] and one scale an output channel.

    The weight is held once, in the kernels' packed layout (``packed_weight``); ``int8_weight`` unpacks its codes. A
    state dict holds canonical tensors only: ``int8_weight``, ``weight_scale`` float32 [N], ``bias`` float32 [N], and
    for static activations ``input_scale`` float32 [] and ``input_zero_point`` int32 []. No float layer has a tensor
    of the name ``int8_weight``, so that codes never arrive in a float layer as if they were its weight.

    To everything around it the layer looks like the float layer it replaces. ``weight`` and ``bias`` have that layer's
    shape, dtype and device (see `DequantizedWeight`), ``parameters()`` yields an ``anchor`` without values, so that
    ``next(model.parameters()).dtype`` answers, and each int8 class is a subclass of its float class: forwards ask
    ``isinstance(layer, nn.Linear)`` to tell a head from an ``nn.Identity``, and tools find layers by it. What reads
    such a layer's weight gets right values; what writes to it is refused. In the place of a user's subclass it is an
    instance of that too (`qkernels.modules.standing_in`). Scales and bias stay float32 under
    ``.half()`` and ``.to(dtype)``: the output takes the input's dtype.
    """

    ACTIVATIONS: ClassVar[tuple[str, ...]] = get_args(Activation)

    anchor: nn.Parameter
    packed_weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(
        self,
        size: tuple[int, ...],
        groups: int,
        bias: bool,
        activation: str,
        symmetric: bool,
        device: Any,
        dtype: torch.dtype | str | None,
    ) -> None:
        nn.Module.__init__(self)  # the float class would allocate a weight of its own
        if activation not in self.ACTIVATIONS:
            raise ValueError(
                f"activation={activation!r} is unknown to {type(self).__name__}; choose one of "
                f"{', '.join(self.ACTIVATIONS)}"
            )
        self.weight_size, self.weight_groups = size, groups
        self.activation, self.symmetric = activation, symmetric
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.anchor = nn.Parameter(torch.empty(0, device=device, dtype=dtype), requires_grad=False)
        n = self.channels()
        float32: Any = {"device": device, "dtype": torch.float32}
        self.register_buffer("packed_weight", self._pack(_zeros(size, device)), persistent=False)
        self.register_buffer("weight_scale", torch.ones(n, **float32))
        self._buffers["bias"] = torch.zeros(n, **float32) if bias else None  # read by a property
        static = activation == "static"
        self.register_buffer("input_scale", torch.ones((), **float32) if static else None)
        zero = torch.zeros((), dtype=torch.int32, device=device) if static else None
        self.register_buffer("input_zero_point", zero)
        self.training = False

    # ---- tensors

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(
            getattr(type(self), name, None), property
        ):  # before torch files it among its parameters
            object.__setattr__(self, name, value)
            return
        # torch would move the name to the parameters; forward reads buffers, and nothing here is trained
        if isinstance(value, nn.Parameter) and name in self._buffers:
            value = value.detach()
        super().__setattr__(name, value)

    @property
    def weight(self) -> Any:
        """The float layer's weight: its shape, dtype and device at once, its values (dequantized) when used.

        Assigning the weight of another int8 layer of the same shape ties both, as it does with float layers.
        """
        if torch.compiler.is_dynamo_compiling():  # which cannot follow a tensor made of nothing
            return self.dequantize_weight()
        return DequantizedWeight(self)

    @weight.setter
    def weight(self, value: Any) -> None:
        other = value.layer if isinstance(value, DequantizedWeight) else None
        if other is None or not self._can_share(other):
            raise TypeError(
                f"the weight of {type(self).__name__} cannot be set to a {type(value).__name__}: convert the float "
                "layer that holds it (from_float), or assign the weight of an int8 layer of the same shape to tie both"
            )
        self.packed_weight, self.weight_scale = other.packed_weight, other.weight_scale

    def tie(self, other: QuantModule) -> bool:
        """Let ``other`` hold this layer's int8 weight, if it has the same codes and scales; whether it does."""
        equal = (
            self._can_share(other)
            and torch.equal(self.packed_weight, other.packed_weight)
            and torch.equal(self.weight_scale, other.weight_scale)
        )
        if equal:
            other.packed_weight, other.weight_scale = self.packed_weight, self.weight_scale
        return equal

    def _can_share(self, other: QuantModule) -> bool:
        same = other.weight_size == self.weight_size
        return same and other.packed_weight.shape == self.packed_weight.shape

    @property
    def bias(self) -> Any:
        """The bias [N] in the float layer's dtype, or None. It is held in float32, which the layer adds."""
        bias, dtype = self._buffers["bias"], self.anchor.dtype
        return bias if bias is None or bias.dtype == dtype else bias.to(dtype)

    @bias.setter
    def bias(self, value: Tensor | None) -> None:
        self._buffers["bias"] = None if value is None else value.detach().float()

    @property
    def int8_weight(self) -> Tensor:
        """The int8 codes in the float weight's shape: a new tensor at each access; assign to replace them."""
        return ops.unpack_weight(self.packed_weight, list(self.weight_size), self.weight_groups)

    @int8_weight.setter
    def int8_weight(self, codes: Tensor) -> None:
        self.packed_weight = self._pack(codes)

    @property
    def dtype_name(self) -> str:
        """The dtype that `weight` and `bias` show, as a scheme writes it."""
        return str(self.anchor.dtype).removeprefix("torch.")

    def channels(self) -> int:
        """N, the number of output channels: one weight scale and one bias each."""
        return self.weight_size[0]

    def dequantize_weight(self) -> Tensor:
        """``int8_weight * weight_scale`` in the float layer's shape and dtype."""
        codes = self.int8_weight
        scale = self.weight_scale.view(-1, *[1] * (codes.dim() - 1))
        return (codes * scale).to(self._parameters["anchor"].dtype)  # type: ignore[union-attr]

    def multiply(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """``F.linear(input, self.weight, bias)`` for a weight of two dimensions; the bias is float32."""
        return ops.linear_weight_only(input, self.packed_weight, self.weight_scale, bias)

    def _pack(self, codes: Tensor) -> Tensor:
        """The kernels' layout of int8 codes in the float weight's shape; the inverse of `int8_weight`."""
        return ops.pack_weight(codes, self.weight_groups)

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
        self.packed_weight = self._pack(quantized)
        self.weight_scale = check_scale("weight scale", scale).expand(self.channels()).contiguous()
        if bias is not None:
            self._buffers["bias"] = bias.detach().float().clone()
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
        destination[prefix + "int8_weight"] = self.int8_weight
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "anchor"]

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
        key, old_key, anchor = (prefix + name for name in ("int8_weight", "weight", "anchor"))
        weight = state_dict.get(key, state_dict.get(old_key))  # files of format 1 call it weight
        rest = {k: v for k, v in state_dict.items() if k not in (key, old_key)}
        super()._load_from_state_dict(
            rest | {anchor: self.anchor}, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )  # fmt: skip
        if weight is None:
            if strict:
                missing_keys.append(key)
        elif weight.dtype != torch.int8 or tuple(weight.shape) != tuple(self.weight_size):
            error_msgs.append(
                f"{key if key in state_dict else old_key} is {weight.dtype} {list(weight.shape)}; int8 "
                f"{list(self.weight_size)} is needed (float weights go through from_float or quantize)"
            )
        else:
            to = weight.device if self.packed_weight.is_meta else self.packed_weight.device
            self.packed_weight = self._pack(weight.to(to))
            if self.anchor.is_meta:
                anchored = torch.empty(0, dtype=self.anchor.dtype, device=to)
                self.anchor = nn.Parameter(anchored, requires_grad=False)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantModule:
        def keep_dtype(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype or t is self.anchor else t.to(moved.device)

        super()._apply(keep_dtype, recurse)
        return self

    def reset_parameters(self) -> None:
        """Raises RuntimeError: an int8 weight is not drawn anew."""
        raise RuntimeError(
            f"{type(self).__name__} holds a converted weight that cannot be initialized anew; initialize the float "
            "layer and convert it"
        )

    def train(self, mode: bool = True) -> QuantModule:
        """Has no effect: the layer is for inference in either mode."""
        return self

    # ---- from a float layer

    @classmethod
    def quantize(cls, layer: Any, *, per_channel: bool) -> tuple[Tensor, Tensor]:
        """The int8 codes of a float layer's weight, in its shape, and one float32 scale an output channel."""
        return quantize_weight(layer.weight, per_channel=per_channel)

    @classmethod
    def why_not(cls, layer: Any) -> str | None:
        """Why this float layer has no int8 form of the class, in words that follow its name; None where it has one."""
        products = cls.products(layer)
        if products <= MAX_K:
            return None
        return f"its sums of {products} products are above the limit of {MAX_K}"

    @classmethod
    def products(cls, layer: Any) -> int:
        """How many products a sum of the int8 layer has."""
        return int(layer.weight[0].numel())

    # ---- rebuilding

    def scheme(self) -> dict[str, Any]:
        """What ``from_scheme`` needs to build this layer without its tensors; JSON-able."""
        raise NotImplementedError

    @classmethod
    def from_float(cls, layer: Any, **settings: Any) -> Any:
        """The int8 form of a float layer, which is left as it was; see `QuantLinear.from_float`."""
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


def _zeros(size: tuple[int, ...], device: Any) -> Tensor:
    return torch.zeros(size, dtype=torch.int8, device=device)


def require_float(layer: nn.Module, input: Tensor) -> None:
    """Raise TypeError where a layer is called with codes or other numbers that are no activations."""
    if not input.is_floating_point():
        raise TypeError(
            f"{type(layer).__name__} takes float32, float16 or bfloat16 and quantizes them itself; its input is "
            f"{input.dtype}"
        )
