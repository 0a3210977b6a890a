"""Networks of digits with batch norms."""

import torch
from torch import nn

from qkernels.models import CifarResNet


def resnet(width: int = 8, seed: int = 0) -> nn.Module:
    """Digits [N, 1, 8, 8] -> logits [N, 10]."""
    torch.manual_seed(seed)
    return CifarResNet(8, in_channels=1, width=width)
