"""Equalization and smoothing change only what the graph of the call shows: the function stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels.modules.outputs import output_error
from qkernels.recovery import equalize, smooth

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)


class OptionalGate(Convs):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        h = F.relu(self.a(x))
        if gate is not None:
            h = h + gate
        return self.b(h)


class Flag(Convs):
    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        h = F.relu(self.a(x))
        return (self.b(h), h) if return_features else self.b(h)


class WeightRead(Convs):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))) + self.a.weight.sum() + self.b.weight.std()


class BiasRead(Convs):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))) * self.a.bias.norm()


class Penalty(Convs):
    """Another layer's weight in the answer, as weight decay in a forward."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.b(F.relu(self.a(x))), "decay": self.a.weight.square().sum()}


class CalledOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if float(y.sum()) > 1e9:  # no capture follows this
            y = -y
        return y.mean() + self.body[0](x)


class ReadOutside(CalledOutside):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if float(y.sum()) > 1e9:
            y = -y
        return F.conv2d(x, self.body[0].weight).mean() + y


class TwoCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Flag()

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.part(x, return_features=True)
        return self.part(x).mean() + y.mean() + h


class MiddleRead(Convs):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(F.relu(h)) + h.mean()


class Hooked(Convs):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.act.register_forward_hook(lambda m, a, y: y + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)))


class Shifted(Convs):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x) + 0.5))


class Leaky(Convs):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.leaky_relu(self.a(x), 0.1))


class Gelu(Convs):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(x)))


class Walked(nn.Module):
    """Layers that only a list holds in the order of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.a, self.act = nn.Conv2d(8, 4, 1), nn.Conv2d(3, 8, 1), nn.ReLU6()
        self.steps = [self.a, self.act, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


CONVS = [
    OptionalGate, Flag, WeightRead, BiasRead, Penalty, CalledOutside, ReadOutside, TwoCalls, MiddleRead, Hooked,
    Shifted, Leaky, Gelu, Walked,
]  # fmt: skip
CHANGED = {OptionalGate: 1, Flag: 1, Leaky: 1, Walked: 1}


def spread(make: Any) -> nn.Module:
    """A model whose channels have ranges that equalization must move."""
    torch.manual_seed(0)
    model = make().eval()
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            m.weight.data[::2] *= 20
            m.bias.data[::2] *= 20
    return model


@pytest.mark.parametrize("make", CONVS)
def test_an_equalized_model_has_the_function_of_the_call_that_is_made(make: Any) -> None:
    model = spread(make)
    equal = equalize(model, IMAGES)
    assert output_error(model(IMAGES), equal(IMAGES)) < 1e-4
    assert len(qk.report(equal).pairs) == CHANGED.get(make, 0)


@pytest.mark.parametrize("make", [OptionalGate, Flag])
def test_equalization_sees_the_arguments_of_the_example(make: Any) -> None:
    model = spread(make)
    example: Any = {"x": IMAGES, "return_features": True}
    if make is OptionalGate:
        example = (IMAGES, torch.ones(1, 8, 1, 1))
    equal = equalize(model, example)
    assert qk.report(equal).pairs == {}
    run = lambda m: m(**example) if isinstance(example, dict) else m(*example)  # noqa: E731
    assert output_error(run(model), run(equal)) < 1e-5


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)


class OptionalMask(Rows):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        if mask is not None:
            y = y + mask
        return self.down(F.relu(self.up(y)))


class NormRead(Rows):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.norm(x)))) * self.norm.weight


class UpRead(Rows):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.norm(x)))) + F.linear(x, self.up.weight).mean()


class NormTwice(Rows):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.norm(x)))) + self.norm(x + 1)


class FunctionalNorm(Rows):
    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, (8,), self.norm.weight, self.norm.bias)
        return self.down(F.relu(self.up(y)))


class NormOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = OptionalMask()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if float(y.sum()) > 1e9:
            y = -y
        return y + self.block.norm(x)


class HookedNorm(OptionalMask):
    def __init__(self) -> None:
        super().__init__()
        self.norm.register_forward_hook(lambda m, a, y: y.tanh())


class HookedReader(OptionalMask):
    def __init__(self) -> None:
        super().__init__()
        self.up.register_forward_pre_hook(lambda m, a: (a[0].clamp(-1, 1),))


class PatchedNorm(OptionalMask):
    def __init__(self) -> None:
        super().__init__()
        self.norm.forward = lambda x: F.layer_norm(x, (8,)) * 2 + self.norm.weight * 0.1


class Flagged(Rows):
    def forward(self, x: Tensor, return_hidden: bool = False) -> Any:
        h = self.norm(x)
        y = self.down(F.relu(self.up(h)))
        return (y, h) if return_hidden else y


ROWS_MODELS = [
    OptionalMask, NormRead, UpRead, NormTwice, FunctionalNorm, NormOutside, HookedNorm, HookedReader, PatchedNorm,
    Flagged,
]  # fmt: skip


@pytest.mark.parametrize("make", ROWS_MODELS)
def test_a_smoothed_model_has_the_function_of_the_call_that_is_made(make: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    for m in model.modules():
        if isinstance(m, nn.LayerNorm):
            m.weight.data[::3] *= 60
    smoothed = smooth(model, [ROWS])
    assert output_error(model(ROWS), smoothed(ROWS)) < 1e-4
    if make is OptionalMask:
        assert qk.report(smoothed).groups == {"norm": ["up"], "up": ["down"]}


def test_smoothing_sees_the_arguments_of_the_data() -> None:
    torch.manual_seed(0)
    mask = torch.ones(64, 8)
    for make, batch in (
        (OptionalMask, (ROWS, mask)),
        (Flagged, {"x": ROWS, "return_hidden": True}),
    ):
        model = make().eval()
        batches = [batch] if isinstance(batch, dict) else lambda m: m(ROWS, mask)
        smoothed = smooth(model, batches)
        run = lambda m: m(**batch) if isinstance(batch, dict) else m(*batch)  # noqa: B023, E731
        assert output_error(run(model), run(smoothed)) < 1e-4
        assert "norm" not in qk.report(smoothed).groups


@pytest.mark.parametrize("step", [lambda m: equalize(m, IMAGES), lambda m: smooth(m, [IMAGES])])
def test_the_original_of_a_step_is_left_as_it_was(step: Any) -> None:
    for make in CONVS:
        model = spread(make)
        before = model(IMAGES)
        step(model)
        assert output_error(before, model(IMAGES)) == 0
