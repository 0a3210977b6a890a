"""Where a channel is: which layers `find_chains` may pair, and that `equalize` and `smooth` keep the function."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qkernels.recovery import equalize, find_chains, smooth

TOKENS, IMAGES = (4, 6, 8), (4, 3, 10, 10)


class Between(nn.Module):
    """`second(step(first(x)))`"""

    def __init__(
        self, first: nn.Module, step: Callable[[Tensor], Tensor], second: nn.Module
    ) -> None:
        super().__init__()
        self.first, self.step, self.second = first, step, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.step(torch.relu(self.first(x))))


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 16, 3)  # [N, 16, 8, 8] of IMAGES


PAIRS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], nn.Module, tuple[int, ...], bool]] = {
    "linear, tokens": (nn.Linear(8, 4), nn.LeakyReLU(), nn.Linear(4, 5), TOKENS, True),
    "linear, flattened tokens": (nn.Linear(8, 4), nn.Flatten(), nn.Linear(24, 5), TOKENS, False),
    "linear, ReLU6": (nn.Linear(8, 4), nn.ReLU6(), nn.Linear(4, 5), TOKENS, False),
    "linear, ReLU6, as many tokens as channels": (
        nn.Linear(8, 6), nn.ReLU6(), nn.Linear(6, 5), TOKENS, False,
    ),
    "linear, pooled": (nn.Linear(8, 4), nn.MaxPool2d(2), nn.Linear(2, 5), TOKENS, False),
    "linear, conv": (nn.Linear(10, 8), nn.Identity(), nn.Conv2d(3, 5, 3), IMAGES, False),
    "conv, flatten": (conv(), nn.Flatten(), nn.Linear(16 * 64, 5), IMAGES, True),
    "conv, x.flatten(1)": (conv(), lambda x: x.flatten(1), nn.Linear(16 * 64, 5), IMAGES, True),
    "conv, flattened pixels": (conv(), nn.Flatten(2), nn.Linear(64, 5), IMAGES, False),
    "conv, flattened pixels by keyword": (
        conv(), lambda x: torch.flatten(x, start_dim=2), nn.Linear(64, 5), IMAGES, False,
    ),
    "conv, flattened rows": (conv(), lambda x: x.flatten(1, 2), nn.Linear(8, 5), IMAGES, False),
    "conv, last axis": (conv(), nn.Identity(), nn.Linear(8, 5), IMAGES, False),
    "conv, mean": (conv(), lambda x: x.mean((2, 3)), nn.Linear(16, 5), IMAGES, True),
    "conv, mean that keeps its axes": (
        conv(), lambda x: x.mean((2, 3), keepdim=True), nn.Linear(1, 5), IMAGES, False,
    ),
    "conv, mean that keeps its axes, conv": (
        conv(), lambda x: x.mean((2, 3), True), nn.Conv2d(16, 5, 1), IMAGES, True,
    ),
    "conv, ReLU6, flatten": (
        conv(), nn.Sequential(nn.ReLU6(), nn.Flatten()), nn.Linear(16 * 64, 5), IMAGES, True,
    ),
    "conv, flatten, ReLU6": (
        conv(), nn.Sequential(nn.Flatten(), nn.ReLU6()), nn.Linear(16 * 64, 5), IMAGES, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_a_scale_moves_only_where_both_layers_mean_the_same_channel(pair: str) -> None:
    first, step, second, shape, meet = PAIRS[pair]
    model = Between(first, step, second).eval()
    torch.manual_seed(0)
    first.weight.data *= torch.logspace(-2, 1, len(first.weight)).view(
        -1, *[1] * (first.weight.dim() - 1)
    )
    x = 10 * torch.randn(shape)  # so that a ceiling of 6 cuts
    assert [(c.first, c.second) for c in find_chains(model, x)] == [("first", "second")] * meet
    expected = model(x)
    for changed in (equalize(model, x), smooth(model, x)):
        torch.testing.assert_close(changed(x), expected, rtol=1e-4, atol=1e-4)
