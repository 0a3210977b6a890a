import copy
from typing import Any

import pytest
import torch
from nets import ConvNet, Untraceable, conv_net, images, lively
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import qkernels as qk
from qkernels.nn import QuantConv2d, QuantLinear
from qkernels.quantization import QuantConfig, quantize, quantize_
from qkernels.quantization.fold import FoldedBatchNorm
from qkernels.quantization.observers import MinMax

LAYERS = ["conv1", "conv2", "hidden", "head"]


def snr(expected: Tensor, got: Tensor) -> float:
    return (10 * torch.log10(expected.square().sum() / (expected - got).square().sum())).item()


@pytest.mark.parametrize("weight", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("activation", ["static", "dynamic", "weight_only"])
def test_layers_become_int8_and_the_output_stays_close(activation: str, weight: str) -> None:
    model = conv_net()
    data = images(16) if activation == "static" else None
    converted = quantize(model, {"activation": activation, "weight": weight}, data)
    report = qk.report(converted)
    names = [layer.name for layer in report.converted]
    assert names == (["hidden", "head"] if activation == "weight_only" else LAYERS)
    assert all("no weight_only form" in layer.reason for layer in report.skipped)
    for name in names:
        layer = converted.get_submodule(name)
        assert isinstance(layer, QuantConv2d if "conv" in name else QuantLinear)
        assert layer.int8_weight.dtype == torch.int8
        assert (layer.weight_scale.unique().numel() == 1) == (weight == "per_tensor")
        assert layer.scheme()["activation"] == activation
        tensors = layer.state_dict().values()
        assert all(t.dim() <= 1 for t in tensors if t.is_floating_point())
    with torch.no_grad():
        assert snr(model(images()), converted(images())) > 20


@pytest.mark.parametrize("config", [None, "static", {}, QuantConfig()])
def test_the_model_given_is_not_touched_unless_inplace(config: Any) -> None:
    model = conv_net().train()
    before = copy.deepcopy(model.state_dict())
    converted = quantize(model, config, images())
    assert model.training
    assert not converted.training
    assert type(model.conv1) is nn.Conv2d
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    same = quantize_(model, config, images())
    assert same is model
    assert isinstance(model.conv1, QuantConv2d)
    with torch.no_grad():
        assert torch.equal(same(images()), converted(images()))


def test_static_ranges_come_from_the_folded_float_model() -> None:
    model = conv_net()
    converted = quantize(model, {"observer": "minmax"}, images(8))
    report = qk.report(converted)
    seen: list[Tensor] = []
    model.conv2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(images(8))
    observer = MinMax()
    observer.observe(seen[0])
    scale, zero_point = observer.qparams()
    entry = report.converted[1]
    assert converted.conv2.input_scale.item() == entry.input_scale == pytest.approx(scale)
    assert converted.conv2.input_zero_point.item() == entry.input_zero_point == zero_point == -128


def test_overrides_reach_their_layers_and_dynamic_ones_need_no_data() -> None:
    converted = quantize(
        conv_net(),
        {"overrides": {"Linear": {"activation": "dynamic"}, "conv1": {"symmetric": True}}},
        images(),
    )
    report = qk.report(converted)
    assert [layer.scheme["activation"] for layer in report.converted if layer.scheme] == [
        *("static", "static", "dynamic", "dynamic")
    ]
    assert converted.conv1.input_zero_point.item() == 0
    assert converted.conv2.input_zero_point.item() == -128
    assert converted.head.input_scale is None


def test_static_without_data_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"4 layers are static.*'conv1'.*calibration"):
        quantize(conv_net())


def test_unused_data_and_unmatched_patterns_are_reported() -> None:
    config = {"activation": "dynamic", "exclude": ["stem.*"], "overrides": {"Lnear": {}}}
    report = qk.report(quantize(conv_net(), config, images()))
    assert any("was not used" in note for note in report.notes)
    assert any("'stem.*'" in note for note in report.notes)
    assert any("'Lnear'" in note for note in report.notes)


