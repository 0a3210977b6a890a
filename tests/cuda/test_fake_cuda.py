"""CUDA tensors without a GPU: shapes, dtypes, strides and devices under FakeTensorMode; and what an error says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import qkernels as qk
from qkernels import ops
from qkernels.measuring.machine import cuda_built
from qkernels.nn import MeanPool2d


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    with FakeTensorMode():
        yield torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_stays_on_the_device(cuda: torch.device, dtype: torch.dtype) -> None:
    x = torch.empty(2, 3, 37, dtype=dtype, device=cuda)
    layer = qk.QuantLinear(37, 21, device=cuda)
    y = layer(x)
    assert (y.device.type, y.dtype, y.shape) == ("cuda", dtype, (2, 3, 21))
    assert layer.weight.device.type == "cuda"


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_conv2d_keeps_the_memory_format(cuda: torch.device, groups: int, last: bool) -> None:
    format = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(2, 8, 9, 7, device=cuda, memory_format=format)
    y = qk.QuantConv2d(8, 16, 3, padding=1, groups=groups, device=cuda)(x)
    assert y.device.type == "cuda" and y.shape == (2, 16, 9, 7)
    assert y.is_contiguous(memory_format=format)


def test_quantize_and_pool_stay_on_the_device(cuda: torch.device) -> None:
    q, scale, zero = ops.quantize_dynamic(torch.empty(4, 8, device=cuda))
    assert {t.device.type for t in (q, scale, zero)} == {"cuda"}
    assert (q.dtype, scale.dtype, zero.dtype) == (torch.int8, torch.float32, torch.int32)
    image = torch.empty(1, 8, 6, 6, dtype=torch.int8, device=cuda)
    assert ops.max_pool2d(image, [2, 2], [2, 2], [0, 0], [1, 1]).device.type == "cuda"
    assert ops.avg_pool2d(image, 0, [2, 2], [2, 2], [0, 0]).shape == (1, 8, 3, 3)
    table = torch.empty(256, dtype=torch.int8, device=cuda)
    assert ops.lookup(image, table).device.type == "cuda"
    mean = MeanPool2d()(torch.empty(2, 8, 6, 6, dtype=torch.float16, device=cuda))
    assert (mean.device.type, mean.dtype, mean.shape) == ("cuda", torch.float16, (2, 8, 1, 1))


OPERATORS = (
    "quantize", "quantize_dynamic", "dequantize", "pack_weight", "unpack_weight", "linear", "linear_weight_only",
    "conv2d", "max_pool2d", "avg_pool2d", "mean_pool2d", "lookup",
)  # fmt: skip


@pytest.mark.skipif(not cuda_built(), reason="built without nvcc")
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_cuda_kernel(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"qkernels::{name}", "CUDA")


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_meta_implementation(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"qkernels::{name}", "Meta")


def test_a_program_says_that_it_runs_on_the_cpu() -> None:
    x = torch.zeros(2, 4)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval()
    program = qk.compile(qk.quantize(net, "dynamic"), x).program
    assert program is not None
    arena, elsewhere = torch.empty(1 << 16, dtype=torch.uint8), torch.zeros(2, 4, device="meta")
    with pytest.raises(RuntimeError, match=r"input 0 is on .*; programs run on the CPU"):
        torch.ops.qkernels.run_program.default.redispatch(
            torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), program.data, arena, [elsewhere], None
        )  # fmt: skip


def test_tensors_on_two_devices_are_named() -> None:
    weight = ops.pack_weight(torch.zeros(4, 8, dtype=torch.int8))
    meta = torch.ones(4, device="meta")
    with pytest.raises(RuntimeError, match=r"weight_scale is on .*, but x is on the CPU"):
        torch.ops.qkernels.linear.default.redispatch(
            torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), torch.zeros(2, 8), weight, meta, None, None, None, True
        )  # fmt: skip


@pytest.mark.skipif(not cuda_built(), reason="built without nvcc")
def test_a_weight_that_kernels_cannot_read_is_refused_before_they_run() -> None:
    """Refused before a device is asked for, so that tensors on the CPU show it."""
    packed = ops.pack_weight(torch.zeros(4, 8, dtype=torch.int8))
    flat = torch.empty(packed.numel() + 17, dtype=torch.int8)
    off = (1 - flat.data_ptr()) % 16
    weight = flat[off : off + packed.numel()].copy_(packed)
    arguments = (torch.zeros(2, 8), weight, torch.ones(4), None)
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    operators = torch.ops.qkernels
    calls = [
        lambda: operators.linear.default.redispatch(cuda, *arguments, None, None, True),
        lambda: operators.linear_weight_only.default.redispatch(cuda, *arguments),
        lambda: operators.conv2d.default.redispatch(
            cuda, torch.zeros(1, 8, 1, 1), *arguments[1:], None, None, True,
            [1, 1], [1, 1], [0, 0, 0, 0], [1, 1], 1, "zeros",
        ),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(RuntimeError, match="weight begins 1 bytes behind a multiple of 16"):
            call()
