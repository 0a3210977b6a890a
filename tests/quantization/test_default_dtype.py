"""Under another default dtype everything must have the bits that it has under float32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import conv_net, images
from torch import Tensor, nn

import qkernels as qk
from qkernels.qat import convert_qat, prepare_qat
from qkernels.recovery import equalize, smooth


@pytest.fixture(params=[torch.bfloat16, torch.float64, torch.float16], ids=str, autouse=True)
def default(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield request.param
    torch.set_default_dtype(torch.float32)


def under(dtype: Any, make: Any) -> Any:
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


def attending() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dtype=torch.float32)
    return nn.Sequential(layer, nn.Linear(16, 4, dtype=torch.float32)).eval()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16, dtype=torch.float32)
        self.lstm = nn.LSTM(16, 8, batch_first=True, dtype=torch.float32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lstm(self.table(ids))[0]


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent().eval()


MODELS: dict[str, tuple[Any, Tensor]] = {
    "convolutions": (conv_net, images()),
    "attention": (attending, torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))),
    "recurrent": (recurrent, torch.arange(12).view(3, 4)),
}


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_quantize_save_and_load_give_the_same_bits(
    name: str, scheme: str, default: Any, tmp_path: Path
) -> None:
    make, x = MODELS[name]
    model = make()
    expected = qk.quantize(model, scheme, [x])
    int8 = under(default, lambda: qk.quantize(model, scheme, [x]))
    for key, value in int8.state_dict().items():
        assert value.dtype == expected.state_dict()[key].dtype
        assert torch.equal(value, expected.state_dict()[key])
    assert torch.equal(under(default, lambda: int8(x)), expected(x))
    qk.save(int8, tmp_path / "m.safetensors")
    loaded = under(default, lambda: qk.load(tmp_path / "m.safetensors", make()))
    assert torch.equal(loaded(x), expected(x))


def test_training_for_int8_has_the_same_bits(default: Any) -> None:
    model, x = conv_net(), images()

    def trained() -> tuple[nn.Module, nn.Module]:
        prepared = prepare_qat(model, "static", [x]).eval()
        return prepared, convert_qat(prepared)

    for one, other in zip(under(default, trained), trained(), strict=True):
        assert torch.equal(one(x), other(x))


@pytest.mark.parametrize(
    "observer", ["minmax", "moving_average", "percentile", "mse", "entropy", "global"]
)
def test_every_observer_finds_the_same_range(observer: str, default: Any) -> None:
    model, x = conv_net(), images()
    config = {"observer": observer}
    layers = [
        [(r.input_scale, r.input_zero_point) for r in qk.report(int8).layers]
        for int8 in (
            under(default, lambda: qk.quantize(model, config, [x])),
            qk.quantize(model, config, [x]),
        )
    ]
    assert layers[0] == layers[1]


def test_equalize_and_smooth_change_weights_by_the_same_bits(default: Any) -> None:
    model, x = conv_net(), images()
    capped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3)).eval()
    for step in (
        lambda: equalize(model, x),
        lambda: equalize(capped, x),
        lambda: smooth(model, [x]),
    ):
        one, other = under(default, step), step()
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.parametrize("scheme", ["static", "dynamic", "weight_only"])
def test_a_layer_made_by_hand_can_be_called(scheme: str, default: Any) -> None:
    layer = under(default, lambda: qk.QuantLinear(4, 3, activation=scheme))
    assert layer.weight_scale.dtype == torch.float32
    assert layer(torch.ones(2, 4)).shape == (2, 3)
