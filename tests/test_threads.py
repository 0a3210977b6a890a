"""Layers under many threads: the kernels' own, and callers'."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from qkernels.nn import QuantConv2d, QuantLinear

STATIC = {"activation": "static", "input_scale": 0.03, "input_zero_point": 5}


def conv(channels: int, outputs: int, kernel: int, **geometry: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, **geometry)


LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "dynamic linear": lambda: (QuantLinear.from_float(nn.Linear(300, 200)), torch.randn(70, 300)),
    "static linear": lambda: (
        QuantLinear.from_float(nn.Linear(64, 1000), **STATIC),
        torch.randn(3, 64),
    ),
    "weight-only linear": lambda: (
        QuantLinear.from_float(nn.Linear(256, 500), activation="weight_only"),
        torch.randn(9, 256),
    ),
    "dynamic conv": lambda: (
        QuantConv2d.from_float(conv(16, 40, 3)),
        torch.randn(7, 16, 30, 30),
    ),
    "static conv": lambda: (
        QuantConv2d.from_float(conv(3, 32, 3, stride=2), **STATIC),
        torch.randn(5, 3, 64, 64).to(memory_format=torch.channels_last),
    ),
    "depthwise conv": lambda: (
        QuantConv2d.from_float(conv(40, 40, 5, groups=40), **STATIC),
        torch.randn(5, 40, 33, 33).to(memory_format=torch.channels_last),
    ),
    "depthwise conv with multiplier": lambda: (
        QuantConv2d.from_float(conv(20, 40, 3, groups=20), **STATIC),
        torch.randn(4, 20, 40, 40),
    ),
}


@pytest.fixture
def torch_threads() -> object:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", LAYERS)
def test_one_two_and_three_threads_return_the_same_bits(
    name: str, torch_threads: Callable[[int], None]
) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name]()
    with torch.inference_mode():
        torch_threads(1)
        one = layer(x)
        for threads in (2, 3):
            torch_threads(threads)
            assert torch.equal(layer(x), one), threads


@pytest.mark.parametrize("name", LAYERS)
def test_eight_callers_of_one_layer_get_their_own_answers(name: str) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name]()
    inputs = [x * (1 + i) for i in range(8)]
    with torch.inference_mode():
        expected = [layer(each) for each in inputs]

    def call(i: int) -> bool:
        with torch.inference_mode():
            return torch.equal(layer(inputs[i % 8]), expected[i % 8])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(64)))
