"""Rows of a packed weight, without unpacking the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from qkernels import ops

if TYPE_CHECKING:
    from qkernels.nn.module import QuantModule


def dequantized_rows(layer: QuantModule, index: Tensor) -> Tensor:
    """The rows [..., K] of an int8 weight [N, K] that ``index`` [...] names, as ``code * scale`` in the layer's dtype.

    Raises:
        IndexError: for an index outside of the weight.
    """
    _, columns = layer.weight_size
    return ops.embedding(
        index, layer.packed_weight, layer.weight_scale, columns, layer.anchor.dtype
    )