def test_excluded_layers_keep_their_batch_norm() -> None:
    converted = quantize(conv_net(), {"exclude": ["conv1", "Linear"]}, images())
    report = qk.report(converted)
    assert [layer.name for layer in report.converted] == ["conv2"]
    assert {layer.name: layer.reason for layer in report.skipped} == {
        "conv1": "excluded by 'conv1'",
        "hidden": "excluded by 'Linear'",
        "head": "excluded by 'Linear'",
    }
    assert isinstance(converted.bn1, nn.BatchNorm2d)
    assert isinstance(converted.bn2, FoldedBatchNorm)
    assert report.folded == [("conv2", "bn2")]


def test_folding_can_be_switched_off() -> None:
    converted = quantize(conv_net(), {"fold_batch_norm": False}, images())
    report = qk.report(converted)
    assert report.folded == []
    assert isinstance(converted.bn1, nn.BatchNorm2d)
    with torch.no_grad():
        assert snr(conv_net()(images()), converted(images())) > 20


def test_a_model_with_nothing_to_convert_is_an_error() -> None:
    with pytest.raises(ValueError, match="no Conv2d or Linear"):
        quantize(nn.Sequential(nn.ReLU()), "dynamic")
    with pytest.raises(ValueError, match="0: no int8 layer for Bilinear"):
        quantize(nn.Sequential(nn.Bilinear(3, 4, 1)), "dynamic")
    with pytest.raises(ValueError, match="excluded by"):
        quantize(nn.Sequential(nn.Linear(3, 4)), {"activation": "dynamic", "exclude": ["*"]})
    converted = quantize(nn.Sequential(nn.Linear(3, 4)), "dynamic")
    with pytest.raises(ValueError, match="already int8"):
        quantize(converted, "dynamic")


def test_a_root_that_is_a_layer_is_converted() -> None:
    converted = quantize(nn.Linear(8, 3), None, torch.randn(4, 8))
    report = qk.report(converted)
    assert isinstance(converted, QuantLinear)
    assert report.converted[0].name == ""
    assert isinstance(quantize(nn.Conv2d(3, 4, 1), "dynamic"), QuantConv2d)


class MyLinear(nn.Linear):
    pass


