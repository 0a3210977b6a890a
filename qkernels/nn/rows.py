"""Rows of a packed weight, without unpacking the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from qkernels.nn.module import QuantModule


def dequantized_rows(layer: QuantModule, index: Tensor) -> Tensor:
    """The rows [..., K] of an int8 weight [N, K] that ``index`` [...] names, as ``code * scale`` in the layer's dtype.

    Raises:
        IndexError: for an index outside of the weight.
    """
    scale = F.embedding(index, layer.weight_scale.unsqueeze(1))  # which checks the index too
    n, k = layer.weight_size
    codes = packed_rows(layer.packed_weight, n, k, index)
    return (codes * scale).to(layer.anchor.dtype)


def packed_rows(packed: Tensor, n: int, k: int, index: Tensor) -> Tensor:
    """int8 rows [..., k] of a packed weight [n, k], without unpacking the rest; the index is not checked.

    The layout is ``[n / 16][k / 4][16][4]`` with k padded to 64, see csrc/core/layout.h: a row is every 16th word.
    """
    panels, words = (n + 15) // 16, (k + 63) // 64 * 16
    values = packed[: panels * words * 64].view(torch.int32).view(panels, words, 16)
    panel = torch.div(index, 16, rounding_mode="floor")
    rows = values[panel, :, index - panel * 16].contiguous()
    return rows.view(torch.int8)[..., :k]
