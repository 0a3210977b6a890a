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


class Gated(nn.Module):
    """An inverted residual as EfficientNet has it: a mean, a gate and a residual among steps that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.expand(torch.sin(x)))
        gate = self.excite(nn.functional.silu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return torch.sin(self.project(y * torch.sigmoid(gate)) + torch.sin(x))


def test_no_program_turns_torchs_planes_for_a_mean_or_a_gate() -> None:
    kinds = steps(Gated(), torch.randn(2, 8, 6, 6))
    assert kinds.count("conv2d") == 4
    assert set(kinds) == {"conv2d", "torch"}


class Joined(nn.Module):
    """A block of DenseNet, whose norms torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(torch.cat([torch.sin(x), self.b(self.a(torch.sin(x)).relu())], 1))


def test_no_program_turns_planes_to_join_them_for_torch() -> None:
    assert (
        steps(Joined(), torch.randn(2, 8, 6, 6)) == ["torch"] * 2 + ["conv2d"] * 2 + ["torch"] * 2
    )


def test_a_layer_between_torchs_steps_keeps_its_activation_in_the_fast_form_too() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 8)).eval()
    around, x = Around(model, nn.Identity(), nn.Identity()), torch.randn(2, 6, 24)
    compiled = qk.compile(qk.quantize(around.eval(), "dynamic"), x)
    assert compiled.report.sqnr_db["output"] > 40
    assert [s.kind for s in compiled.profile(x, runs=1).steps] == [
        "torch",
        "linear",
        "linear",
        "torch",
    ]


@pytest.mark.parametrize("also_read", [False, True])
def test_a_convolution_whose_result_only_the_caller_reads_writes_its_planes(
    also_read: bool,
) -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            y = self.a(x)
            return (y, self.b(y)) if also_read else self.b(y)

    x = torch.randn(2, 3, 7, 9)
    int8 = qk.quantize(Ends().eval(), "static", [x])
    compiled = qk.compile(int8, x, exact=True)
    assert compiled.program is not None
    for got, wanted in zip(compiled(x), int8(x), strict=True):
        assert torch.equal(got, wanted)
        assert got.is_contiguous()
    kinds = [step.kind for step in compiled.profile(x, runs=1).steps]
    assert kinds.count("planar") == also_read
