"""What the convolutions that run as a 2-D one share."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.nn.conv import PaddingMode
from qkernels.nn.module import Activation, QuantModule, require_float

Self = TypeVar("Self", bound="QuantConvolution")
Sizes = tuple[int, ...]


class QuantConvolution(QuantModule):
    """An int8 convolution over ``DIMENSIONS`` axes, with the arguments of its float class by keyword.

    ``x`` is a batch [N, in_channels, ...] or one sample [in_channels, ...], float32, float16 or bfloat16; the output
    has its dtype. ``activation``: ``static`` (one calibrated scale) or ``dynamic`` (each sample's own range, so that a
    batch never changes a result). A sum has at most 65535 products.
    """

    ACTIVATIONS = ("static", "dynamic")
    DIMENSIONS: ClassVar[int]
    FIELDS: ClassVar[tuple[str, ...]] = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    )  # fmt: skip

    in_channels: int
    out_channels: int
    kernel_size: Sizes
    stride: Sizes
    padding: str | Sizes
    output_padding: Sizes
    dilation: Sizes
    groups: int
    padding_mode: PaddingMode

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sizes,
        stride: int | Sizes = 1,
        padding: str | int | Sizes = 0,
        dilation: int | Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | str | None = None,
        *,
        output_padding: int | Sizes = 0,
        activation: Activation = "dynamic",
        symmetric: bool = True,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
            )
        # set first, since the weight is packed by them
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = self._sizes(kernel_size), self._sizes(stride)
        self.dilation, self.output_padding = self._sizes(dilation), self._sizes(output_padding)
        self.padding = padding if isinstance(padding, str) else self._sizes(padding)
        self.padding_mode = padding_mode
        self.transposed = isinstance(self, nn.modules.conv._ConvTransposeNd)
        self._borders = borders(self.padding, self.kernel_size, self.dilation)
        super().__init__(self._weight_size(), groups, bias, activation, symmetric, device, dtype)

    def _sizes(self, value: int | Sizes) -> Sizes:
        """One size an axis."""
        return (value,) * self.DIMENSIONS if isinstance(value, int) else tuple(map(int, value))

    def _weight_size(self) -> Sizes:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @classmethod
    def from_float(  # type: ignore[override]
        cls: type[Self],
        conv: Any,
        *,
        activation: Activation = "dynamic",
        weight: tuple[Tensor, Tensor] | None = None,
        input_scale: Tensor | float | None = None,
        input_zero_point: Tensor | int | None = None,
        symmetric: bool = True,
    ) -> Self:
        """The int8 form of a float layer, which stays as it was; all else as ``QuantLinear.from_float``.

        Raises:
            ValueError: for what `why_not` names; as ``QuantLinear.from_float``.
        """
        why = cls.why_not(conv)
        if why is not None:
            raise ValueError(why)
        new = cls(
            **{name: getattr(conv, name) for name in cls.FIELDS},
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            activation=activation,
            symmetric=symmetric,
        )
        made = weight or cls.quantize(conv, per_channel=True)
        new._set_tensors(made, conv.bias, input_scale, input_zero_point)
        return new

    def _batch(self, input: Tensor) -> Tensor:
        """The checked input with a batch axis.

        Raises:
            RuntimeError: for another number of axes or of channels.
            TypeError: for an input that is not float.
        """
        batch = input.unsqueeze(0) if input.dim() == self.DIMENSIONS + 1 else input
        if batch.dim() != self.DIMENSIONS + 2 or batch.shape[1] != self.in_channels:
            axes = ", ".join(("L", "H, W", "D, H, W")[self.DIMENSIONS - 1 : self.DIMENSIONS])
            raise RuntimeError(
                f"{type(self).__name__} takes [N, {self.in_channels}, {axes}] or [{self.in_channels}, {axes}]; its "
                f"input is {list(input.shape)}"
            )
        if not input.is_floating_point():
            require_float(self, input)
        return batch

    def _unbatch(self, y: Tensor, input: Tensor) -> Tensor:
        """The output without the batch axis that `_batch` added; a backward through it raises one sentence."""
        y = y.squeeze(0) if input.dim() == self.DIMENSIONS + 1 else y
        return ops.guard(y, input) if input.requires_grad else y

    def scheme(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.FIELDS}
        return {
            "kind": type(self).__name__,
            **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
            "bias": self.bias is not None,
            "activation": self.activation,
            "symmetric": self.symmetric,
            "dtype": self.dtype_name,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._scheme_repr()}"


def borders(padding: str | Sizes, kernel: Sizes, dilation: Sizes) -> list[tuple[int, int]]:
    """Padding before and after each axis; ``same`` puts the odd element after, as torch does."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r} is unknown; choose numbers, 'same' or 'valid'")
    return [(p, p) for p in padding]
