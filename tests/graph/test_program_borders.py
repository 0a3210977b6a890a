"""Views between torch's steps and programs: who makes them, so that nothing is copied for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels import models


class Around(nn.Module):
    """A layer between two steps that torch computes, with something in front of it and behind it."""

    def __init__(self, layer: nn.Module, before: Callable, after: Callable) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.after(self.layer(self.before(torch.sin(x)))))


def steps(model: nn.Module, x: Tensor) -> list[str]:
    """The kinds of the steps of the exact form, which gives the model's bits."""
    int8 = qk.quantize(model.eval(), "static", [x])
    compiled = qk.compile(int8, x, exact=True)
    with torch.inference_mode():
        for inputs in (x, torch.cat([x, x.flip(0) + 1])):
            assert torch.equal(compiled(inputs), int8(inputs))
    return [step.kind for step in compiled.profile(x, runs=1).steps]


def test_no_program_copies_heads_for_torchs_attention() -> None:
    kinds = steps(models.TransformerEncoder(64, 2, 4), torch.randn(2, 16, 64))
    assert kinds.count("linear") == 2 * 4
    assert "rearrange" not in kinds


@pytest.mark.parametrize(
    "view",
    [
        lambda y: y.unflatten(2, (4, -1)).transpose(1, 2),
        lambda y: y[..., 3:19].permute(2, 0, 1),
        lambda y: y[:, 2].reshape(-1, 8, 4).unsqueeze(1),
        lambda y: y.flatten(1).unflatten(1, (16, -1))[:, :, None],
    ],
)
def test_views_of_tokens_between_a_program_and_torch_are_torchs(view: Callable) -> None:
    kinds = steps(Around(nn.Linear(24, 32), nn.Identity(), view), torch.randn(2, 6, 24))
    assert "linear" in kinds
    assert "rearrange" not in kinds


def test_views_of_torchs_values_are_torchs() -> None:
    def joined_heads(x: Tensor) -> Tensor:
        heads = x.unflatten(2, (4, 6)).transpose(1, 2)
        return torch.sin(heads).transpose(1, 2).flatten(2)

    kinds = steps(Around(nn.Linear(24, 32), joined_heads, nn.Identity()), torch.randn(2, 6, 24))
    assert "linear" in kinds
    assert "rearrange" not in kinds


def test_a_view_that_no_program_reads_stays_in_the_program_that_reads_its_source() -> None:
    def windows(x: Tensor) -> Tensor:  # in the batch
        return x.unflatten(1, (2, 3)).flatten(0, 1)

    kinds = steps(Around(nn.Linear(24, 32), windows, nn.Identity()), torch.randn(2, 6, 24))
    assert "linear" in kinds


def test_an_image_read_as_tokens_leaves_its_program_without_a_turn_to_planes() -> None:
    tokens = lambda y: y.flatten(2).transpose(1, 2)  # noqa: E731
    kinds = steps(Around(nn.Conv2d(3, 8, 3), nn.Identity(), tokens), torch.randn(2, 3, 9, 9))
    assert "conv2d" in kinds
    assert "planar" not in kinds


def test_views_of_torchs_are_not_reported_as_steps() -> None:
    x = torch.randn(2, 16, 64)
    int8 = qk.quantize(models.TransformerEncoder(64, 1, 4).eval(), "static", [x])
    unfused = qk.compile(int8, x, exact=True).report.unfused
    assert [step.split("(")[1] for step in unfused] == [
        "layer_norm)", "scaled_dot_product_attention)", "layer_norm)", "gelu)", "layer_norm)",
    ]  # fmt: skip
