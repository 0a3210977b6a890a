"""ReLU6 of channels that were rescaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClampedReLU(nn.Module):
    """`min(max(x, 0), ceiling)` with a ceiling [C] a channel; channels are dimension 1 of x."""

    ceiling: Tensor

    def __init__(self, ceiling: Tensor) -> None:
        super().__init__()
        self.register_buffer("ceiling", ceiling)

    def forward(self, x: Tensor) -> Tensor:
        ceiling = self.ceiling.view(-1, *[1] * (x.dim() - 2))
        return torch.minimum(torch.relu(x), ceiling.to(x.dtype))

    def extra_repr(self) -> str:
        return f"channels={self.ceiling.numel()}"
