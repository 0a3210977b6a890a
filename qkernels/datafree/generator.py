"""A generator, which makes images of latent codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkernels.datafree.image_kind import ImageKind


class Generator(nn.Module):
    """Codes float [N, latent] -> normalised images [N, C, H, W], all of them real pixels (0..1 before normalising).

    A linear layer to a quarter of the size, then twice upsampled and convolved, as in DCGAN (Radford et al. 2016,
    1511.06434) with resizing in place of transposed convolutions. Images of any size.
    """

    def __init__(self, kind: ImageKind, latent: int = 64, width: int = 64) -> None:
        super().__init__()
        channels, height, width_px = kind.shape
        self.kind, self.latent = kind, latent
        small = (-(-height // 4), -(-width_px // 4))
        middle = (-(-height // 2), -(-width_px // 2))
        self.start = nn.Sequential(
            nn.Linear(latent, 2 * width * small[0] * small[1]),
            nn.Unflatten(1, (2 * width, *small)),
            nn.BatchNorm2d(2 * width),
        )
        self.grow = nn.Sequential(
            nn.Upsample(middle),
            *_convolution(2 * width, 2 * width),
            nn.Upsample((height, width_px)),
            *_convolution(2 * width, width),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, codes: Tensor) -> Tensor:
        return self.kind.normalise(torch.sigmoid(self.grow(self.start(codes)).float()))


def _convolution(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2)
