"""What the operators' library asks of torch is in 2.11 already, so that one build loads there and ever after."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import qkernels

LIBRARY = Path(qkernels.__file__).with_name("_C.abi3.so")

# Read off libtorch_cpu.so of torch 2.11.0 (CUDA 13.0), which exports all of them; one that is to be added is looked for
# there first: nm -D --defined-only libtorch_cpu.so
AOTI_TORCH = """
abi_version aten_fill__Scalar create_device_guard delete_device_guard delete_library_object
delete_tensor_object device_type_cpu device_type_cuda dtype_bfloat16 dtype_bool dtype_complex128
dtype_complex32 dtype_complex64 dtype_element_size dtype_float16 dtype_float32 dtype_float64
dtype_float8_e4m3fn dtype_float8_e4m3fnuz dtype_float8_e5m2 dtype_float8_e5m2fnuz dtype_int16
dtype_int32 dtype_int64 dtype_int8 dtype_uint16 dtype_uint32 dtype_uint64 dtype_uint8
empty_strided get_device_index get_device_type get_dim get_dtype get_numel get_size get_sizes
get_stride is_contiguous library_def library_init_def library_init_impl
memory_format_channels_last memory_format_channels_last_3d memory_format_contiguous_format
memory_format_preserve_format new_tensor_handle
"""
TORCH = """
call_dispatcher delete_list delete_string dtype_float4_e2m1fn_x2 dtype_float8_e8m0fnu
get_const_data_ptr get_mutable_data_ptr get_num_threads library_impl list_get_item
list_push_back list_size new_list_reserve_size new_string_handle parallel_for string_c_str
string_length
"""


def test_the_library_asks_torch_for_nothing_that_2_11_does_not_export() -> None:
    if not shutil.which("nm"):
        pytest.skip("binutils are not installed")
    command = ["nm", "-D", "-u", LIBRARY]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    asked = {line.split()[-1] for line in lines}
    known = {f"aoti_torch_{name}" for name in AOTI_TORCH.split()}
    known |= {f"torch_{name}" for name in TORCH.split()}
    assert {name for name in asked if name.startswith(("aoti_torch_", "torch_"))} <= known
    assert not {name for name in asked if "c10" in name or "at6Tensor" in name}
