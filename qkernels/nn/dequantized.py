"""The weight of an int8 layer as the float layer's looks: asked for its dtype far more often than for its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from qkernels import ops
from qkernels.nn.rows import dequantized_rows

if TYPE_CHECKING:
    from qkernels.nn.module import QuantModule

# What a tensor says of itself without its values.
ASKS = {
    *(
        getattr(Tensor, name).__get__
        for name in (
            "shape", "dtype", "device", "layout", "requires_grad", "is_leaf", "ndim", "itemsize", "nbytes", "grad",
            "grad_fn", "is_cuda", "is_meta", "is_sparse", "is_quantized", "is_nested", "is_cpu", "is_mps", "is_xpu",
        )
    ),
    *(
        getattr(Tensor, name)
        for name in (
            "size", "dim", "numel", "nelement", "ndimension", "stride", "is_contiguous", "is_floating_point",
            "is_complex", "element_size", "get_device", "__len__", "storage_offset", "is_inference", "is_signed",
        )
    ),
    torch.is_floating_point, torch.is_complex, torch.is_inference, torch.numel,
}  # fmt: skip
# What makes another tensor of its form, without its values.
_LIKENESSES = {
    *(getattr(Tensor, f"new_{kind}") for kind in ("zeros", "ones", "empty", "full", "tensor", "empty_strided")),
    *(getattr(torch, f"{kind}_like") for kind in ("zeros", "ones", "empty", "full", "rand", "randn", "randint")),
}  # fmt: skip
_KEEPS = {Tensor.detach, Tensor.data.__get__}  # type: ignore[attr-defined]


class DequantizedWeight(Tensor):
    """A read-only tensor of the float layer's shape, dtype and device, whose values are computed when they are used.

    ``weight.dtype``, ``.shape`` and ``.device`` cost no more than those of any tensor. Any function of the values gets
    ``int8_weight * weight_scale`` in the layer's dtype, computed anew each time. ``F.linear(x, weight, bias)`` and
    ``F.embedding(index, weight)`` are the exceptions: the first is the layer's own product, with that bias, so that a
    forward that never calls the layer runs in int8 too, the second dequantizes the rows it is asked for.
    Writing to it raises RuntimeError, since the write would be lost.
    """

    layer: QuantModule

    @staticmethod
    def __new__(cls, layer: QuantModule) -> DequantizedWeight:
        anchor: Any = layer._parameters[
            "anchor"
        ]  # a trace puts a proxy in the place of the attribute
        weight = Tensor._make_wrapper_subclass(
            cls, layer.weight_size, dtype=anchor.dtype, device=anchor.device, requires_grad=False
        )
        weight.layer = layer
        return weight

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in ASKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _KEEPS:
            return args[0]
        if func in _LIKENESSES:
            args, kwargs = pytree.tree_map_only(DequantizedWeight, _form, (args, dict(kwargs)))
            return func(*args, **kwargs)
        if _writes(func, args, kwargs):
            raise RuntimeError(
                f"{func.__name__} writes to the weight of an int8 layer, where it would be lost: change the float "
                "layer and convert it again (from_float), or set the layer's int8_weight and weight_scale"
            )
        for function, by_codes in ((F.linear, _int8_product), (F.embedding, _int8_rows)):
            if func is function and (result := by_codes(*args, **kwargs)) is not None:
                return result
        args, kwargs = pytree.tree_map_only(DequantizedWeight, _values, (args, dict(kwargs)))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = pytree.tree_map_only(DequantizedWeight, _values, (args, dict(kwargs or {})))
        return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return _values(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _values(self).__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({_values(self)!r})"


def _form(weight: DequantizedWeight) -> Tensor:
    """A tensor of its dtype, device and shape that takes no memory."""
    return torch.empty((), dtype=weight.dtype, device=weight.device).expand(weight.shape)


def _values(weight: DequantizedWeight) -> Tensor:
    return weight.layer.dequantize_weight()


def _writes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the function writes to a weight of ours: torch's names say so."""
    name = getattr(func, "__name__", "")
    in_place = name in ("__setitem__", "__set__") or (
        name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__")
    ) or (name.endswith("_") and not name.endswith("__"))  # fmt: skip
    first = next(iter((*args, *kwargs.values())), None)
    return isinstance(first if in_place else kwargs.get("out"), DequantizedWeight)


def _int8_product(input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    """``F.linear`` as the layer of the weight multiplies; None where it has no product of this kind."""
    if not isinstance(weight, DequantizedWeight) or isinstance(input, DequantizedWeight):
        return None
    layer = weight.layer
    plain = len(layer.weight_size) == 2 and layer.packed_weight.device == input.device
    if not plain or input.dtype not in ops.FLOAT_DTYPES:
        return None
    bias = None if bias is None else bias.detach().float()
    return layer.multiply(input, bias)


def _int8_rows(
    input: Any, weight: Any, padding_idx: Any = None, *changes: Any, **more: Any
) -> Tensor | None:
    """``F.embedding`` of the rows that are asked for alone; None where it is to change the weight."""
    unchanged = not any(changes) and not any(
        value for key, value in more.items() if key != "norm_type"
    )
    if (
        not unchanged
        or not isinstance(weight, DequantizedWeight)
        or len(weight.layer.weight_size) != 2
    ):
        return None
    return dequantized_rows(weight.layer, input)
