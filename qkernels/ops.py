"""The operators, typed, with what torch needs to trace them.

Implementations are in ``csrc``; here are their Python entries and their meta ("fake") implementations. Activations are
int8 with a float32 scale and an int32 zero point in [-128, 127]; weights are int8 in [-127, 127] with one float32
scale an output channel, in the packed layout of ``csrc/core/layout.h``. The arithmetic is ``docs/numerics.md``.

Errors of arguments (shape, dtype, scale, K above 65535) are ``RuntimeError`` with the values at fault, as torch's own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # what layers take
CUDA_TILES = ("small", "medium", "tall", "large", "hopper")
CONV_PATHS = ("counted", "direct", "winograd")


def _load_library() -> None:
    library = Path(__file__).with_name("_C.abi3.so")
    if not library.exists():
        raise ImportError(
            f"{library} is missing; build it with: pip install --no-build-isolation -e ."
        )
    torch.ops.load_library(str(library))


def _check_environment() -> None:
    variables = {
        "QKERNELS_MAX_ISA": ISAS,
        "QKERNELS_CUDA_TILE": CUDA_TILES,
        "QKERNELS_CONV_PATH": CONV_PATHS,
        "QKERNELS_KEEP_WEIGHTS": ("0", "1"),
    }
    for variable, known in variables.items():
        asked = os.environ.get(variable)
        if asked and asked not in known:
            raise ValueError(f"{variable}={asked!r} is unknown; choose one of {', '.join(known)}")


_load_library()
_ops = torch.ops.qkernels
ISAS = tuple(_ops.cpu_isas().split(", "))  # in order of preference
_check_environment()


class _InferenceOnly(torch.autograd.Function):
    """Passes the output of an operator on; a backward through it says why it cannot be."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError(
            "qkernels layers are for inference: int8 rounding has no gradient; "
            "train the float model and quantize it after"
        )


def guard(y: Tensor, x: Tensor) -> Tensor:
    """``y``, the output for ``x``; a backward through it raises one clear sentence."""
    if x.requires_grad and torch.is_grad_enabled() and y.is_floating_point():
        return _InferenceOnly.apply(y, x)
    return y


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Float ``x`` [..., K] to int8 with given scales, one for all or one a row of the last axis.

    ``q = saturate(round_half_even(x * (1 / scale)) + zero_point)``; NaN gives -128, infinities saturate.
    """
    return _ops.quantize(x, scale, zero_point)


def quantize_dynamic(
    x: Tensor, *, per_row: bool = True, symmetric: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Float ``x`` [..., K] to int8 with ranges found in it: returns q, scale, zero_point ([...] or [])."""
    return _ops.quantize_dynamic(x, per_row, symmetric)


def dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``float(q - zero_point) * scale``, one scale for all or one a row of the last axis."""
    return _ops.dequantize(q, scale, zero_point, dtype)


def pack_weight(weight: Tensor, groups: int = 1) -> Tensor:
    """int8 [N, K] or [OC, C/groups, KH, KW] to the kernels' layout, a flat int8 tensor; -128 is an error."""
    return _ops.pack_weight(weight, groups)


