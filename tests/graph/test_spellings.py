"""Steps that mean the same in another spelling: attention of two products, addcmul, lerp, norms of vectors."""

import math

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk


class Attention(nn.Module):
    """Written out, as most models before scaled_dot_product_attention have it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.qkv, self.out = kind, nn.Linear(16, 48), nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.randn(1, 2, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("one head", "batched heads", "windows"):
            return self.of_matrices(x)
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        if self.kind == "scaled queries":
            scores = (q * 8**-0.5) @ k.transpose(-2, -1)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(8)
        if self.kind == "bias":
            scores = scores + self.bias
        if self.kind == "bias first":
            scores = self.bias + scores * 0.5
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))

    def of_matrices(self, x: Tensor) -> Tensor:
        """Attention of three dimensions."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.kind == "windows":
            q, k, v = (y.reshape(n, 2, t // 2, 2, 8).transpose(2, 3) for y in (q, k, v))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(2, 3).reshape(n, t, 16))
        if self.kind == "one head":
            weights = (q @ k.transpose(1, 2) * 0.25 + self.bias[0, 0]).softmax(-1)
            return self.out(weights @ v)
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2).reshape(n * 2, t, 8) for y in (q, k, v))
        y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * 0.3).softmax(-1), v)
        return self.out(y.reshape(n, 2, t, 8).transpose(1, 2).flatten(2))


class Joined(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Linear(16, 16), nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.kind == "addcmul":
            return self.b(torch.addcmul(x, h, self.weight, value=0.5))
        if self.kind == "lerp":
            return self.b(torch.lerp(x, h, 0.3))
        if self.kind == "lerp by a value":
            return self.b(torch.lerp(x, h, h.sigmoid()))
        return self.b(h / (torch.linalg.vector_norm(h, dim=-1, keepdim=True) + 1e-3))


ATTENTIONS = (
    "plain",
    "scaled queries",
    "bias",
    "bias first",
    "one head",
    "batched heads",
    "windows",
)
JOINED = ("addcmul", "lerp", "lerp by a value", "norm")


@pytest.mark.parametrize("kind", [*ATTENTIONS, *JOINED])
def test_a_step_in_another_spelling_is_in_the_program_and_near_the_models_answer(kind: str) -> None:
    torch.manual_seed(0)
    model = Attention(kind) if kind in ATTENTIONS else Joined(kind)
    x = torch.randn(2, 6, 16)
    int8 = qk.quantize(model.eval(), "static", [x])
    fast = qk.compile(int8, x)
    assert fast.program is not None, fast.report.unfused
    kinds = {step.kind for step in fast.profile(x, runs=1).steps}
    assert ("attention" in kinds) == (kind in ATTENTIONS)
    other = torch.randn(5, 6, 16)
    assert (fast(other) - int8(other)).norm() < 0.05 * int8(other).norm()
    assert torch.equal(qk.compile(int8, x, exact=True)(other), int8(other))


def test_weights_of_attention_that_others_read_too_stay_as_they_are() -> None:
    class Shown(Attention):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
            weights = (q @ k.transpose(-2, -1)).softmax(-1)
            return self.out((weights @ v).transpose(1, 2).flatten(2)), weights

    torch.manual_seed(0)
    x = torch.randn(2, 6, 16)
    int8 = qk.quantize(Shown("plain").eval(), "static", [x])
    answer, weights = qk.compile(int8, x)(x)
    expected = int8(x)
    assert (weights - expected[1]).abs().max() < 1e-4
    assert (answer - expected[0]).norm() < 0.05 * expected[0].norm()
