import math

import pytest
import torch
from nets import conv_net, images
from torch import Tensor, nn

from qkernels.quantization import layer_errors, quantize


def outputs(model: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, output)
        )
    with torch.no_grad():
        model(x)
    return seen


def test_folded_layers_are_compared_behind_their_batch_norm() -> None:
    model = conv_net()
    converted = quantize(model, None, images(8))
    errors = layer_errors(model, converted, images())
    assert [error.name for error in errors] == ["conv1", "conv2", "hidden", "head"]
    assert [error.type for error in errors] == ["QuantConv2d"] * 2 + ["QuantLinear"] * 2
    points = ["bn1", "bn2", "bn3", "head"]
    expected, got = outputs(model, points, images()), outputs(converted, points, images())
    for error, point in zip(errors, points, strict=True):
        x, y = expected[point].double(), got[point].double()
        sqnr = 10 * torch.log10(x.square().sum() / (x - y).square().sum()).item()
        assert error.sqnr_db == pytest.approx(sqnr)
        cosine = torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
        assert error.cosine == pytest.approx(cosine)
        assert error.sqnr_db > 20


def test_a_broken_layer_stands_out() -> None:
    model = conv_net()
    converted = quantize(model, None, images(8))
    converted.conv2.weight_scale.mul_(3)
    errors = {error.name: error.sqnr_db for error in layer_errors(model, converted, images())}
    assert errors["conv1"] > 30
    assert errors["conv2"] < 5


def test_equal_outputs_are_infinitely_good_and_dead_ones_infinitely_bad() -> None:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    converted = quantize(model, "dynamic")
    assert layer_errors(model, converted, torch.randn(2, 4))[0].sqnr_db == math.inf
    nn.init.zeros_(model.bias)
    assert layer_errors(model, converted, torch.randn(2, 4))[0].sqnr_db == -math.inf


def test_every_call_of_a_shared_layer_counts() -> None:
    fc = nn.Linear(4, 4)
    model = nn.Sequential(fc, nn.ReLU(inplace=True), fc)
    converted = quantize(model, "dynamic")
    errors = layer_errors(model, converted, torch.randn(8, 4))
    assert len(errors) == 1
    assert 20 < errors[0].sqnr_db < 80


def test_models_are_left_as_they_were() -> None:
    model = conv_net().train()
    converted = quantize(model, None, images(8))
    layer_errors(model, converted, (images(), None))
    assert model.training
    assert not any(m._forward_hooks for m in (*model.modules(), *converted.modules()))


def test_another_model_is_refused() -> None:
    converted = quantize(conv_net(), None, images())
    with pytest.raises(ValueError, match="float_model has no module 'bn1'"):
        layer_errors(nn.Sequential(nn.Linear(2, 2)), converted, images())
    with pytest.raises(ValueError, match="it is a part"):
        layer_errors(conv_net(), nn.Sequential(converted.bn1), images())
