"""A transformer encoder, quantized, its query, key and value merged, and chained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels import models
from qkernels.graph.fuse import side_by_side

WIDTH, TOKENS = 24, 7
SCHEMES = ["static", "dynamic"]


def tokens(batch: int = 2, count: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randn(batch, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def int8_encoder(activation: str, depth: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = models.TransformerEncoder(WIDTH, depth, heads=3).eval()
    return qk.quantize(model, activation, [tokens()] if activation == "static" else None)


@pytest.mark.parametrize("activation", [*SCHEMES, "weight_only"])
def test_every_linear_layer_becomes_int8_and_stays_close(activation: str) -> None:
    torch.manual_seed(0)
    model = models.TransformerEncoder(WIDTH, 2, heads=3).eval()
    calibration = [tokens()] if activation == "static" else None
    int8 = qk.quantize(model, {"activation": activation, "strict": True}, calibration)
    report = qk.report(int8)
    assert sum(layer.action == "converted" for layer in report.layers) == 2 * 6
    with torch.no_grad():
        exact = model(tokens())
    assert (int8(tokens()) - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("activation", SCHEMES)
def test_a_chained_encoder_keeps_every_bit(activation: str) -> None:
    model = int8_encoder(activation)
    chained = qk.compile(model, tokens(), exact=True)
    assert len(chained.report.layers) == 2 * 4  # query, key and value are one
    for batch, count in ((1, TOKENS), (3, TOKENS), (2, 12)):
        x = tokens(batch, count, seed=batch)
        assert torch.equal(chained(x), model(x))


@pytest.mark.parametrize("activation", [*SCHEMES, "weight_only"])
def test_merged_layers_compute_the_bits_of_each(activation: str) -> None:
    torch.manual_seed(0)
    scale = {"input_scale": 0.03, "input_zero_point": 5} if activation == "static" else {}
    layers = [
        qk.QuantLinear.from_float(nn.Linear(37, n, bias), activation=activation, **scale)
        for n, bias in ((5, True), (21, False), (16, True))
    ]
    x = torch.randn(3, 4, 37)
    merged = side_by_side(layers)
    assert torch.equal(merged(x), torch.cat([layer(x) for layer in layers], -1))


class Branches(nn.Module):
    """Layers on one value that must not be merged, for two reasons, and two that may."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, 8) for _ in range(4))
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        relu, chained = torch.relu(self.a(x)), self.last(self.b(x))
        return relu * chained * torch.tanh(self.c(x)) * torch.tanh(self.d(x))


def test_layers_that_chaining_serves_better_are_left_alone() -> None:
    torch.manual_seed(0)
    model = qk.quantize(Branches().eval(), "static", [tokens()])
    chained = qk.compile(model, tokens(), exact=True)
    assert {row.name for row in chained.report.layers} == {"a", "b", "c_d", "last"}
    assert torch.equal(chained(tokens()), model(tokens()))


def test_layers_of_other_scales_are_not_merged() -> None:
    model = int8_encoder("static", depth=1)
    model.layers[0].attention.key.input_scale *= 2
    chained = qk.compile(model, tokens(), exact=True)
    names = {row.name for row in chained.report.layers}
    assert {"layers.0.attention.query_value", "layers.0.attention.key"} <= names
    assert torch.equal(chained(tokens()), model(tokens()))


def test_the_report_says_where_int8_is_interrupted() -> None:
    report = qk.compile(int8_encoder("static", depth=1), tokens(), exact=True).report
    why = {row.name: row.why for row in report.layers}
    assert why["layers.0.attention.query_key_value"].startswith("read in float by ")
    assert "gelu" in why["layers.0.fc1"]
    left = set(report.unfused)
    assert {"layers.0.attention (scaled_dot_product_attention)", "norm (layer_norm)"} <= left


@pytest.mark.parametrize("activation", SCHEMES)
def test_a_vision_transformer_keeps_every_bit(activation: str) -> None:
    torch.manual_seed(0)
    model = models.create("vit", image_size=8, width=12, depth=1, heads=3)
    x = torch.randn(2, 3, 8, 8)
    int8 = qk.quantize(model, activation, [x] if activation == "static" else None)
    assert torch.equal(qk.compile(int8, x, exact=True)(x), int8(x))


def test_a_size_that_does_not_divide_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="width=20 must be a multiple of heads=6"):
        models.TransformerEncoder(20)
    with pytest.raises(ValueError, match="image_size=30 must be a multiple of patch=4"):
        models.create("vit", image_size=30)
