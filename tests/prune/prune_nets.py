"""Small models with every way in which channels hang together, and two classes of images to train them on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qkernels.data import ImageData, Split


class Branches(nn.Module):
    """Concatenation, a residual add over it, a depthwise layer, a flatten: three groups that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 16, 1)
        self.prelu = nn.PReLU(16)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        y = self.prelu(y + self.mix(self.deep(y)))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(y, 2), 1))


def lively(model: nn.Module) -> nn.Module:
    """Batch norms whose channels differ, so that a wrong index shows; eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def toy_data(train: int = 64) -> ImageData:
    """Bright left half or bright right half, under noise; [3, 8, 8]."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Split:
        labels = torch.arange(count) % 2
        images = torch.randint(100, (count, 3, 8, 8), generator=generator)
        images[labels == 0, :, :, :4] += 60
        images[labels == 1, :, :, 4:] += 60
        return Split(images.to(torch.uint8), labels)

    third = (0.3,) * 3
    return ImageData("toy", ("left", "right"), part(train), part(16), part(32), third, third)


def toy_net(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 64, 2),
    )


def small_deit() -> tuple[nn.Module, Tensor]:
    """timm's DeiT, one block of three heads, and two images; skips the test without timm."""
    timm = pytest.importorskip("timm")
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", num_classes=5, **small).eval()
    return model, torch.randn(2, 3, 16, 16)
