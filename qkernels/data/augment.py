"""Random crops and flips on a whole uint8 batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Augment:
    """Pad every side with `padding` black pixels, crop back at a random place, flip half.

    The augmentation of He et al. 2016 section 4.2 with padding=4, flip=True; padding=1, flip=False
    shifts by at most one pixel, which suits digits.
    """

    padding: int = 4
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random choices for `count` images, int64 [count, 3]: row, column, flipped (0 or 1)."""
        high = 2 * self.padding + 1
        corner = torch.randint(high, (count, 2), generator=generator)
        flipped = torch.randint(2, (count, 1), generator=generator)
        return torch.cat([corner, flipped if self.flip else torch.zeros_like(flipped)], dim=1)

    def apply(self, images: Tensor, choice: Tensor) -> Tensor:
        """Images uint8 [B, C, H, W] changed as `choice` [B, 3] says; same shape and dtype."""
        count, _, height, width = images.shape
        row, column, flipped = choice.unbind(1)
        padded = pad(images, (self.padding,) * 4)
        # Every window of the padded image is a view; picking one per image is the only copy.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        cropped = windows[torch.arange(count), :, row, column]
        return torch.where(flipped.bool()[:, None, None, None], cropped.flip(3), cropped)
