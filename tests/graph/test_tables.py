"""Activations between int8 layers as tables."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels import ops, reference
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


def test_not_exact_takes_int8_to_int8_in_one_program_with_a_small_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 9)
    model = quantized(Swish(), x)
    chained = qk.compile(model, x)
    assert [row.writes for row in chained.report.layers] == ["int8", "int8", "float32"]
    assert chained.report.unfused == [] and chained.program is not None
    got, expected = chained(x), model(x)
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.05
    y = torch.randn(3, 3, 7, 5)
    assert torch.equal(chained(y[:1]), chained(y)[:1])
    assert (chained.program.program(y.numpy()) == chained(y).numpy()).all()


def test_the_gelu_of_an_encoder_becomes_a_table_and_its_products_one() -> None:
    torch.manual_seed(0)
    model = qk.models.create("vit", image_size=16, depth=2, width=48, heads=4, patch=4).eval()
    x = torch.randn(4, 3, 16, 16)
    int8 = quantized(model, x)
    exact, fast = qk.compile(int8, x, exact=True), qk.compile(int8, x)
    assert torch.equal(exact(x), int8(x))
    assert not any("gelu" in name for name in fast.report.unfused)
    with torch.no_grad():
        assert float((fast(x) - int8(x)).norm() / int8(x).norm()) < 0.1
