"""Activations between int8 layers as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels import models, ops, reference
from qkernels.graph import tables

FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.LeakyReLU(0.1),
]  # fmt: skip


def quantized(net: nn.Module, x: Tensor) -> nn.Module:
    return qk.quantize(net.eval(), {"activation": "static"}, [x])


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
@pytest.mark.parametrize("output", [(0.02, -120), (0.05, 0), (0.004, -128), (1.0, 5)])
def test_no_input_outside_the_range_of_a_table_would_change_its_output(
    function: Callable[[Tensor], Tensor], output: tuple[float, int]
) -> None:
    scale, zero = tables.input_format(function, output)
    assert -128 <= zero <= 127 and scale > 0
    x = torch.linspace(-60, 60, 4001)
    inside = x.clamp((-128 - zero) * scale, (127 - zero) * scale)
    y_scale, y_zero = torch.tensor(output[0]), torch.tensor(output[1], dtype=torch.int32)
    levels = [reference.quantize(function(v), y_scale, y_zero).int() for v in (x, inside)]
    assert (levels[0] - levels[1]).abs().max() <= 1  # the ends are rounded to the grid
    table = tables.table_of(function, (scale, zero), output)
    q = torch.arange(-128, 128, dtype=torch.int8)
    assert torch.equal(ops.lookup(q, table), table)


@pytest.mark.parametrize("shape", [(0,), (3, 5), (2, 70, 3, 4)])
def test_lookup_keeps_values_and_layout(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    table = torch.randint(-128, 128, (256,), dtype=torch.int8, generator=generator)
    for v in [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]:
        y = ops.lookup(v, table)
        assert torch.equal(y, reference.lookup(x, table)) and y.stride() == v.stride()
        torch.library.opcheck(torch.ops.qkernels.lookup, (v, table))
    with pytest.raises(RuntimeError, match=r"table is int8 \[255\]"):
        ops.lookup(x, table[:255])


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.act = nn.Conv2d(16, 4, 1), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.hardswish(self.b(self.act(self.a(x)))))


def test_exact_keeps_the_function_in_float_and_every_bit() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 9)
    model = quantized(Swish(), x)
    chained = qk.compile(model, x, exact=True)
    assert torch.equal(chained(x), model(x))
    assert chained.report.unfused[:2] == ["act (silu)", "hardswish"]


def kinds(chained: Any, x: Tensor) -> list[str]:
    return [step["kind"] for step in chained.program.program.steps(tuple(x.shape))]


def test_a_function_behind_a_layer_is_computed_in_float_before_the_value_is_rounded() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 9)
    model = quantized(Swish(), x)
    chained = qk.compile(model, x)
    assert [row.writes for row in chained.report.layers] == ["int8", "int8", "float32"]
    assert chained.report.layers[0].fused == ("act (silu)",)
    assert kinds(chained, x)[:3] == ["conv2d"] * 3
    got, expected = chained(x), model(x)
    assert float((got - expected).norm() / expected.norm()) < 1e-3
    y = torch.randn(3, 3, 7, 5)
    assert torch.equal(chained(y[:1]), chained(y)[:1])
    assert (chained.program.program(y.numpy()) == chained(y).numpy()).all()


class Pooled(Swish):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.hardswish(F.max_pool2d(self.b(self.act(self.a(x)).relu()), 2)))


def test_a_function_of_int8_that_no_layer_wrote_becomes_a_table_with_a_small_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 9)
    model = quantized(Pooled(), x)
    chained = qk.compile(model, x)
    assert chained.report.layers[0].fused == ("act (silu)", "relu")
    assert "lookup" in kinds(chained, x)
    got, expected = chained(x), model(x)
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.05


def test_the_gelu_of_an_encoder_is_a_part_of_its_layer() -> None:
    torch.manual_seed(0)
    model = models.create("vit", image_size=16, depth=2, width=48, heads=4, patch=4).eval()
    x = torch.randn(4, 3, 16, 16)
    int8 = quantized(model, x)
    exact, fast = qk.compile(int8, x, exact=True), qk.compile(int8, x)
    assert torch.equal(exact(x), int8(x))
    assert "unary" not in kinds(fast, x) and "lookup" not in kinds(fast, x)
    with torch.no_grad():
        assert float((fast(x) - int8(x)).norm() / int8(x).norm()) < 0.01


def test_a_sum_of_tokens_loses_nothing_to_int8() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 2, 32, batch_first=True, dropout=0.0
    )  # its norms follow its sums
    x = torch.randn(4, 6, 16)
    int8 = quantized(nn.Sequential(layer, nn.Linear(16, 4)), x)
    fast = qk.compile(int8, x)
    assert fast.program is not None
    assert fast.report.sqnr_db["output"] > 50
