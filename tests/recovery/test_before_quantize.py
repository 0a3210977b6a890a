"""SmoothQuant and weight clipping, on float models."""

import pytest
import torch
from scaled_nets import sqnr
from torch import Tensor, nn

import qkernels
from qkernels.recovery import clip_outliers, smooth


class Block(nn.Module):
    """A transformer-like MLP: one LayerNorm read by two Linears, one of them read by a third."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gate = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(torch.relu(self.up(y))) + self.gate(y).mean()


def block() -> nn.Module:
    torch.manual_seed(0)
    model = Block().eval()
    model.norm.weight.data[::5] *= 60  # the activation outliers of large language models
    return model


def test_smoothing_keeps_the_function_and_wins_accuracy_under_outliers() -> None:
    model, x = block(), torch.randn(256, 16)
    smoothed = smooth(model, x)
    done = qkernels.report(smoothed).groups
    assert done == {"norm": ["up", "gate"], "up": ["down"]}
    torch.testing.assert_close(smoothed(x), model(x), rtol=1e-4, atol=1e-4)

    def error(net: nn.Module) -> float:
        return sqnr(model(x), qkernels.quantize(net, calibration=x)(x))

    assert error(smoothed) > error(model) + 3


def test_alpha_moves_the_whole_spread() -> None:
    model, x = block(), torch.randn(256, 16)
    all_moved = smooth(model, x, alpha=1.0)
    peaks = all_moved.norm(x).abs().amax(0)
    torch.testing.assert_close(peaks, torch.ones(16))
    with pytest.raises(ValueError, match=r"alpha=1.5 must be in \[0, 1\]"):
        smooth(model, x, alpha=1.5)


def test_a_norm_that_something_else_reads_is_not_touched() -> None:
    class Leaky(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return y + self.down(self.up(y)) + self.gate(y).mean()

    torch.manual_seed(0)
    model, x = Leaky().eval(), torch.randn(8, 16)
    smoothed = smooth(model, x)
    done = qkernels.report(smoothed).groups
    assert done == {"up": ["down"]}
    torch.testing.assert_close(smoothed(x), model(x))


def test_clipping_one_outlier_a_tensor_lowers_the_weight_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256)).eval()
    model[0].weight.data[0, 0] = 3.0  # 48 times the others' largest: int8 keeps 5 steps for them
    clipped = clip_outliers(model, per_channel=False)
    done = qkernels.report(clipped).shares
    assert 0 < done["0"] < 0.001

    def error(net: nn.Module) -> float:
        q, scale = qkernels.nn.quantize_weight(net[0].weight, per_channel=False)
        return float((q * scale[:, None] - model[0].weight.detach()).square().sum())

    assert error(clipped) <= error(model)
    x = torch.randn(4, 256)
    torch.testing.assert_close(clipped(x)[:, 1:], model(x)[:, 1:])
