"""Small networks to attack."""

import torch
from torch import nn

from qkernels.models import TutorialCNN


def cnn(width: int = 8, seed: int = 0) -> nn.Module:
    """Digits [N, 1, 8, 8] -> logits [N, 10]."""
    torch.manual_seed(seed)
    return TutorialCNN(10, in_channels=1, image_size=8, width=width)


def small_net(channels: int, classes: int = 4) -> nn.Module:
    """Any image; smooth, so that no gradient entry is exactly 0. With state that an attack must leave alone."""
    torch.manual_seed(channels)
    return nn.Sequential(
        nn.Conv2d(channels, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.Softplus(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, classes),
    )
