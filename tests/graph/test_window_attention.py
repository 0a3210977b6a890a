"""Attention in windows that are folded into the batch, shifted and masked, as Swin has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk

SIZE, WINDOW, HEADS, WIDTH = 8, 4, 2, 16
WINDOWS = (SIZE // WINDOW) ** 2
TOKENS = WINDOW**2


class Windows(nn.Module):
    """Shifted attention of windows, whose layers are read and never called."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.qkv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.proj, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(1, HEADS, TOKENS, TOKENS))
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        n, shift = x.shape[0], WINDOW // 2
        x = torch.roll(self.first(x), shifts=(-shift, -shift), dims=(1, 2))
        x = x.view(n, SIZE // WINDOW, WINDOW, SIZE // WINDOW, WINDOW, WIDTH)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(n * WINDOWS, TOKENS, WIDTH)
        bias = self.qkv.bias.clone()
        bias[WIDTH : 2 * WIDTH].zero_()
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.reshape(x.shape[0], TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        y = self.scores(q, k).softmax(-1) @ v
        y = F.linear(y.transpose(1, 2).reshape(x.shape), self.proj.weight, self.proj.bias)
        y = y.view(n, SIZE // WINDOW, SIZE // WINDOW, WINDOW, WINDOW, WIDTH)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(n, SIZE, SIZE, WIDTH)
        return self.last(torch.roll(y, shifts=(shift, shift), dims=(1, 2)))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        if self.kind == "cosine":
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.scale
        else:
            scores = (q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1)
        if self.kind != "mask alone":
            scores = scores + self.bias
        if self.kind == "bias alone":
            return scores
        mask = self.mask(q)
        scores = scores.view(-1, WINDOWS, HEADS, TOKENS, TOKENS) + mask[None, :, None]
        if self.kind == "mask twice":  # as Swinv2 of transformers adds it
            scores = scores + mask[None, :, None]
        scores = scores.view(-1, HEADS, TOKENS, TOKENS)
        return scores + self.bias if self.kind == "bias behind" else scores

    def mask(self, x: Tensor) -> Tensor:
        """Tokens that the roll made neighbours do not see each other."""
        part = x.new_zeros(SIZE, SIZE)
        slices = (slice(-WINDOW), slice(-WINDOW, -WINDOW // 2), slice(-WINDOW // 2, None))
        for i, (h, w) in enumerate((h, w) for h in slices for w in slices):
            part[h, w] = i
        part = part.view(SIZE // WINDOW, WINDOW, SIZE // WINDOW, WINDOW).permute(0, 2, 1, 3)
        part = part.reshape(WINDOWS, TOKENS)
        return ((part[:, None] - part[:, :, None]) != 0) * -100.0


KINDS = ("mask and bias", "mask alone", "bias alone", "cosine", "mask twice", "bias behind")


@pytest.mark.parametrize("kind", KINDS[:5])
def test_attention_in_windows_is_one_program_for_any_batch(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Windows(kind).eval(), torch.randn(3, SIZE, SIZE, WIDTH)
    int8 = qk.quantize(model, "static", [x])
    compiled = qk.compile(int8, x[:1])
    assert not compiled.report.unfused
    with torch.inference_mode():
        for images in (x[:1], x):
            expected, answer = model(images), compiled(images)
            assert (answer - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_form_has_the_bits_of_the_layers_for_any_batch(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Windows(kind).eval(), torch.randn(3, SIZE, SIZE, WIDTH)
    int8 = qk.quantize(model, "static", [x])
    exact = qk.compile(int8, x[:1], exact=True)
    assert not {"roll", "slice_scatter", "fill", "new_zeros"} & {
        step.split(" (")[-1] for step in exact.report.unfused
    }
    with torch.inference_mode():
        for images in (x[:1], x):
            assert torch.equal(exact(images), int8(images))


def test_a_mask_behind_that_of_the_windows_stays_right_in_the_fast_form() -> None:
    torch.manual_seed(0)
    model, x = Windows("bias behind").eval(), torch.randn(3, SIZE, SIZE, WIDTH)
    compiled = qk.compile(qk.quantize(model, "static", [x]), x[:1])
    with torch.inference_mode():
        expected, answer = model(x), compiled(x)
    assert (answer - expected).norm() / expected.norm() < 0.02


class TwoMasks(nn.Module):
    """A position bias and a mask of the caller's, as MPNet adds them, and truth values that are added as numbers."""

    def __init__(self, truth: bool) -> None:
        super().__init__()
        self.truth, self.qkv, self.out = truth, nn.Linear(16, 48), nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.randn(1, 2, 6, 6))
        self.register_buffer("near", torch.rand(6, 6) > 0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) / 8**0.5 + self.bias
        scores = scores + (self.near if self.truth else x[:, None, None, :, 0])
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("truth", [False, True])
def test_two_masks_are_one_of_attention(truth: bool) -> None:
    torch.manual_seed(0)
    model, x = TwoMasks(truth).eval(), torch.randn(3, 6, 16)
    compiled = qk.compile(qk.quantize(model, "static", [x]), x)
    assert not compiled.report.unfused or truth
    with torch.inference_mode():
        expected, answer = model(x), compiled(x)
    assert (answer - expected).norm() / expected.norm() < 0.02


class OtherBiases(nn.Module):
    """Reads weights of one input and adds biases that are not the layers' own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.linear(x, self.a.weight, self.b.bias + 3), F.linear(x, self.b.weight)
        return self.c(a * b + x)


def test_products_of_one_value_keep_the_biases_that_they_were_given() -> None:
    torch.manual_seed(0)
    model, x = OtherBiases().eval(), torch.randn(4, 5, 16)
    int8 = qk.quantize(model, "static", [x])
    with torch.inference_mode():
        assert torch.equal(qk.compile(int8, x, exact=True)(x), int8(x))


class Apart(nn.Module):
    """Windows on an axis of their own, and einsum, as MaxViT has them."""

    def __init__(self, mask: tuple[int, ...]) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(mask))

    def forward(self, x: Tensor) -> Tensor:
        n, windows, tokens, _ = x.shape
        parts = self.qkv(x).reshape(n, windows, tokens, 3 * HEADS, -1).chunk(3, dim=3)
        q, k, v = (part.permute(0, 1, 3, 2, 4) for part in parts)
        scores = torch.einsum("B G H I D, B G H J D -> B G H I J", q, k * 0.3) + self.bias
        y = torch.einsum("B G H I J, B G H J D -> B G H I D", scores.softmax(-1), v)
        return self.out(y.permute(0, 1, 3, 2, 4).reshape(n, windows, tokens, WIDTH).swapaxes(1, 2))


@pytest.mark.parametrize("mask", [(1, HEADS, 6, 6), (4, 1, 6, 6)])
def test_windows_on_an_axis_of_their_own_are_folded_into_the_batch(mask: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = Apart(mask).eval(), torch.randn(3, 4, 6, WIDTH)
    compiled = qk.compile(qk.quantize(model, "static", [x]), x[:1])
    assert not compiled.report.unfused or mask[0] > 1
    with torch.inference_mode():
        for images in (x[:1], x):
            expected, answer = model(images), compiled(images)
            assert (answer - expected).norm() / expected.norm() < 0.02
