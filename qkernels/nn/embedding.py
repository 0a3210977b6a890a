"""Drop-in int8 ``nn.Embedding`` and ``nn.EmbeddingBag``."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkernels.nn.module import Activation, QuantModule
from qkernels.nn.rows import dequantized_rows

Self = TypeVar("Self", bound="QuantTable")


class QuantTable(QuantModule):
    """What both lookups share: int8 rows [num_embeddings, embedding_dim] with one scale a row.

    The rows lie as the weight of a `QuantLinear` of the same shape does, so that a tied head holds the very same
    ``packed_weight`` and ``weight_scale`` and nothing is stored twice. Rows come out in the float layer's dtype, as
    ``code * scale``. embedding_dim is at most 65535.
    """

    ACTIVATIONS = ("weight_only",)
    FIELDS: ClassVar[tuple[str, ...]] = (
        "num_embeddings", "embedding_dim", "padding_idx", "scale_grad_by_freq", "sparse",
    )  # fmt: skip

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: Any = None,
        dtype: torch.dtype | str | None = None,
        *,
        activation: Activation = "weight_only",
        symmetric: bool = True,
    ) -> None:
        size = (num_embeddings, embedding_dim)
        super().__init__(size, 1, False, activation, symmetric, device, dtype)
        self.num_embeddings, self.embedding_dim = size
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"padding_idx={padding_idx} is outside of the {num_embeddings} embeddings"
            )
        self.padding_idx = (
            padding_idx if padding_idx is None or padding_idx >= 0 else padding_idx + num_embeddings
        )
        self.max_norm, self.norm_type = None, 2.0
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse

    @classmethod
    def why_not(cls, layer: Any) -> str | None:
        if layer.max_norm is not None:
            return f"max_norm={layer.max_norm} rescales rows of its weight in each forward"
        return super().why_not(layer)

    @classmethod
    def from_float(  # type: ignore[override]
        cls: type[Self],
        table: Any,
        *,
        activation: Activation = "weight_only",
        weight: tuple[Tensor, Tensor] | None = None,
        input_scale: Tensor | float | None = None,
        input_zero_point: Tensor | int | None = None,
        symmetric: bool = True,
    ) -> Self:
        """The int8 form of a float layer, which stays as it was; all else as ``QuantLinear.from_float``.

        Raises:
            ValueError: for what `why_not` names; as ``QuantLinear.from_float``.
        """
        why = cls.why_not(table)
        if why is not None:
            raise ValueError(why)
        new = cls(
            **{name: getattr(table, name) for name in cls.FIELDS},
            device=table.weight.device,
            dtype=table.weight.dtype,
            activation=activation,
            symmetric=symmetric,
        )
        made = weight or cls.quantize(table, per_channel=True)
        new._set_tensors(made, None, input_scale, input_zero_point)
        return new

    def rows(self, index: Tensor) -> Tensor:
        """The rows [..., embedding_dim] of ``index`` [...], dequantized.

        Raises:
            IndexError: for an index outside of the table.
        """
        return dequantized_rows(self, index)

    def scheme(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            **{name: getattr(self, name) for name in self.FIELDS},
            "activation": self.activation,
            "symmetric": self.symmetric,
            "dtype": self.dtype_name,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8 weight per row"


class QuantEmbedding(QuantTable, nn.Embedding):
    """``nn.Embedding`` of int8 rows; ``max_norm`` has no int8 form."""

    def forward(self, input: Tensor) -> Tensor:
        return self.rows(input)


class QuantEmbeddingBag(QuantTable, nn.EmbeddingBag):
    """``nn.EmbeddingBag`` of int8 rows, in each mode; sums are made in the float layer's dtype, as torch makes them."""

    FIELDS = (*QuantTable.FIELDS, "mode", "include_last_offset")

    def __init__(
        self, *args: Any, mode: str = "mean", include_last_offset: bool = False, **kwargs: Any
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"mode={mode!r} is unknown; choose one of sum, mean, max")
        super().__init__(*args, **kwargs)
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        rows = self.rows(input.flatten())
        place = torch.arange(rows.shape[0], device=input.device).view(input.shape)
        padding = None
        if (
            self.padding_idx is not None
        ):  # all entries to leave out become one row, before the others
            padding = 0
            rows = torch.cat([rows.new_zeros(1, self.embedding_dim), rows])
            place = torch.where(input == self.padding_idx, 0, place + 1)
        offsets = None if offsets is None else offsets.to(place.dtype)
        return F.embedding_bag(
            place,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
