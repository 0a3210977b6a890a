"""Bias correction and learned rounding, on int8 models."""

import pytest
import torch
from scaled_nets import images, mobilenet, sqnr
from torch import Tensor, nn

import qkernels
from qkernels.quantization import layer_errors
from qkernels.recovery import correct_bias_, round_weights_


def means(model: nn.Module, name: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, y: seen.append(y))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0].mean((0, 2, 3))


def test_bias_correction_restores_the_channel_means_of_every_layer() -> None:
    model, x = mobilenet(), images(32)
    int8 = qkernels.quantize(model, {"weight": "per_tensor"}, x)
    before = sqnr(model(x), int8(x))
    correct_bias_(int8, model, iter(x.split(8)))  # an iterator is read once, kept, read again
    done = qkernels.report(int8).shifts
    assert len(done) == 53 and max(done.values()) > 0
    name, norm = "features.3.conv.2", "features.3.conv.3"
    torch.testing.assert_close(means(int8, name, x), means(model, norm, x), rtol=0, atol=1e-4)
    assert sqnr(model(x), int8(x)) > before


def test_bias_correction_gives_a_bias_to_a_layer_without_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    x = torch.randn(64, 8)
    int8 = qkernels.quantize(model, calibration=x)
    correct_bias_(int8, model, x)
    torch.testing.assert_close(int8(x).mean(0), model(x).mean(0), rtol=0, atol=1e-5)


def test_bias_correction_of_a_layer_called_twice_weighs_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = self.layer(x)
            return first, self.layer(torch.relu(first) + 3)

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(256, 8)
    int8 = qkernels.quantize(model, {"weight": "per_tensor"}, x)

    @torch.no_grad()
    def shift() -> float:
        """Largest departure of a channel's mean over both calls."""
        return float((torch.cat(int8(x)) - torch.cat(model(x))).mean(0).abs().max())

    before = shift()
    correct_bias_(int8, model, x)
    assert shift() < 0.5 * before


def test_learned_rounding_lowers_each_layers_error_and_keeps_scales() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=2), nn.Flatten(), nn.Linear(16 * 36, 5),
    ).eval()  # fmt: skip
    x = torch.rand(64, 3, 16, 16)
    int8 = qkernels.quantize(model, calibration=x)
    scales = {n: m.weight_scale.clone() for n, m in int8.named_modules() if hasattr(m, "scheme")}
    before = {e.name: e.sqnr_db for e in layer_errors(model, int8, x)}
    weight = int8[0].int8_weight
    left = qkernels.report(round_weights_(int8, model, x)).errors
    assert list(left) == ["0", "3", "5", "7"]
    assert all(share <= 1 for share in left.values())
    assert min(left.values()) < 0.8
    assert (
        int((int8[0].int8_weight.int() - weight.int()).abs().max()) == 1
    )  # up or down, no further
    for name, scale in scales.items():
        assert torch.equal(int8.get_submodule(name).weight_scale, scale)
    after = {e.name: e.sqnr_db for e in layer_errors(model, int8, x)}
    assert sum(after.values()) > sum(before.values())


@pytest.mark.parametrize("recover", [correct_bias_, round_weights_])
def test_another_float_model_or_no_data_is_refused(recover) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    int8 = qkernels.quantize(model, calibration=torch.randn(8, 4))
    with pytest.raises(ValueError, match=r"the float model .*'0'"):
        recover(int8, nn.Identity(), torch.randn(8, 4))
    with pytest.raises(ValueError, match="calibration data is empty"):
        recover(int8, model, [])
