"""The compiled model is the forward that runs: arguments at their defaults, flags, activations in place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk


class Plain(nn.Module):
    """A forward whose optional arguments decide what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(
        self, x: Tensor, gate: Tensor | None = None, features: bool = False, power: int = 1
    ) -> Tensor:
        h = self.a(x)
        if gate is not None:
            h = F.relu(h)
        if features:
            return h
        for _ in range(power):
            h = self.b(h)
        return h


class KeywordOnly(Plain):
    def forward(self, x: Tensor, *, gate: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, gate)


class Counting(Plain):
    """Keeps what it saw, as LeViT keeps its tables of biases."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if "scale" not in self.seen:
            self.seen["scale"] = self.a.weight.abs().amax()
        return super().forward(x) * self.seen["scale"]


@pytest.mark.parametrize("kind", [Plain, KeywordOnly, Counting])
@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_arguments_at_their_defaults_are_values_and_no_proxies(
    kind: type[nn.Module], scheme: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    int8 = qk.quantize(kind().eval(), scheme, [x])
    for _ in range(2):  # a first trace must leave nothing behind that breaks the second
        compiled = qk.compile(int8, x, exact=True)
        assert torch.equal(compiled(x), int8(x))
        assert compiled.report.sqnr_db == {"output": torch.inf}


class Lying(nn.Module):
    """Computes something else when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if torch.compiler.is_exporting() else -self.a(x)


def test_a_graph_that_is_not_the_forward_is_refused_with_the_difference() -> None:
    x = torch.randn(4, 8)
    int8 = qk.quantize(Lying().eval(), "static", [x])
    with pytest.raises(ValueError, match=r"-6\.0 dB.*cannot be the forward that runs"):
        qk.compile(int8, x, exact=True)


ACTIVATIONS: dict[str, Callable[[bool], nn.Module]] = {
    "SiLU": nn.SiLU,
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "LeakyReLU": lambda inplace: nn.LeakyReLU(0.1, inplace),
    "ELU": lambda inplace: nn.ELU(1.0, inplace),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_table_of_an_activation_in_place_is_that_of_the_other_form(name: str) -> None:
    answers = []
    for inplace in (False, True):
        torch.manual_seed(0)
        act = ACTIVATIONS[name](inplace)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 4, 3)).eval()
        x = torch.randn(2, 3, 9, 9)
        int8 = qk.quantize(net, "static", [x])
        fast = qk.compile(int8, x)
        answers.append(fast(x))
        assert fast.report.sqnr_db["output"] > 25
    assert torch.equal(*answers)
