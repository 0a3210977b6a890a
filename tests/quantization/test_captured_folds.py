"""Batch norms fold by the graph of the call that is made: flags, optional tensors, reads from outside, other forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import lively
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels.modules.outputs import output_error
from qkernels.quantization.fold import Folds, fold_batch_norm_

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Two convolutions with a batch norm each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)


class OptionalGate(Base):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        h = self.a(x)
        if gate is not None:
            h = F.relu(h) * gate
        return self.norm_b(self.b(F.relu(self.norm_a(h))))


class Flag(Base):
    def forward(self, x: Tensor, return_features: bool = False, activation: str = "relu") -> Any:
        h = getattr(F, activation)(self.norm_a(self.a(x)))
        y = self.norm_b(self.b(h))
        return (y, h) if return_features else y


class Training(Base):
    """Another way in training, as GoogLeNet's auxiliary heads."""

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.norm_a(self.a(x)))
        if self.training:
            return self.norm_b(self.b(h)), self.a(x)
        return self.norm_b(self.b(h))


class ShapeCheck(Base):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3 and x.dim() == 4, "images"
        if x.shape[-1] < 4:
            x = F.interpolate(x, size=4)
        return self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))


class Functional(Base):
    """The norms' statistics read by the function, as ghost and split batch norms do."""

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.a, self.norm_a), (self.b, self.norm_b)):
            y = conv(x)
            x = F.batch_norm(
                y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            ).relu()
        return x


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8))
        self.norms = nn.ModuleDict({"0": nn.BatchNorm2d(8), "1": nn.BatchNorm2d(8)})

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = self.norms[str(i)](conv(x)).relu()
        return x


class SequentialParts(nn.Module):
    """A Sequential whose children the forward calls one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return x


class DictIO(Base):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = F.relu(self.norm_a(self.a(x)))
        return {"features": h, "out": self.norm_b(self.b(h))}


class Loss(Base):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))).mean((2, 3))
        return (F.cross_entropy(y, labels), y) if labels is not None else y


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation inside, as timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class NormActNet(nn.Module):
    def __init__(self, kind: Any = NormAct) -> None:
        super().__init__()
        self.a, self.norm_a, self.b, self.norm_b = (
            nn.Conv2d(3, 8, 3),
            kind(8),
            nn.Conv2d(8, 8, 3),
            kind(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_b(self.b(self.norm_a(self.a(x))))


FOLDING: dict[str, tuple[Any, Any, int]] = {
    "optional tensor at its default": (OptionalGate, (X,), 2),
    "flag at its default": (Flag, (X,), 2),
    "flag given": (Flag, {"x": X, "return_features": True, "activation": "silu"}, 2),
    "other way in training": (Training, (X,), 2),
    "checks of shapes": (ShapeCheck, (X,), 2),
    "lists and dicts of layers": (Looped, (X,), 2),
    "a Sequential walked by hand": (SequentialParts, (X,), 2),
    "a dict as answer": (DictIO, (X,), 2),
    "labels": (Loss, {"x": X, "labels": torch.arange(4)}, 2),
    "norms with an activation inside": (NormActNet, (X,), 2),
    "transposed convolutions": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.BatchNorm2d(8)), (X,), 1),
    "grouped ones": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 9, 2, groups=3), nn.BatchNorm2d(9)), (X,), 1),
    "sequences": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)), (X[:, :, 0],), 1),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(3, 8, 1), nn.BatchNorm3d(8)), (X[:, :, None],), 1),
    "without affine": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False)), (X,), 1),
}  # fmt: skip


def fold(model: nn.Module, example: Any) -> tuple[int, float, list[str]]:
    """(number of folds, change of the answer, notes)"""
    call = example if isinstance(example, dict) else None
    with torch.no_grad():
        run = lambda: model(**call) if call else model(*example)  # noqa: E731
        before = run()
        folds = qk.report(fold_batch_norm_(model, example), Folds)
        after = run()
    return len(folds.pairs), output_error(before, after), folds.notes


def made(make: Any) -> nn.Module:
    torch.manual_seed(0)
    model = lively(make())
    for m in model.modules():
        if isinstance(m, nn.BatchNorm3d):
            m.running_mean.normal_()
    return model


@pytest.mark.parametrize("case", FOLDING)
def test_batch_norms_of_the_call_that_is_made_fold(case: str) -> None:
    make, example, count = FOLDING[case]
    folded, change, notes = fold(made(make), example)
    assert change < 1e-5
    assert folded == count, notes
    assert [note for note in notes if "in a call without" not in note] == []


def test_an_optional_tensor_that_the_example_left_out_is_named() -> None:
    """Where a later call gives it between layer and norm, the fold is wrong, which only the report can say."""
    notes = fold(made(OptionalGate), (X,))[2]
    assert len(notes) == 1 and "without gate" in notes[0] and "example_inputs" in notes[0]
    assert fold(made(OptionalGate), (X, torch.ones(1)))[2] == [
        "norm_a is not folded: no layer stands before that hands its output to the norm alone"
    ]


# --- what must not be folded -------------------------------------------------------------------


class CalledOutside(nn.Module):
    """A part that cannot be captured, one of whose children is called, or read, outside of it too."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)
        )
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if float(y.sum()) > 1e9:  # no capture follows this
            y = -y
        if self.use == "conv called":
            return y.mean() + self.body[0](x)
        if self.use == "norm called":
            return y.mean() + self.body[1](torch.cat([x, x, x[:, :2]], 1))
        if self.use == "weight read":
            return y + self.body[0].weight.sum()
        if self.use == "bias read":
            return y + self.body[0].bias.sum()
        if self.use == "statistics read":
            return y + self.body[1].running_mean.sum()
        if self.use == "body called twice":
            return y + self.body(x + 1)
        if self.use == "weight scaled":
            return y + F.conv2d(x, self.body[0].weight * 2, padding=1).mean()
        return y


