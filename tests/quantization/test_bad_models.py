"""Input that is wrong: one sentence that says what to do, and the user's model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import conv_net, images
from torch import Tensor, nn

import qkernels as qk

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
Y = torch.zeros(6)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).train()


def refusing(model: nn.Module) -> None:
    raise ValueError("no images in the folder")


BAD_DATA: dict[str, tuple[Callable[[], Any], str]] = {
    "too wide": (lambda: [torch.randn(2, 9)], r"Sequential cannot be called with .*\[2, 9\]"),
    "too wide, with labels": (lambda: [(torch.randn(2, 9), Y[:2])], r"cannot be called with .*\[2, 9\]"),
    "second batch too wide": (lambda: [X, torch.randn(2, 9)], r"cannot be called with .*\[2, 9\]"),
    "integers": (lambda: [torch.ones(2, 8, dtype=torch.int64)], "int64"),
    "doubles": (lambda: [X.double()], "float64"),
    "no batches": (list, "empty"),
    "an empty generator": (lambda: iter([]), "empty"),
    "an empty loader": (lambda: torch.utils.data.DataLoader([]), "empty"),
    "a number": (lambda: 3, "calibration is a int"),
    "a string": (lambda: "images/", "calibration is a str"),
    "None in a list": (lambda: [None], "NoneType"),
    "a string in a list": (lambda: ["x.png"], "str"),
    "an array": (lambda: [X.numpy()], "ndarray"),
    "arrays": (lambda: X.numpy(), "ndarray"),
    "a list of strings": (lambda: [["a", "b"]], "list of str"),
    "a tuple of nothing": (lambda: [()], "tuple of nothing"),
    "a dict that does not fit": (lambda: [{"pixels": X}], "cannot be called with"),
    "NaN": (lambda: [X.clone().fill_(float("nan"))], r"layer '0' holds 48 NaN"),
    "infinities": (lambda: [X.index_fill(1, torch.tensor([3]), torch.inf)], r"layer '0' holds 0 NaN and 6 inf"),
    "rows of no values": (lambda: [torch.empty(0, 8)], "reached no layer"),
    "a class": (lambda: [torch.Tensor], "a batch is a"),
    "a callable whose own check fails": (lambda: refusing, "no images in the folder"),
    "a callable that never calls": (lambda: lambda m: None, "reached no layer"),
    "a callable without arguments": (lambda: lambda: None, "argument"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_calibration_data_is_one_sentence_and_changes_nothing(case: str) -> None:
    data, message = BAD_DATA[case]
    model = mlp()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for convert in (qk.quantize, qk.quantize_):
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            convert(model, "static", data())
        assert "\n" not in str(caught.value)
        if convert is qk.quantize:
            assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
            assert all(m.training for m in model.modules())
            assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
            assert not any(m._forward_pre_hooks for m in model.modules())


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


BAD_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "a scripted model": (lambda: torch.jit.script(mlp()), "ScriptModule.*nn.Module that was scripted"),
    "a traced model": (lambda: torch.jit.trace(mlp(), X), "ScriptModule"),
    "a state dict": (lambda: mlp().state_dict(), "OrderedDict.*nn.Module"),
    "a path": (lambda: "model.pt", "str.*nn.Module"),
    "a class": (lambda: nn.Linear, "nn.Module"),
    "a function": (lambda: torch.relu, "nn.Module"),
    "nothing": (lambda: None, "NoneType"),
    "without layers": (lambda: nn.Sequential(nn.ReLU()), "no layer to convert"),
    "a lazy model": (Lazy, "run the model once"),
    "a model on meta": (lambda: mlp().to("meta"), "meta device"),
    "an integer model": (lambda: nn.Sequential(nn.Bilinear(2, 2, 2)), "no layer to convert"),
    "weights of NaN": (lambda: nn.Sequential(mlp(), filled(float("nan"))), r"layer '1'.*(NaN|nan)"),
    "weights of infinity": (lambda: nn.Sequential(mlp(), filled(float("inf"))), r"layer '1'.*inf"),
    "double weights": (lambda: mlp().double(), "float64"),
    "exported": (lambda: torch.export.export(mlp().eval(), (X,)), "ExportedProgram.*nn.Module"),
}  # fmt: skip


def filled(value: float) -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight.data[1, 2] = value
    return layer


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_one_sentence(case: str) -> None:
    make, message = BAD_MODELS[case]
    model = make()
    for convert in (qk.quantize, qk.quantize_):
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            convert(model, "dynamic")
        assert "\n" not in str(caught.value)


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "data parallel": nn.DataParallel,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "compiled data parallel": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("convert", [qk.quantize, qk.quantize_])
def test_a_wrapped_model_is_unwrapped_and_the_report_says_so(wrapper: str, convert: Any) -> None:
    model = mlp().eval()
    expected = qk.quantize(model, "static", [X])
    int8 = convert(WRAPPED[wrapper](model), "static", [X])
    assert type(int8) is nn.Sequential
    assert any("wrap" in note for note in qk.report(int8).notes)
    assert torch.equal(int8(X), expected(X))


@pytest.mark.parametrize("scheme", ["static", "dynamic", "weight_only"])
def test_a_bare_layer_is_converted(scheme: str) -> None:
    for layer in (nn.Linear(8, 4), nn.LSTM(8, 4, batch_first=True), nn.Sequential(nn.Linear(8, 4))):
        int8 = qk.quantize(layer, scheme, [X[None]])
        y, exact = (m(X[None]) for m in (int8, layer.eval()))
        y, exact = (v[0] if isinstance(v, tuple) else v for v in (y, exact))
        assert float((y - exact).detach().norm() / exact.detach().norm()) < 0.03


def test_a_bare_convolution_is_converted() -> None:
    layer, x = nn.Conv2d(3, 4, 3).eval(), images()
    int8 = qk.quantize(layer, "static", [x])
    assert isinstance(int8, qk.QuantConv2d)
    assert float((int8(x) - layer(x)).detach().norm() / layer(x).detach().norm()) < 0.03


@pytest.mark.parametrize("scheme", ["static", "dynamic", "weight_only"])
def test_an_int8_layer_names_both_widths_when_its_input_has_the_wrong_one(scheme: str) -> None:
    int8 = qk.quantize(mlp().eval(), scheme, [X])
    with pytest.raises(Exception, match=r"(?s)8.*9|9.*8") as caught:
        int8(torch.randn(2, 9))
    assert "bytes" not in str(caught.value)
    if scheme != "weight_only":
        conv = qk.quantize(conv_net(), scheme, [images()])
        with pytest.raises(Exception, match=r"(?s)3.*4|4.*3") as caught:
            conv(torch.randn(2, 4, 8, 8))
        assert "bytes" not in str(caught.value)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("new", [False, True], ids=["hook", "parametrization"])
def test_a_model_with_a_recomputed_weight_that_has_run_is_converted(norm: str, new: bool) -> None:
    torch.manual_seed(0)
    model = mlp().eval()
    for i in (0, 2):
        where = nn.utils.parametrizations if new else nn.utils
        model[i] = getattr(where, norm)(model[i])
    model.train()(X)
    model.eval()
    expected = model(X).detach()
    int8 = qk.quantize(model, "static", [X])
    assert [type(m).__name__ for m in int8] == ["QuantLinear", "ReLU", "QuantLinear"]
    assert float((int8(X) - expected).norm() / expected.norm()) < 0.03
    assert torch.equal(model(X), expected)


def test_an_example_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"\[2, 9\]") as caught:
        qk.quantize(mlp(), "dynamic", example_inputs=torch.randn(2, 9))
    assert "\n" not in str(caught.value)


def test_arrays_are_told_how_to_become_tensors() -> None:
    with pytest.raises(ValueError, match="tensor"):
        qk.quantize(mlp(), "static", [np.ones((2, 8), np.float32)])
