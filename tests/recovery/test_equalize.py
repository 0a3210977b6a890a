import copy
from pathlib import Path

import pytest
import torch
from scaled_nets import badly_scaled, images, mobilenet, sqnr
from torch import Tensor, nn

import qkernels
from qkernels.nn import ClampedReLU
from qkernels.quantization import CheckpointError
from qkernels.recovery import equalize, find_chains
from qkernels.recovery.chains import by_input, scale_inputs


class Grouped(nn.Module):
    """Grouped conv, pool, flatten of [C, H, W], Linear: every layout a channel can have."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 12, 3, groups=4)
        self.c = nn.Linear(12 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


@pytest.mark.parametrize("relu6", [True, False])
def test_equalizing_keeps_the_function(relu6: bool) -> None:
    model = mobilenet(relu6)
    before = copy.deepcopy(model.state_dict())
    equal = equalize(model)
    done = qkernels.report(equal)
    torch.testing.assert_close(equal(images()), model(images()), rtol=1e-3, atol=1e-4)
    assert len(done.pairs) == 35
    assert any(isinstance(m, ClampedReLU) for m in equal.modules()) == relu6
    left = [n for n, m in equal.named_modules() if isinstance(m, nn.ReLU6)]
    assert left == (["features.0.2"] if relu6 else [])  # the first shortcut reads the stem too
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_groups_and_flattened_images_keep_their_channels() -> None:
    torch.manual_seed(0)
    model = Grouped().eval()
    assert [(c.first, c.second) for c in find_chains(model)] == [("a", "b"), ("b", "c")]
    equal = equalize(model)
    x = images(2, 12)
    torch.testing.assert_close(equal(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_by_input_and_scale_inputs_agree_with_a_forward(groups: int) -> None:
    conv = nn.Conv2d(4, 8, 3, groups=groups, bias=False)
    factor, x = torch.rand(4) + 0.5, torch.randn(2, 4, 6, 6)
    expected = conv(x * factor.view(1, -1, 1, 1))
    got = nn.functional.conv2d(x, scale_inputs(conv, factor), groups=groups)
    torch.testing.assert_close(got, expected)
    for c in range(4):  # the values that meet channel c are those whose change reaches the output
        kept = scale_inputs(conv, torch.eye(4)[c]).abs().sum()
        torch.testing.assert_close(by_input(conv, 4)[c].abs().sum(), kept)


def test_both_layers_of_a_pair_end_with_equal_ranges() -> None:
    equal = equalize(badly_scaled(mobilenet(relu6=False)))
    done = qkernels.report(equal)
    for first, second in done.pairs:
        one, two = equal.get_submodule(first), equal.get_submodule(second)
        low = one.weight.flatten(1).abs().amax(1)
        torch.testing.assert_close(low, by_input(two, len(low)).abs().amax(1), rtol=0.01, atol=1e-6)
    assert max(done.pairs.values()) > 100
    assert "channels moved by up to" in str(done)


def test_per_tensor_int8_collapses_on_bad_channels_and_equalization_restores_it() -> None:
    model = badly_scaled(mobilenet(relu6=False))
    x, expected = images(), model(images())

    def error(net: nn.Module) -> float:
        return sqnr(expected, qkernels.quantize(net, {"weight": "per_tensor"}, x)(x))

    collapsed, restored = error(model), error(equalize(model))
    never_spoiled = error(mobilenet(relu6=False))
    assert collapsed < 1 < 4 < restored
    assert restored > never_spoiled - 1


def test_layers_read_twice_shared_or_behind_a_sigmoid_are_no_chain() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(torch.relu(y)) + y + self.d(torch.sigmoid(self.c(x)))

    assert find_chains(Forked()) == []
    shared = nn.Linear(4, 4)
    assert find_chains(nn.Sequential(shared, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), shared)) == []
    done = qkernels.report(equalize(Forked()))
    assert "no two layers follow each other" in str(done)


def test_a_dead_channel_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    model[0].weight.data[1] = 0
    model[2].weight.data[:, 2] = 0
    x = torch.randn(8, 4)
    equal = equalize(model)
    assert all(p.isfinite().all() for p in equal.parameters())
    torch.testing.assert_close(equal(x), model(x))


def test_high_biases_are_absorbed_where_nothing_is_cut_and_nothing_padded() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
    model = nn.Sequential(conv, norm, nn.ReLU6(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x = images(8, 8)
    for _ in range(50):
        model.train()(x)
    norm.weight.data.fill_(0.1)
    norm.bias.data.fill_(2.0)
    model.eval()
    with torch.no_grad():
        lower, whole = (equalize(model, absorb=a)[0].bias.abs().max() for a in (True, False))
    assert lower < whole
    equal = equalize(model, absorb=True)
    done = qkernels.report(equal)
    assert done.absorbed == {("0", "3"): 8}
    assert sqnr(model(x), equal(x)) > 30
    model[3] = nn.Conv2d(8, 4, 3, padding=1)
    assert qkernels.report(equalize(model, absorb=True)).absorbed == {}


def test_an_equalized_int8_checkpoint_rebuilds_itself_with_the_same_bits(tmp_path: Path) -> None:
    equal = equalize(mobilenet())
    int8 = qkernels.quantize(equal, calibration=images())
    kwargs = {"num_classes": 10, "width_mult": 0.25}
    path = tmp_path / "m.safetensors"
    qkernels.save(int8, path, architecture={"name": "mobilenet_v2", "kwargs": kwargs})
    loaded = qkernels.load(path)
    assert torch.equal(loaded(images()), int8(images()))
    with pytest.raises(CheckpointError, match=r"clamped a ReLU6 .* the model lacks"):
        qkernels.load(path, mobilenet(relu6=False))