@pytest.mark.parametrize(
    "use",
    ["conv called", "norm called", "weight read", "bias read", "statistics read", "weight scaled"],
)
def test_what_is_called_or_read_outside_of_its_part_is_not_folded_and_it_is_said(use: str) -> None:
    folded, change, notes = fold(made(lambda: CalledOutside(use)), (X,))
    assert (folded, change) == (0, 0.0)
    assert notes


@pytest.mark.parametrize("use", ["", "body called twice"])
def test_an_untraceable_model_keeps_its_answer_whatever_is_folded(use: str) -> None:
    folded, change, notes = fold(made(lambda: CalledOutside(use)), (X,))
    assert change < 1e-5
    assert notes
    assert folded == 1 if use == "" else folded in (0, 1)


class TwoFlags(Base):
    """A module called twice, with other flags."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Flag()

    def forward(self, x: Tensor) -> Tensor:
        one, features = self.part(x, return_features=True)
        return self.part(x, activation="tanh") + one + features


class NormTwice(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm_a(self.a(x)) + self.norm_a(self.b(F.relu(self.a(x))))


class BothRead(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.norm_b(self.b(F.relu(self.norm_a(y)))) + y


class OtherNorm(Base):
    """Statistics of one norm, scale and shift of another."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm_a, self.norm_b
        return F.batch_norm(self.a(x), a.running_mean, a.running_var, b.weight, b.bias)


class BatchStatistics(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            self.a(x), None, None, self.norm_a.weight, self.norm_a.bias, training=True
        )


class InPlace(Base):
    """The layer's output is written over before the norm reads it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.relu_()
        return self.norm_a(y)


class InPlaceView(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, 0].mul_(2.0)
        return self.norm_a(y)


class StandardizedNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.view(1, -1, 1, 1).sigmoid()


class ResidualNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class OtherEpsilon(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.1)


STAYING: dict[str, Any] = {
    "a module called twice with other flags": TwoFlags,
    "a norm called twice": NormTwice,
    "a layer with two readers": BothRead,
    "parameters of two norms": OtherNorm,
    "statistics of the batch": BatchStatistics,
    "an activation in place between": InPlace,
    "a channel written in place": InPlaceView,
    "a norm that scales its answer": lambda: NormActNet(StandardizedNorm),
    "statistics read by the function": Functional,
    "a norm with another epsilon": lambda: NormActNet(OtherEpsilon),
    "a norm that adds its input": lambda: NormActNet(ResidualNorm),
}


@pytest.mark.parametrize("case", STAYING)
def test_what_is_not_just_a_layer_and_its_norm_keeps_its_answer(case: str) -> None:
    model = made(STAYING[case])
    _, change, notes = fold(model, (X,))
    assert change < 1e-5
    pairs = qk.report(model, Folds).pairs
    assert [pair for pair in pairs if pair != ("b", "norm_b")] == []
    assert notes or case == "a module called twice with other flags"


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize(
    "make",
    [
        OptionalGate,
        Flag,
        Training,
        DictIO,
        NormActNet,
        TwoFlags,
        BothRead,
        InPlaceView,
        InPlace,
        NormTwice,
        Functional,
    ],
)
def test_the_int8_model_stays_close_and_answers_other_calls_too(make: Any, scheme: str) -> None:
    model = made(make)
    int8 = qk.quantize(model, scheme, [X])
    calls: list[dict[str, Any]] = [{}]
    if make is Flag:  # ranges of a static model are those of the calls in calibration
        calls += [
            {"return_features": True},
            {"activation": "silu" if scheme == "dynamic" else "relu"},
        ]
    for call in calls:
        y, exact = (m(X, **call) for m in (int8, model))
        y, exact = (
            v["out"] if isinstance(v, dict) else v[0] if isinstance(v, tuple) else v
            for v in (y, exact)
        )
        assert float((y - exact).detach().norm() / exact.detach().norm()) < 0.06


def test_an_argument_that_comes_between_layer_and_norm_is_seen_in_the_example() -> None:
    model, gate = made(OptionalGate), torch.rand(4, 8, 1, 1)
    for data, example in (([{"x": X, "gate": gate}], None), ([X], (X, gate))):
        int8 = qk.quantize(model, "dynamic", data, example_inputs=example)
        assert qk.report(int8).folded == [("b", "norm_b")]
        for call in ((X,), (X, gate)):
            exact = model(*call).detach()
            assert float((int8(*call) - exact).norm() / exact.norm()) < 0.06
