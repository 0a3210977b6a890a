"""Random problems through the operators on a device and on the CPU, whose bits must agree."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from qkernels import ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
NASTY = [torch.nan, torch.inf, -torch.inf, 1e-45, 1e-30, -0.0, 0.0, 3e38, -3e38]
Call = tuple[Callable[..., Any], dict[str, Any]]  # a function and its arguments


def activations(r: random.Random, *shape: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, dtype=dtype)
    x = torch.randn(shape)
    if r.random() < 0.3 and x.numel():
        chosen = torch.tensor(NASTY)[torch.randint(len(NASTY), shape)]
        x = torch.where(torch.rand(shape) < 0.02, chosen, x)
    return x.to(dtype)


def epilogue(r: random.Random, shape: tuple[int, ...]) -> dict[str, Any]:
    """Keyword arguments of linear and conv2d, for an output of this shape."""
    e: dict[str, Any] = {"out_dtype": r.choice(DTYPES)}
    e["clamp_min"], e["clamp_max"] = r.choice([(None, None), (0.0, None), (0.0, 6.0)])
    if r.random() < 0.4:
        e["residual"] = activations(r, *shape, dtype=r.choice(DTYPES))
        e["residual_scale"], e["residual_zero_point"] = 0.03, r.randint(-128, 127)
    if e["out_dtype"] == torch.int8:
        e["output_scale"], e["output_zero_point"] = 0.0625, r.randint(-128, 127)
    return e


def input_scales(r: random.Random, dtype: torch.dtype, count: int) -> dict[str, Any]:
    if dtype != torch.int8 and r.random() < 0.5:
        return {"symmetric": r.random() < 0.5}
    size = r.choice([1, count])
    zero = torch.randint(-128, 128, (size,), dtype=torch.int32)
    return {"input_scale": torch.rand(size) * 0.03 + 0.01, "input_zero_point": zero}


def weights(r: random.Random, *shape: int, groups: int = 1) -> dict[str, Any]:
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    bias = torch.randn(shape[0]) if r.random() < 0.7 else None
    return {
        "weight": ops.pack_weight(weight, groups),
        "weight_scale": torch.rand(shape[0]) * 0.02 + 1e-3,
        "bias": bias,
    }


def some_linear(r: random.Random) -> Call:
    m = r.choice([1, 2, 7, 8, 9, 16, 17, 33, 64, 100, 129, 300, 1000])
    n, k = (r.choice([1, 3, 16, 31, 64, 100, 128, 192, 333, 1024]) for _ in range(2))
    dtype = r.choice(DTYPES)
    arguments = {"x": activations(r, m, k, dtype=dtype), **weights(r, n, k), **epilogue(r, (m, n))}
    if dtype != torch.int8 and r.random() < 0.2:
        return ops.linear_weight_only, arguments
    return ops.linear, {**arguments, **input_scales(r, dtype, m)}


def some_conv2d(r: random.Random) -> Call:
    batch = r.randint(1, 4)
    h, w = (r.choice([1, r.randint(2, 5), *[r.randint(5, 40)] * 4]) for _ in range(2))
    groups = r.choice([1, 1, 1, 2, 4])
    c, n = (groups * r.choice([1, 3, 4, 8, 16, 20, 64, 128]) for _ in range(2))
    if r.random() < 0.25:
        groups, n = c, c * r.randint(1, 2)
    padding = [r.randint(0, 3) for _ in range(4)]  # left, right, top, bottom
    kernel = [
        r.randint(1, min(4, h + sum(padding[2:]))),
        r.randint(1, min(4, w + sum(padding[:2]))),
    ]
    stride = [r.randint(1, 4), r.randint(1, 4)]
    few = max(padding[0] - w, padding[1] - w, padding[2] - h, padding[3] - h) >= 0  # to mirror
    mode = "zeros" if few else r.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
    oh = (h + padding[2] + padding[3] - kernel[0]) // stride[0] + 1
    ow = (w + padding[0] + padding[1] - kernel[1]) // stride[1] + 1
    dtype = r.choice(DTYPES)
    x = activations(r, batch, c, h, w, dtype=dtype)
    x = x.contiguous(memory_format=r.choice([torch.channels_last, torch.contiguous_format]))
    if (
        w == 1 and r.random() < 0.7
    ):  # as a convolution along one axis has it: pixels, with a last stride of 1
        x = x[..., 0].transpose(1, 2).contiguous().transpose(1, 2).unsqueeze(-1)
    return ops.conv2d, {
        "x": x,
        **weights(r, n, c // groups, *kernel, groups=groups),
        **input_scales(r, dtype, batch),
        **epilogue(r, (batch, n, oh, ow)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": [1, 1],
        "groups": groups,
        "padding_mode": mode,
    }


def some_rest(r: random.Random) -> Call:
    rows, cols = r.randint(1, 50), r.choice([1, 8, 100, 1024, 5000, 20000])
    kind = r.randint(0, 6)
    if kind == 0:
        x = activations(r, rows, cols, dtype=r.choice(DTYPES[:3]))
        return ops.quantize_dynamic, {
            "x": x,
            "per_row": r.random() < 0.5,
            "symmetric": r.random() < 0.5,
        }
    scale, zero = torch.rand(rows) + 0.01, torch.randint(-128, 128, (rows,), dtype=torch.int32)
    if kind == 1:
        x = activations(r, rows, cols, dtype=r.choice(DTYPES[:3]))
        return ops.quantize, {"x": x, "scale": scale, "zero_point": zero}
    if kind == 2:
        q = torch.randint(-128, 128, (rows, cols), dtype=torch.int8)
        return ops.dequantize, {
            "q": q,
            "scale": scale,
            "zero_point": zero,
            "dtype": r.choice(DTYPES[:3]),
        }
    if kind == 3:
        groups, c, n = r.choice([1, 2, 8]), r.randint(1, 20), r.randint(1, 20)
        weight = torch.randint(
            -127, 128, (n * groups, c, r.randint(1, 3), r.randint(1, 3)), dtype=torch.int8
        )
        return ops.pack_weight, {"weight": weight, "groups": groups}
    image = (r.randint(1, 3), r.choice([3, 16, 64, 100]), r.randint(5, 17), r.randint(5, 17))
    format = r.choice([torch.channels_last, torch.contiguous_format])
    if kind == 4:  # finite: which NaN comes of a NaN is the processor's own
        return ops.mean_pool2d, {"x": torch.randn(image).contiguous(memory_format=format)}
    x = torch.randint(-128, 128, image, dtype=torch.int8).contiguous(memory_format=format)
    if kind == 5:
        return ops.lookup, {"x": x, "table": torch.randint(-128, 128, (256,), dtype=torch.int8)}
    window = {
        "kernel_size": [3, 2],
        "stride": [2, 1],
        "padding": [1, 1],
        "ceil_mode": r.random() < 0.5,
    }
    if r.random() < 0.5:
        return ops.max_pool2d, {"x": x, **window, "dilation": [1, 1]}
    return ops.avg_pool2d, {"x": x, **window, "zero_point": r.randint(-128, 127)}  # fmt: skip


SOME = {"linear": some_linear, "conv2d": some_conv2d, "rest": some_rest}


def bits(result: Any) -> Iterator[Tensor]:
    for t in result if isinstance(result, tuple) else (result,):
        view = {1: torch.int8, 2: torch.int16, 4: torch.int32}[t.element_size()]
        yield t.cpu().contiguous().view(view)


def check(kind: str, device: str, seconds: float, most: int) -> dict[str, Any]:
    """Problems of a kind, seed after seed, until time or `most` is reached; raises at the first that differs."""
    started, seed = time.monotonic(), 0
    while seed < most and time.monotonic() - started < seconds:
        torch.manual_seed(seed)
        call, arguments = SOME[kind](random.Random(seed))
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        for got, expected in zip(bits(call(**moved)), bits(call(**arguments)), strict=True):
            wrong = int((got != expected).sum())
            if wrong:
                raise AssertionError(f"{kind}, seed {seed}: {wrong} of {got.numel()} values differ")
        seed += 1
    return {"problems": seed, "differ": 0}
