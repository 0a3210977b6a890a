"""Models whose channels have scales that one scale a tensor cannot serve."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkernels.models.mobilenet_v2 import MobileNetV2
from qkernels.quantization.fold import fold_batch_norm_
from qkernels.recovery.chains import find_chains, layer, scale_inputs, scale_outputs, set_weight


def sqnr(expected: Tensor, got: Tensor) -> float:
    """In dB, of what differs between the rows: a constant output is no signal."""
    expected, got = expected - expected.mean(0), got - got.mean(0)
    return (10 * torch.log10(expected.square().sum() / (expected - got).square().sum())).item()


def images(count: int = 16, size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


class MobileNetReLU(MobileNetV2):
    """With ReLU for ReLU6, so that any rescaling keeps the function."""

    def __init__(self, **settings: float) -> None:
        super().__init__(num_classes=10, **settings)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU6):
                    setattr(module, name, nn.ReLU())


def mobilenet(relu6: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = (
        MobileNetV2(num_classes=10, width_mult=0.25) if relu6 else MobileNetReLU(width_mult=0.25)
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # fan-out leaves depthwise signals below the norms' eps
            nn.init.kaiming_normal_(module.weight)
    model.train()
    for _ in range(20):
        model(images(32))  # batch statistics
    return model.eval()


@torch.no_grad()
def badly_scaled(model: nn.Module, spread: float = 4.0) -> nn.Module:
    """The same function, folded, with the channels of every chain spread over e^(-spread) .. e^spread."""
    generator = torch.Generator().manual_seed(3)
    fold_batch_norm_(model)
    for chain in find_chains(model):
        first, second = layer(model, chain.first), layer(model, chain.second)
        factor = ((2 * torch.rand(first.weight.shape[0], generator=generator) - 1) * spread).exp()
        scale_outputs(first, factor)
        set_weight(second, scale_inputs(second, 1 / factor))
    return model
