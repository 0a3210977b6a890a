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
from qkernels.graph.chain import chain
from qkernels.graph.layers import Int8AvgPool2d
from qkernels.graph.lower import lower
from qkernels.graph.program import TorchProgram
from qkernels.program import Program


def pooled(
    pool: nn.AvgPool2d, size: tuple[int, ...], seed: int = 0
) -> tuple[TorchProgram, torch.Tensor, torch.Tensor]:
    """A program of two layers with the average between them, an input, and what the operators make of it."""
    torch.manual_seed(seed)
    x = torch.randn(*size)
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.MaxPool2d(1), nn.Conv2d(20, 4, 1)
    )
    int8 = qk.quantize(net.eval(), {"activation": "static"}, lambda m: m(x))
    traced = chain(int8, (x,), exact=True)
    zero_point = int(int8.get_submodule("3").input_zero_point)
    traced.set_submodule("int8__2", Int8AvgPool2d(pool, zero_point))
    with torch.no_grad():
        expected = traced(x)
    program = lower(traced)
    assert program is not None
    return program, x, expected


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


def test_a_divisor_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="divisor_override=3"):
        Int8AvgPool2d(nn.AvgPool2d(2, divisor_override=3), 0)