def unpack_weight(packed: Tensor, size: list[int], groups: int = 1) -> Tensor:
    """The exact inverse of :func:`pack_weight`; ``size`` is the canonical shape."""
    return _ops.unpack_weight(packed, size, groups)


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    *,
    symmetric: bool = True,
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    clamp_min: float | None = None,
    clamp_max: float | None = None,
    out_dtype: torch.dtype | None = None,
    output_scale: float = 1.0,
    output_zero_point: int = 0,
) -> Tensor:
    """``x`` [..., K] times a packed weight [N, K], with everything after it fused: [..., N].

    Args:
        x: int8 (then ``input_scale`` is needed), or float32, float16, bfloat16, quantized on the way in.
        weight: from :func:`pack_weight`.
        weight_scale: float32 [N].
        bias: float32 [N].
        input_scale: float32, one value or one a row. None: each row's own range (dynamic), symmetric or asymmetric by
            ``symmetric``.
        input_zero_point: int32, as many values as ``input_scale``, and None where that is.
        symmetric: where the range is the row's own, whether its zero point is 0.
        residual: [..., N] float or int8, added before the clamp.
        residual_scale: of an int8 residual.
        residual_zero_point: of an int8 residual, in [-128, 127].
        clamp_min: the lower end of a fused activation; ReLU is ``clamp_min=0``.
        clamp_max: its upper end.
        out_dtype: float, or int8 by ``output_scale`` and ``output_zero_point``; None: x's own, float32 for int8 x.
        output_scale: of an int8 output.
        output_zero_point: of an int8 output, in [-128, 127].
    """
    y = _ops.linear(
        x, weight, weight_scale, bias, input_scale, input_zero_point, symmetric, residual, residual_scale,
        residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point,
    )  # fmt: skip
    return guard(y, x)


def linear_weight_only(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    clamp_min: float | None = None,
    clamp_max: float | None = None,
    out_dtype: torch.dtype | None = None,
    output_scale: float = 1.0,
    output_zero_point: int = 0,
) -> Tensor:
    """Float ``x`` [..., K] times a packed int8 weight [N, K], summed in float32: [..., N]; else as :func:`linear`."""
    y = _ops.linear_weight_only(
        x, weight, weight_scale, bias, residual, residual_scale, residual_zero_point, clamp_min, clamp_max,
        out_dtype, output_scale, output_zero_point,
    )  # fmt: skip
    return guard(y, x)


def conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    *,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
    padding_mode: str = "zeros",
    symmetric: bool = True,
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    clamp_min: float | None = None,
    clamp_max: float | None = None,
    out_dtype: torch.dtype | None = None,
    output_scale: float = 1.0,
    output_zero_point: int = 0,
) -> Tensor:
    """``x`` [N, C, H, W] convolved with a packed weight [OC, C/groups, KH, KW]: [N, OC, OH, OW].

    ``x`` may have any strides; a channels-last ``x`` gives a channels-last output, anything else a contiguous one.
    ``padding`` is left, right, top, bottom; ``padding_mode`` zeros (the zero point), reflect, replicate or circular.
    ``input_scale``: one value or one an image; None finds each image's range. The rest as :func:`linear`.
    """
    y = _ops.conv2d(
        x, weight, weight_scale, bias, input_scale, input_zero_point, symmetric, kernel_size, stride, padding,
        dilation, groups, padding_mode, residual, residual_scale, residual_zero_point, clamp_min, clamp_max,
        out_dtype, output_scale, output_zero_point,
    )  # fmt: skip
    return guard(y, x)