class Odd(nn.Module):
    """One of each layer that must stay float, and a Linear that may go."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Linear(4, 4)
        self.mine = MyLinear(4, 4)
        self.embed = nn.Embedding(5, 4)
        self.up = nn.ConvTranspose2d(3, 3, 2)
        self.conv1d = nn.Conv1d(3, 3, 2)
        self.conv3d = nn.Conv3d(3, 3, 2)
        self.lstm = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.pruned = nn.Linear(4, 4)
        prune.l1_unstructured(self.pruned, "weight", 0.5)
        self.spectral = parametrizations.spectral_norm(nn.Linear(4, 4))
        self.empty = nn.Linear(0, 4)
        self.in_double = nn.Linear(4, 4).double()
        self.wide = nn.Linear(65536, 1)
        self.free = nn.Parameter(torch.ones(2, 2))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mine(self.good(x)) + self.pruned(x) + self.spectral(x)
        return self.attention(x, x, x)[0]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_every_layer_left_in_float_has_its_reason() -> None:
    model = Odd().eval()
    with torch.no_grad():
        expected = model(torch.ones(3, 2, 4))
    report = qk.report(converted := quantize(model, "dynamic"))
    reasons = {layer.name: layer.reason for layer in report.skipped}
    done = {layer.name for layer in report.converted}
    assert {"good", "mine", "embed", "up", "conv1d", "conv3d", "pruned", "spectral"} <= done
    assert {"attention.q_proj", "attention.out_proj", "lstm.ih_l0"} <= done
    assert reasons[""] == "no int8 layer for Odd, which holds free itself"
    assert "empty" in reasons["empty"]
    assert "torch.float64" in reasons["in_double"]
    assert "65536 products" in reasons["wide"]
    assert "norm" not in reasons
    with torch.no_grad():
        assert snr(expected, converted(torch.ones(3, 2, 4))) > 20


def test_strict_raises_for_what_stays_float_unless_excluded() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Bilinear(2, 3, 4))
    with pytest.raises(ValueError, match=r"strict: 1 layers would stay float \(1: no int8 layer"):
        quantize(model, {"activation": "dynamic", "strict": True})
    quantize(model, {"activation": "dynamic", "strict": True, "exclude": ["Bilinear"]})
    assert type(model[0]) is nn.Linear


class Detour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_static_layers_that_no_data_reaches_stay_float() -> None:
    converted = quantize(Detour(), None, torch.randn(2, 4))
    report = qk.report(converted)
    assert type(converted.unused) is nn.Linear
    assert report.skipped[0].name == "unused"
    assert "never reached" in report.skipped[0].reason
    with pytest.raises(ValueError, match="unused: the calibration data never reached it"):
        quantize(Detour(), {"strict": True}, torch.randn(2, 4))
    with pytest.raises(ValueError, match="reached no layer"):
        quantize(Detour(), None, lambda model: None)


def test_a_shared_module_is_converted_once_and_stays_shared() -> None:
    fc = nn.Linear(4, 4)
    model = nn.Sequential(fc, nn.ReLU(), fc)
    converted = quantize(model, None, torch.randn(3, 4))
    report = qk.report(converted)
    assert converted[0] is converted[2]
    assert isinstance(converted[0], QuantLinear)
    assert len(report.converted) == 1
    assert report.converted[0].aliases == ["2"]


@pytest.mark.parametrize("exclude", [[], ["embed"]])
def test_tied_weights_stay_tied_where_both_are_converted_and_are_reported_elsewhere(
    exclude: list[str],
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    converted = quantize(Tied(), {"activation": "dynamic", "exclude": exclude})
    report = qk.report(converted)
    assert isinstance(converted.head, QuantLinear)
    if exclude:
        assert any("embed.weight, head.weight" in note for note in report.notes)
    else:
        assert converted.embed.packed_weight is converted.head.packed_weight
        assert report.bytes_after < 6 * 4 + 3 * 6 * 4


def test_a_transformer_runs_its_int8_layers_and_not_the_fused_float_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 16)
    converted = quantize(model, {"observer": "minmax"}, x)
    report = qk.report(converted)
    parts = [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")] + ["linear1", "linear2"]
    assert [r.name for r in report.converted] == [f"layers.{i}.{p}" for i in (0, 1) for p in parts]
    calls: list[int] = []
    converted.layers[1].linear2.register_forward_hook(lambda *args: calls.append(1))
    with torch.inference_mode():
        assert snr(model(x), converted(x)) > 25
    assert calls == [1]


def test_calibration_errors_name_the_layer_and_leave_the_model_alone() -> None:
    model = conv_net()
    x = images()
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="'conv1' holds 1 NaN"):
        quantize(model, None, [images(), x])
    assert type(model.conv1) is nn.Conv2d
    with pytest.raises(ValueError, match="empty"):
        quantize(model, None, [])


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = ConvNet()
    with pytest.raises(ValueError, match="meta device"):
        quantize(model, "dynamic")


def test_an_untraceable_model_is_converted_with_its_batch_norms() -> None:
    class Branching(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > -1e9 else -x)

    model = Untraceable(lively(Branching()))
    converted = quantize(model, None, images())
    report = qk.report(converted)
    assert len(report.converted) == 4
    assert report.folded == []
    assert any("cannot be captured" in note for note in report.notes)
    with torch.no_grad():
        assert snr(model(images()), converted(images())) > 20


def test_hooks_of_a_converted_layer_go_on_running() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].register_forward_hook(lambda module, args, output: output + 100)
    converted = quantize(model, None, torch.randn(2, 4))
    assert converted(torch.randn(2, 4)).min() > 50


def test_the_converted_model_can_be_copied() -> None:
    converted = quantize(conv_net(), None, images())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(converted)(images()), converted(images()))
