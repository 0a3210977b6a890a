"""Layer kinds, observers and plain forms of the user's own, from conversion to a loaded file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels.nn import LayerSpec, QuantConv2d, QuantLinear, register_layer, registry
from qkernels.plain import PlainForm, register
from qkernels.plain import registry as plain_registry
from qkernels.quantization import Observer, observers, register_observer

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    monkeypatch.setattr(observers, "_OBSERVERS", dict(observers._OBSERVERS))
    monkeypatch.setattr(plain_registry, "_MAKERS", dict(plain_registry._MAKERS))
    monkeypatch.setattr(plain_registry, "_KINDS", dict(plain_registry._KINDS))


def error(int8: nn.Module, model: nn.Module, x: Tensor = X) -> float:
    y, exact = int8(x).detach(), model(x).detach()
    return float((y - exact).norm() / exact.norm())


def round_trip(int8: nn.Module, make: Any, path: Path, x: Tensor = X) -> None:
    qk.save(int8, path)
    for place in (make, make()):
        assert torch.equal(qk.load(path, place)(x), int8(x))


class GatedLinear(nn.Linear):
    """A linear layer with a forward of its own that no ordinary layer computes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias).relu()


class QuantGatedLinear(QuantLinear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()

    def scheme(self) -> dict[str, Any]:
        return super().scheme() | {"kind": "QuantGatedLinear"}


class Product(nn.Module):
    """A layer of no class of torch's: a matrix under another name would not be found."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 8)), None
        self.in_features, self.out_features = 8, 4

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T).abs()


class QuantProduct(QuantLinear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()

    def scheme(self) -> dict[str, Any]:
        return super().scheme() | {"kind": "QuantProduct"}


def gated() -> nn.Module:
    return nn.Sequential(GatedLinear(8, 8), nn.Linear(8, 4))


def product() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), Product())


@pytest.mark.parametrize("scheme", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize(
    ("make", "float_class", "int8_class", "name"),
    [(gated, GatedLinear, QuantGatedLinear, "0"), (product, Product, QuantProduct, "1")],
)
def test_a_users_layer_is_converted_saved_and_loaded(
    make: Any, float_class: Any, int8_class: Any, name: str, scheme: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    before = qk.quantize(model, scheme, [X])
    assert type(before.get_submodule(name)) is float_class
    assert next(r for r in qk.report(before).layers if r.name == name).reason
    register_layer(LayerSpec(float_class=float_class, int8_class=int8_class, channel_axis=-1))
    int8 = qk.quantize(model, scheme, [X])
    assert isinstance(int8.get_submodule(name), int8_class)
    assert error(int8, model) < 0.03
    round_trip(int8, make, tmp_path / "m.safetensors")


def test_a_users_layer_can_be_excluded_overridden_and_shared() -> None:
    register_layer(LayerSpec(float_class=GatedLinear, int8_class=QuantGatedLinear, channel_axis=-1))
    model = nn.Sequential(GatedLinear(8, 8), nn.Linear(8, 8))
    model.append(model[0])
    int8 = qk.quantize(model, {"overrides": {"GatedLinear": {"activation": "dynamic"}}}, [X])
    assert int8[0] is int8[2]
    assert (int8[0].activation, int8[1].activation) == ("dynamic", "static")
    int8 = qk.quantize(model, {"activation": "dynamic", "exclude": ["GatedLinear"]})
    assert type(int8[0]) is GatedLinear


def test_a_later_spec_of_a_class_wins_and_a_subclass_without_a_forward_counts() -> None:
    class Loud(QuantLinear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 1

    class Mine(nn.Linear):
        pass

    register_layer(LayerSpec(float_class=nn.Linear, int8_class=Loud, channel_axis=-1))
    int8 = qk.quantize(nn.Sequential(nn.Linear(8, 4), Mine(4, 4)), "dynamic")
    assert all(isinstance(layer, Loud) for layer in int8)


def test_an_int8_class_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear is no QuantModule"):
        register_layer(LayerSpec(float_class=Product, int8_class=nn.Linear, channel_axis=-1))  # type: ignore[arg-type]


def test_a_batch_norm_folds_into_a_users_layer_along_its_axis() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))

    class QuantPadded(QuantConv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(F.pad(input, (1, 1, 1, 1), mode="reflect"))

        def scheme(self) -> dict[str, Any]:
            return super().scheme() | {"kind": "QuantPadded"}

    register_layer(LayerSpec(float_class=Padded, int8_class=QuantPadded, channel_axis=1))
    torch.manual_seed(0)
    model = nn.Sequential(Padded(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    model[1].running_var.uniform_(0.3, 2)
    x = torch.randn(2, 3, 8, 8)
    int8 = qk.quantize(model, "static", [x])
    assert isinstance(int8[0], QuantPadded)
    assert error(int8, model, x) < 0.03
    assert qk.report(int8).folded == [("0", "1")]


class Widest(Observer):
    """A range twice as wide as what was seen."""

    _far = 0.0

    def _update(self, x: Tensor, low: float, high: float) -> None:
        self._far = max(self._far, -low, high)

    def _range(self) -> tuple[float, float]:
        return -2 * self._far, 2 * self._far


def test_a_users_observer_chooses_ranges_and_an_unknown_one_lists_it(tmp_path: Path) -> None:
    register_observer("widest", Widest)
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    int8 = qk.quantize(model, {"observer": "widest", "symmetric": True}, [X])
    (layer,) = qk.report(int8).layers
    assert layer.input_scale == pytest.approx(2 * float(X.abs().max()) / 127, rel=0.01)
    mixed = qk.quantize(model, {"overrides": {"0": {"observer": "widest"}}}, [X])
    assert qk.report(mixed).layers[0].input_scale == pytest.approx(
        4 * float(X.abs().max()) / 255, rel=0.01
    )
    with pytest.raises(ValueError, match="widest"):
        qk.QuantConfig(observer="narrowest")
    round_trip(int8, lambda: nn.Sequential(nn.Linear(8, 4)), tmp_path / "m.safetensors")


class Blocks(nn.Module):
    """One parameter that holds the weights of two experts, of which each row takes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nk,eok->no", x, self.experts.abs()) / 2


class PlainBlocks(nn.Module):
    def __init__(self, experts: int, device: Any = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(8, 4, bias=False, device=device) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self.layers) / 2  # type: ignore[return-value]

    def scheme(self) -> dict[str, Any]:
        return {"kind": "PlainBlocks", "experts": len(self.layers)}

    @classmethod
    def from_scheme(cls, scheme: dict[str, Any]) -> PlainBlocks:
        return cls(scheme["experts"])


def made_plain(blocks: Blocks) -> PlainForm:
    plain = PlainBlocks(len(blocks.experts), device="meta")
    for layer, weight in zip(plain.layers, blocks.experts.detach().abs(), strict=True):
        layer.weight = nn.Parameter(weight)
    return PlainForm(plain, "blocks as linear layers")


@pytest.mark.parametrize("scheme", ["static", "dynamic", "weight_only"])
def test_a_users_plain_form_is_converted_saved_and_loaded(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(8, 8), Blocks())  # noqa: E731
    model = make().eval()
    assert type(qk.quantize(model, scheme, [X])[1]) is Blocks
    register(Blocks, made_plain, PlainBlocks)
    int8 = qk.quantize(model, scheme, [X])
    assert sum(isinstance(m, QuantLinear) for m in int8.modules()) == 3
    assert any("blocks as linear layers" in note for note in qk.report(int8).notes)
    assert error(int8, model) < 0.03
    round_trip(int8, make, tmp_path / "m.safetensors")


def test_a_file_with_a_kind_that_is_not_registered_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    register_layer(LayerSpec(float_class=GatedLinear, int8_class=QuantGatedLinear, channel_axis=-1))
    qk.save(qk.quantize(gated(), "dynamic"), path)
    del registry._SPECS[GatedLinear]
    with pytest.raises(ValueError, match=r"QuantGatedLinear.*register"):
        qk.load(path, gated)
    register(Blocks, made_plain, PlainBlocks)
    qk.save(qk.quantize(nn.Sequential(Blocks()), "dynamic"), path)
    plain_registry._KINDS.pop("PlainBlocks")
    with pytest.raises(ValueError, match=r"PlainBlocks.*register"):
        qk.load(path, lambda: nn.Sequential(Blocks()))