def max_pool2d(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool = False,
) -> Tensor:
    """Maximum of int8 ``x`` [N, C, H, W]; scale and zero point stay."""
    return _ops.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    x: Tensor,
    zero_point: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean of int8 ``x`` [N, C, H, W], rounded half to even; scale and zero point stay, padding is real 0."""
    return _ops.avg_pool2d(
        x, zero_point, kernel_size, stride, padding, ceil_mode, count_include_pad
    )


def lookup(x: Tensor, table: Tensor) -> Tensor:
    """``table[x + 128]`` for int8 ``x`` and ``table`` int8 [256]: any function of int8 to int8."""
    return _ops.lookup(x, table)


def mean_pool2d(x: Tensor) -> Tensor:
    """float32 [N, C, H, W] -> [N, C, 1, 1]: sums from the first pixel to the last, row by row, times 1 / (H * W)."""
    return _ops.mean_pool2d(x)


def embedding(
    ids: Tensor, weight: Tensor, weight_scale: Tensor, columns: int, dtype: torch.dtype
) -> Tensor:
    """``code * scale`` of the rows of a packed weight [N, columns] that ``ids`` [...] name: [..., columns].

    Args:
        ids: int64 or int32, in [0, N).
        weight: from :func:`pack_weight`.
        weight_scale: float32 [N].
        columns: how wide a row is, which the packed form does not tell.
        dtype: float; the product is rounded to it.

    Raises:
        IndexError: for an id outside of the table.
    """
    return _ops.embedding(ids, weight, weight_scale, columns, dtype)


def packed_rows(packed: Tensor, n: int, k: int, index: Tensor) -> Tensor:
    """int8 rows [..., k] of a packed weight [n, k], without unpacking the rest; the index is not checked.

    The layout is ``[n / 16][k / 4][16][4]`` with k padded to 64, see csrc/core/layout.h: a row is every 16th word.
    """
    panels, words = (n + 15) // 16, (k + 63) // 64 * 16
    values = packed[: panels * words * 64].view(torch.int32).view(panels, words, 16)
    panel = torch.div(index, 16, rounding_mode="floor")
    rows = values[panel, :, index - panel * 16].contiguous()
    return rows.view(torch.int8)[..., :k]


# A lookup is torch's own steps on every device, behind one name, so that a captured graph shows it as one step.
_library = torch.library.Library("qkernels", "FRAGMENT")
_library.define(
    "embedding(Tensor ids, Tensor weight, Tensor weight_scale, int columns, ScalarType dtype) -> Tensor"
)


def _embedding(
    ids: Tensor, weight: Tensor, weight_scale: Tensor, columns: int, dtype: torch.dtype
) -> Tensor:
    _check_table(weight, weight_scale, columns, dtype)
    scale = F.embedding(ids, weight_scale.unsqueeze(1))  # which checks the ids too
    return (packed_rows(weight, len(weight_scale), columns, ids) * scale).to(dtype)


def _check_table(weight: Tensor, weight_scale: Tensor, columns: int, dtype: torch.dtype) -> None:
    if dtype not in FLOAT_DTYPES:
        raise RuntimeError(f"qkernels::embedding: dtype is {dtype}; a float one is needed")
    if weight_scale.dim() != 1 or weight_scale.dtype != torch.float32:
        got = f"{weight_scale.dtype} {list(weight_scale.shape)}"
        raise RuntimeError(f"qkernels::embedding: weight_scale is {got}; float32 [N] is needed")
    needed = packed_bytes([len(weight_scale), columns], 1)
    if weight.dtype != torch.int8 or list(weight.shape) != [needed]:
        got = f"{weight.dtype} {list(weight.shape)}"
        raise RuntimeError(
            f"qkernels::embedding: weight is {got}; a table of {len(weight_scale)} rows of {columns} is int8 [{needed}]"
        )


_library.impl("embedding", _embedding, "CompositeExplicitAutograd")


def cpu_isa() -> str:
    """The instruction set in use: the best this machine has, lowered by ``QKERNELS_MAX_ISA``."""
    return _ops.cpu_isa()


# ---- meta implementations: shapes, dtypes and strides as the kernels return them


@torch.library.register_fake("qkernels::quantize")
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8)


@torch.library.register_fake("qkernels::quantize_dynamic")
def _(x: Tensor, per_row: bool, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    size = x.shape[:-1] if per_row else ()
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(size, dtype=torch.float32),
        x.new_empty(size, dtype=torch.int32),
    )


@torch.library.register_fake("qkernels::dequantize")
def _(q: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    return q.new_empty(q.shape, dtype=dtype)


def packed_bytes(size: torch.Size | list[int], groups: int) -> int:
    """Length in bytes of the packed form of a weight of this canonical shape; RuntimeError where there is none."""
    return int(_ops.packed_bytes(list(size), groups))


@torch.library.register_fake("qkernels::pack_weight")
def _(weight: Tensor, groups: int) -> Tensor:
    return weight.new_empty(packed_bytes(weight.shape, groups), dtype=torch.int8)


@torch.library.register_fake("qkernels::unpack_weight")
def _(packed: Tensor, size: list[int], groups: int) -> Tensor:
    return packed.new_empty(size, dtype=torch.int8)


def _out_dtype(x: Tensor, asked: torch.dtype | None) -> torch.dtype:
    return asked or (torch.float32 if x.dtype == torch.int8 else x.dtype)


def _fake_linear(x: Tensor, weight_scale: Tensor, out_dtype: torch.dtype | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight_scale.shape[0]), dtype=_out_dtype(x, out_dtype))


@torch.library.register_fake("qkernels::linear")
def _(x, weight, weight_scale, bias, input_scale, input_zero_point, symmetric, residual=None,  # type: ignore[no-untyped-def]
      residual_scale=1.0, residual_zero_point=0, clamp_min=None, clamp_max=None, out_dtype=None,
      output_scale=1.0, output_zero_point=0):  # fmt: skip
    return _fake_linear(x, weight_scale, out_dtype)


@torch.library.register_fake("qkernels::linear_weight_only")
def _(x, weight, weight_scale, bias, residual=None, residual_scale=1.0, residual_zero_point=0,  # type: ignore[no-untyped-def]
      clamp_min=None, clamp_max=None, out_dtype=None, output_scale=1.0, output_zero_point=0):  # fmt: skip
    return _fake_linear(x, weight_scale, out_dtype)


def _format_like(x: Tensor) -> torch.memory_format:
    last = torch.channels_last
    return (
        last
        if x.is_contiguous(memory_format=last) and not x.is_contiguous()
        else torch.contiguous_format
    )


@torch.library.register_fake("qkernels::conv2d")
def _(x, weight, weight_scale, bias, input_scale, input_zero_point, symmetric, kernel_size, stride, padding,  # type: ignore[no-untyped-def]
      dilation, groups, padding_mode, residual=None, residual_scale=1.0, residual_zero_point=0, clamp_min=None,
      clamp_max=None, out_dtype=None, output_scale=1.0, output_zero_point=0):  # fmt: skip
    left, right, top, bottom = padding
    oh = (x.shape[2] + top + bottom - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    ow = (x.shape[3] + left + right - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
    size = (x.shape[0], weight_scale.shape[0], oh, ow)
    dtype = _out_dtype(x, out_dtype)
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=_format_like(x))


def _fake_pool(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    size = []
    for i in range(2):
        span = x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
        out = (span + (stride[i] - 1 if ceil_mode else 0)) // stride[i] + 1
        if ceil_mode and (out - 1) * stride[i] >= x.shape[2 + i] + padding[i]:
            out -= 1
        size.append(out)
    return torch.empty(
        (*x.shape[:2], *size), dtype=torch.int8, device=x.device, memory_format=_format_like(x)
    )


@torch.library.register_fake("qkernels::max_pool2d")
def _(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    return _fake_pool(x, kernel_size, stride, padding, dilation, ceil_mode)


@torch.library.register_fake("qkernels::avg_pool2d")
def _(x: Tensor, zero_point: int, kernel_size: list[int], stride: list[int], padding: list[int], ceil_mode: bool,
      count_include_pad: bool) -> Tensor:  # fmt: skip
    return _fake_pool(x, kernel_size, stride, padding, [1, 1], ceil_mode)


@torch.library.register_fake("qkernels::mean_pool2d")
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], 1, 1))


@torch.library.register_fake("qkernels::lookup")
def _(x: Tensor, table: Tensor) -> Tensor:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    keep = last and not x.is_contiguous()
    return torch.empty_like(
        x, memory_format=torch.channels_last if keep else torch.contiguous_format
    )


@torch.library.register_fake("qkernels::embedding")
def _(
    ids: Tensor, weight: Tensor, weight_scale: Tensor, columns: int, dtype: torch.dtype
) -> Tensor:
    return weight_scale.new_empty((*ids.shape, columns), dtype=dtype)
