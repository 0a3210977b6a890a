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


@pytest.mark.parametrize("kind", ["mask and bias", "mask alone", "bias alone", "cosine"])
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
