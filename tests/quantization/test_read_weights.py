"""Layers that a forward never calls, but reads the weight of and multiplies by: int8 as layers that are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels.qat import prepare_qat
from qkernels.quantization.calibration import calibrate
from qkernels.quantization.observers import MinMax


class ReadsWeights(nn.Module):
    """Multiplies by the weights of layers that it never calls, as Swin's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.called = nn.Linear(8, 12), nn.Linear(12, 8)
        self.table = nn.Embedding(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.qkv.bias.clone()
        bias[4:8].zero_()
        y = F.linear(x, self.qkv.weight, bias=bias)
        return self.called(y) + F.linear(input=x, weight=self.called.weight.T)[..., :8]


def reads_weights() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return ReadsWeights().eval(), torch.randn(6, 8)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("scheme", ["static", "dynamic", "weight_only"])
def test_a_layer_that_is_read_and_never_called_has_the_scheme_of_the_others(scheme: str) -> None:
    model, x = reads_weights()
    int8 = qk.quantize(model, scheme, [x])
    schemes = {r.name: r.scheme["activation"] for r in qk.report(int8).converted if r.scheme}
    assert schemes == {"qkv": scheme, "called": scheme, "table": "weight_only"}
    with torch.no_grad():
        assert error(int8(x), model(x)) < 0.02


def test_the_range_of_a_layer_covers_what_it_is_called_with_and_what_its_weight_is_multiplied_by() -> (
    None
):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + F.linear(3 * x, self.fc.weight)

    observer, x = MinMax("fc"), torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    calibrate(Both(), {"fc": observer}, [x])
    assert observer.range() == (-3.0, 6.0)
    assert (
        observer.count == 8
    )  # the layer's own product is no second look at what it was called with


def test_tied_layers_see_what_their_weight_is_multiplied_by_only_where_neither_runs() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(5 * self.a(x))

    observers = {"a": MinMax("a"), "b": MinMax("b")}
    calibrate(Tied(), observers, [torch.ones(1, 4)])
    assert observers["a"].range() == (0.0, 1.0)
    assert observers["b"].count == 4


def test_a_layer_that_is_read_and_never_called_is_a_step_of_the_program() -> None:
    model, x = reads_weights()
    int8 = qk.quantize(model, "static", [x])
    with torch.inference_mode():
        exact = qk.compile(int8, x, exact=True)
        assert "qkv" in {line.name for line in exact.report.layers}
        assert torch.equal(exact(x), int8(x))


def test_training_names_a_layer_that_is_never_called() -> None:
    model, x = reads_weights()
    with pytest.raises(ValueError, match="'qkv' is never called"):
        prepare_qat(model, None, [x])
