"""Average pooling of int8 as a step of a program."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program_bytes import payload, seal
from torch import nn

import qkernels as qk
from qkernels import ops
from qkernels.graph.program import TorchProgram
from qkernels.program import Program
from qkernels.program.format import Step, Value, assemble


def pooled(
    pool: nn.AvgPool2d, size: tuple[int, ...], seed: int = 0
) -> tuple[TorchProgram, torch.Tensor, torch.Tensor]:
    """A program that averages int8, an input, and what the operator makes of it."""
    torch.manual_seed(seed)
    x = torch.randn(*size)
    scale, zero = 0.03, 7
    (kh, kw), (sh, sw), (ph, pw) = (
        (v, v) if isinstance(v, int) else v for v in (pool.kernel_size, pool.stride, pool.padding)
    )
    q = ops.quantize(x, torch.tensor(scale), torch.tensor(zero, dtype=torch.int32))
    y = ops.avg_pool2d(
        q, zero, [kh, kw], [sh, sw], [ph, pw], pool.ceil_mode, pool.count_include_pad
    )
    expected = ops.dequantize(y, torch.tensor(scale), torch.tensor(zero, dtype=torch.int32))
    values = [
        Value(3, 4, "float32", callers=True, nhwc_only=True), Value(3, 4, "int8"), Value(3, 4, "int8"),
        Value(3, 4, "float32"), Value(3, 4, "float32", callers=True, planar=True),
    ]  # fmt: skip
    inverse = float(torch.tensor(1.0) / torch.tensor(scale))
    steps = [
        Step("unary", "in", 0, 1, (), {"out_inv_scale": inverse, "out_zero": zero}),
        Step("avg_pool", "pool", 1, 2, (), {
            "kh": kh, "kw": kw, "stride_h": sh, "stride_w": sw, "pad_h": ph, "pad_w": pw, "x_zero": zero,
            "ceil_mode": int(pool.ceil_mode), "count_include_pad": int(pool.count_include_pad),
        }),
        Step("unary", "out", 2, 3, (), {"x_scale": scale, "x_zero": zero}),
        Step("planar", "planes", 3, 4),
    ]  # fmt: skip
    return (
        TorchProgram(torch.from_numpy(assemble(values, steps, [0], [4]))),
        x,
        expected.contiguous(),
    )


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padded=st.booleans(),
    ceil_mode=st.booleans(),
    count_include_pad=st.booleans(),
    seed=st.integers(0, 100),
)
def test_a_step_of_average_pooling_gives_the_bits_of_the_operator(
    kernel: tuple[int, int],
    stride: int,
    padded: bool,
    ceil_mode: bool,
    count_include_pad: bool,
    seed: int,
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
    pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad)
    program, x, expected = pooled(pool, (2, 3, 9, 11), seed)
    assert "avg_pool" in [step["kind"] for step in program.program.steps(tuple(x.shape))]
    for threads in (1, 2):
        program.program.threads = threads
        assert np.array_equal(program.program(x.numpy()), expected.numpy())
    assert torch.equal(program(x), expected)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kh": 2**13, "kw": 2**12}, "too many values"),
        ({"x_zero": 128}, "a zero point outside"),
        ({"pad_h": 2}, "more than half of its window"),
        ({"stride_w": 0}, "its window is empty"),
    ],
)
def test_a_forged_average_is_refused(fields: dict[str, int], sentence: str) -> None:
    program, x, _ = pooled(nn.AvgPool2d(3, 2, 1), (1, 3, 8, 8))
    kinds = [step["kind"] for step in program.program.steps(tuple(x.shape))]
    data = program.program.data.copy()
    for name, value in fields.items():
        payload(data, kinds.index("avg_pool"))[name] = value
    seal(data)
    with pytest.raises(ValueError, match=sentence):
        Program(data)


def test_a_divisor_of_its_own_stays_torchs_and_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    chained = qk.compile(qk.quantize(net.eval(), "static", [x]), x)
    assert chained.report.unfused == ["1 (avg_pool2d)"]
