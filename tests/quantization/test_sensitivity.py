import warnings

import pytest
import torch
from nets import conv_net, images
from torch import Tensor, nn

import qkernels
from qkernels.nn import QuantLinear
from qkernels.quantization import mix, scan
from qkernels.quantization.sensitivity import output_sqnr


def fragile() -> nn.Module:
    """conv_net with one weight in `conv2` that costs all others their resolution."""
    model = conv_net()
    model.conv2.weight.data[0, 0, 0, 0] = 50.0
    return model


CONFIG = {"weight": "per_tensor"}


def test_the_fragile_layer_is_found_first_and_left_out_to_reach_the_floor() -> None:
    model = fragile()
    layers = scan(model, CONFIG, images(16))
    assert layers[0].name == "conv2"
    assert {layer.name for layer in layers} == {"conv1", "conv2", "hidden", "head"}
    mixed = mix(model, CONFIG, images(16), floor=layers[0].score + 3)
    done = qkernels.report(mixed)
    assert done.met and done.kept_float == ["conv2"]
    assert type(mixed.conv2) is nn.Conv2d
    assert isinstance(mixed.conv1, qkernels.QuantConv2d)
    again = qkernels.quantize(model, done.config, images(16))
    torch.testing.assert_close(again(images()), mixed(images()))


def test_a_floor_that_all_int8_reaches_keeps_no_layer_in_float() -> None:
    assert qkernels.report(mix(conv_net(), None, images(16), floor=1.0)).kept_float == []


def test_a_floor_out_of_reach_warns_and_keeps_the_best() -> None:
    with pytest.warns(
        UserWarning, match=r"floor 2 cannot be reached: the best mix has 1 and is kept"
    ):
        mixed = qkernels.report(mix(conv_net(), None, images(), floor=2.0, metric=lambda m: 1.0))
    assert not mixed.met and mixed.score == 1.0 and mixed.kept_float == []


def test_a_loose_budget_keeps_all_in_float_and_an_impossible_one_keeps_the_fastest() -> None:
    model = conv_net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loose = qkernels.report(mix(model, None, images(16), budget=10.0, example_inputs=images()))
    assert loose.met and len(loose.kept_float) == 4 and loose.seconds is not None
    with pytest.warns(UserWarning, match="budget of 1e-06 ms cannot be met"):
        tight = qkernels.report(mix(model, None, images(16), budget=1e-9, example_inputs=images()))
    faster = {layer.name for layer in tight.layers if layer.saved > 0}
    assert set(tight.kept_float) == {layer.name for layer in tight.layers} - faster


def test_the_score_of_a_scan_is_that_of_a_model_with_one_layer_converted() -> None:
    model, data = conv_net(), list(images(16).split(4))
    got = {layer.name: layer.score for layer in scan(model, None, iter(data), layers=["conv2"])}
    alone = qkernels.quantize(model, {"include": ["conv2"]}, data)
    assert got == {"conv2": pytest.approx(output_sqnr(model, alone, data), abs=1e-3)}


def test_bad_input_is_one_sentence() -> None:
    model = conv_net()
    with pytest.raises(ValueError, match="no layer 'conv3' to quantize; the nearest: conv"):
        scan(model, None, images(), layers=["conv3"])
    with pytest.raises(ValueError, match="give either floor or budget"):
        mix(model, None, images())
    with pytest.raises(ValueError, match="a budget needs example_inputs"):
        mix(model, None, images(), budget=1.0)
    with pytest.raises(ValueError, match="without a metric the scan needs calibration"):
        scan(model, "dynamic")
    with pytest.raises(ValueError, match="calibration data is empty"):
        scan(model, None, [])


def test_layers_that_a_forward_reaches_through_a_list_are_switched_too() -> None:
    class Walked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
            self.steps = [self.a, torch.tanh, self.b]

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = step(x)
            return x

    torch.manual_seed(0)
    model, x = Walked().eval(), torch.randn(32, 8)
    assert all(10 < layer.score < 80 for layer in scan(model, calibration=[x]))
    mixed = mix(model, calibration=[x], floor=10.0)
    assert all(step is torch.tanh or isinstance(step, QuantLinear) for step in mixed.steps)
