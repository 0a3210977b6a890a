"""The kernels on NumPy arrays, without torch: any instruction set by name, any thread count.

Images are [N, H, W, C]; weights are packed by `pack_weight`; scales are float32, zero points int32 or int8. What is
computed, to the bit, is written down in `qkernels.reference`. Raises ValueError, naming the value at fault, for
shapes, dtypes and values that a kernel does not take.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, Unpack

_Array = NDArray[Any]
_Int8 = NDArray[np.int8]

ALIGNMENT: int
LAYOUT_VERSION: int
MAX_BORDER: int
MAX_SCANNED: int
MAX_EXTENT: int
MAX_K: int
MAX_THREADS: int
MAX_WINDOW: int
PROGRAM_MAGIC: bytes
PROGRAM_RECORDS: dict[str, dict[str, Any]]
PROGRAM_VERSION: int
STEP_KINDS: dict[str, dict[str, Any]]

class _Run(TypedDict, total=False):
    isa: str | None
    threads: int

class _Output(_Run, total=False):
    out_dtype: str | None
    output_scale: float | None
    output_zero_point: int
    out: _Array | None

class _Epilogue(_Output, total=False):
    residual: _Array | None
    residual_scale: float | None
    residual_zero_point: int
    clamp_min: float | None
    clamp_max: float | None

class Program:
    """A chained model, from the bytes of a saved program; they are not copied."""

    def __init__(self, bytes: Buffer) -> None: ...
    def run(
        self,
        inputs: Sequence[_Array],
        threads: int = 1,
        timed: bool = False,
        seconds: list[float] | None = None,
        isa: str | None = None,
    ) -> list[_Array]:
        """Answer float32 arrays [N, C, H, W], [N, T, C] or [N, C]; any thread may call.

        timed: each step's seconds are appended to `seconds`.
        """

    def signature(self, inputs: bool) -> list[tuple[int, int]]:
        """Return (axes, channels) of the inputs, or of the outputs."""

    def steps(self, input_sizes: Sequence[Sequence[int]], threads: int = 1) -> list[dict[str, Any]]:
        """Return what a call with inputs of these sizes does, one dict a step."""

    def arena_bytes(self, input_sizes: Sequence[Sequence[int]], threads: int = 1) -> int:
        """Return the memory of one call, beside weights, inputs and outputs."""

    @property
    def max_batch(self) -> int: ...
    @property
    def input_dtypes(self) -> list[str]: ...
    @property
    def id_counts(self) -> list[int | None]: ...
    @property
    def kept_bytes(self) -> int: ...
    @property
    def kept(self) -> Any: ...

def is_view(kind: str, payload: Any) -> bool: ...
def active_isa() -> str:
    """Return the instruction set in use: the best one, lowered by QKERNELS_MAX_ISA."""

def cpu_features() -> dict[str, bool]:
    """Return the instruction sets, and whether this machine runs them."""

def kernels() -> list[dict[str, Any]]:
    """Return the kernel table, one dict an instruction set."""

def pack_weight(weight: _Int8, groups: int = 1) -> _Int8:
    """Pack int8 [N, K] or [OC, C/groups, KH, KW]."""

def unpack_weight(packed: _Int8, size: Sequence[int], groups: int = 1) -> _Int8:
    """Return what `pack_weight` packed, exactly."""

def linear(
    x: _Array,
    weight: _Int8,
    weight_scale: _Array,
    bias: _Array | None = None,
    input_scale: _Array | None = None,
    input_zero_point: _Array | None = None,
    symmetric: bool = True,
    **kwargs: Unpack[_Epilogue],
) -> _Array:
    """Multiply x [M, K], int8 or float, by a packed weight."""

def linear_weight_only(
    x: _Array,
    weight: _Int8,
    weight_scale: _Array,
    bias: _Array | None = None,
    **kwargs: Unpack[_Epilogue],
) -> _Array:
    """Multiply x [M, K], float, by a packed weight, in float."""

def conv2d(
    x: _Array,
    weight: _Int8,
    weight_scale: _Array,
    bias: _Array | None,
    input_scale: _Array | None,
    input_zero_point: _Array | None,
    symmetric: bool,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    **kwargs: Unpack[_Epilogue],
) -> _Array:
    """Convolve x [N, H, W, C] with any strides; padding is left, right, top, bottom."""

def conv2d_plan(
    x: _Array,
    weight: _Int8,
    weight_scale: _Array,
    bias: _Array | None,
    input_scale: _Array | None,
    input_zero_point: _Array | None,
    symmetric: bool,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    **kwargs: Unpack[_Epilogue],
) -> dict[str, Any]:
    """Return how conv2d takes these arguments: path, image, cuts of the batch, workspace; `text` is to be printed."""

def quantize(
    x: _Array,
    scale: _Array | None = None,
    zero_point: _Array | None = None,
    per_row: bool = False,
    symmetric: bool = True,
    isa: str | None = None,
    threads: int = 1,
) -> tuple[_Int8, _Array, _Array]:
    """Return (q, scale, zero_point); without a scale, ranges are found."""

def dequantize(
    q: _Int8,
    scale: _Array,
    zero_point: _Array,
    dtype: str = "f32",
    isa: str | None = None,
    threads: int = 1,
) -> _Array:
    """Return (q - zero_point) * scale."""

def lookup(x: _Int8, table: _Int8, isa: str | None = None, threads: int = 1) -> _Int8:
    """Return table[x + 128]."""

def max_pool2d(
    x: _Int8,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    isa: str | None = None,
    threads: int = 1,
) -> _Int8:
    """Return the maximum over windows of x [N, H, W, C]."""

def avg_pool2d(
    x: _Int8,
    zero_point: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    isa: str | None = None,
    threads: int = 1,
) -> _Int8:
    """Return the mean over windows of x [N, H, W, C]; padding is real 0."""

def mean_pool2d(x: _Array, threads: int = 1) -> _Array:
    """Return the mean of x [N, H, W, C] float32 as [N, 1, 1, C], in one order of additions."""

def layer_norm(
    x: _Array, weight: _Array, bias: _Array, epsilon: float, **kwargs: Unpack[_Output]
) -> _Array:
    """Normalise rows of x [rows, C] float32."""

def attention(x: _Array, heads: int, exponent: float, **kwargs: Unpack[_Output]) -> _Array:
    """Attend in x [N, T, 3 * C] float32, queries, keys and values; exponent is log2(e) times the scale."""

def peak_gops(isa: str | None = None, threads: int = 1, seconds: float = 0.5) -> float:
    """Return 1e9 int8 operations a second of the matrix kernel's multiply instruction alone.

    A multiply-add counts as two.
    """

def read_gbytes(bytes: int, threads: int = 1, seconds: float = 0.5) -> float:
    """Return 1e9 bytes a second read from a buffer of that size, shared by the threads."""

def read_payload(kind: str, payload: bytes) -> list[Any]:
    """Return the fields of a step's payload, as C++ reads them."""
