"""Models that cut windows: torch.export is not asked for free sizes, which takes it minutes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.graph import trace
from qkernels.graph.windows import cuts_windows, splits
from qkernels.modules.calling import example_call


@pytest.mark.parametrize(
    ("source", "view", "count"),
    [
        ((2, 14, 14, 96), (2, 2, 7, 2, 7, 96), 2),  # windows
        ((1, 96, 14, 14), (1, 96, 2, 7, 2, 7), 2),
        ((2, 2, 7, 2, 7, 96), (2, 14, 14, 96), 0),  # and back
        ((1, 50, 384), (1, 50, 6, 64), 1),  # heads
        ((2, 8, 5, 5), (2, 2, 4, 5, 5), 1),  # groups
        ((2, 8, 6, 6), (2, 48, 6), 0),
        ((2, 6, 4), (2, 4, 6), 0),
        ((2, 1, 4), (2, 4), 0),
        ((0, 4, 4), (0, 2, 2, 2, 2), 2),
    ],
)
def test_axes_that_a_view_splits_are_counted(source: tuple, view: tuple, count: int) -> None:
    assert splits(source, view) == count


class Windows(nn.Module):
    """A layer over windows of 2x2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        windows = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).flatten(1, 2)
        y = self.layer(windows.flatten(2, 3))
        return y.reshape(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)


def test_a_model_of_windows_is_exported_with_a_free_batch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    exported = trace.exported
    monkeypatch.setattr(
        trace,
        "exported",
        lambda m, c, all_sizes: asked.append(all_sizes) or exported(m, c, all_sizes),
    )
    x = torch.randn(2, 6, 4, 8)
    model = qk.quantize(Windows().eval(), "static", [x])
    assert cuts_windows(model, example_call(x))
    compiled = qk.compile(model, x, exact=True)
    assert asked and not any(asked)
    larger = torch.cat([x, x + 1])
    with torch.inference_mode():
        assert torch.equal(compiled(larger), model(larger))
    with pytest.raises(ValueError, match="made for a size of 6"):
        compiled(torch.randn(2, 8, 4, 8))


class Empty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:0].view(8, 0).view(0, 8)])


def test_views_of_nothing_are_no_windows() -> None:
    assert not cuts_windows(Empty(), example_call(torch.randn(2, 8)))


def test_a_model_without_windows_keeps_its_free_sizes() -> None:
    model = qk.quantize(nn.Sequential(nn.Linear(8, 8)).eval(), "static", [torch.randn(2, 3, 8)])
    assert not cuts_windows(model, example_call(torch.randn(2, 3, 8)))
    compiled = qk.compile(model, torch.randn(2, 3, 8))
    assert compiled(torch.randn(1, 7, 8)).shape == (1, 7, 8)
