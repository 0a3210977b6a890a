"""Small float models with the habits that conversions stumble over."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """conv-bn twice with a residual, then linear-bn-linear; traceable, no Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 16, bias=False)
        self.bn3 = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.head(torch.relu(self.bn3(self.hidden(x.mean((2, 3))))))


class Untraceable(nn.Module):
    """A branch on the data in front of `body`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(-x if x.sum() > 1e9 else x)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with batch norm statistics that a fold cannot get right by accident; eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.running_mean is not None:
                module.running_mean = uniform(module.running_mean, -0.5, 0.5)
                module.running_var = uniform(module.running_var, 0.3, 2.0)
            if module.affine:
                module.weight.data = uniform(module.weight, -1.5, 1.5)
                module.bias.data = uniform(module.bias, -0.5, 0.5)
    return model.eval()


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return lively(ConvNet())


def images(batch: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
