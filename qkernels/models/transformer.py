"""A pre-norm transformer encoder, and an image classifier on top of it.

Vaswani et al. 2017 (1706.03762) with the norms of Xiong et al. 2020 (2002.04745); patches as in Dosovitskiy et al.
2021 (2010.11929), with the mean of the tokens in place of a class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Every token of [N, T, width] looks at all tokens, in `heads` subspaces."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        heads = scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value)
        )
        return self.out(heads.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, heads, T, width / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention, then two linear layers with a GELU between; each behind a norm, beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class TransformerEncoder(nn.Module):
    """`depth` layers and a last norm; [N, T, width] -> [N, T, width], any N and T.

    Raises ValueError for a width that the heads do not divide.
    """

    def __init__(self, width: int = 384, depth: int = 6, heads: int = 6) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(x))


class VisionTransformer(nn.Module):
    """Patches of an image as tokens, their mean classified; [N, C, S, S] -> [N, num_classes].

    Raises ValueError for an image size that the patches do not divide.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: int = 384,
        depth: int = 6,
        heads: int = 6,
        patch: int = 4,
    ) -> None:
        super().__init__()
        if image_size < patch or image_size % patch:
            raise ValueError(f"image_size={image_size} must be a multiple of patch={patch}")
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.position = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.encoder = TransformerEncoder(width, depth, heads)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(tokens).mean(1))
