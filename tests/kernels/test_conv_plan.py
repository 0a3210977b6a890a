"""How a convolution is taken, as its plan says before anything runs."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from cases import ISAS, Conv2d, assert_same_bits, convs, quick, some_conv
from hypothesis import given

from qkernels import _core


def plan_of(problem: Conv2d, isa: str, threads: int = 1, path: str = "counted") -> dict[str, Any]:
    plan: dict[str, Any] = _core.conv2d_plan(
        **problem.arrays(), isa=isa, threads=threads, path=path
    )
    return plan


@given(problem=convs(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3))
@quick(150)
def test_pieces_of_the_workspace_follow_each_other_without_overlap(
    problem: Conv2d, isa: str, threads: int
) -> None:
    plan = plan_of(problem, isa, threads)
    for part in plan["parts"]:
        end = 0
        for name, at, size in part["pieces"]:
            assert at == end and at % 64 == 0, name
            end = at + (size + 63) // 64 * 64
        assert end == part["bytes"]
        assert part["bytes"] * (threads if part["threads"] < threads else 1) <= plan["bytes"]


@given(problem=convs(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3))
@quick(100)
def test_every_image_of_the_batch_belongs_to_one_part(
    problem: Conv2d, isa: str, threads: int
) -> None:
    plan, batch = plan_of(problem, isa, threads), problem.x.shape[0]
    alone = [p["images"] for p in plan["parts"] if p["threads"] == 1 < threads]
    assert plan["each"] * threads <= batch
    assert bool(alone) == (plan["each"] > 0)
    assert "path: " + plan["path"] in plan["text"]


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in ("scalar", "avx2", "avx512vnni")])
@pytest.mark.parametrize(
    ("problem", "path", "repeat"),
    [
        (some_conv(16, 32, 1, (3, 3), (14, 14)), "in_place", 1),
        (some_conv(3, 32, 1, (3, 3), (14, 14)), "in_place", 1),  # the last bytes of a kernel row meet weights of zero
        (some_conv(6, 6, 2, (3, 3), (14, 14), dilation=(2, 2)), "packed", 1),  # pieces of 6 bytes, tap by tap
        (some_conv(24, 24, 24, (3, 3), (14, 14)), "depthwise", 1),
        (some_conv(24, 48, 24, (3, 3), (14, 14)), "depthwise", 2),
    ],
)  # fmt: skip
def test_a_layer_takes_the_direct_path_that_the_readme_names(
    problem: Conv2d, path: str, repeat: int, isa: str
) -> None:
    problem = Conv2d(**{**vars(problem), "padding": (1, 1, 1, 1)})
    plan = plan_of(problem, isa, path="direct")
    assert (plan["path"], plan["repeat"]) == (path, repeat), plan["text"]
    assert plan["writes_image"]


def test_int8_pixels_without_padding_are_read_where_they_lie() -> None:
    arrays = some_conv(16, 32, 1, (1, 1), (14, 14)).arrays()
    plan = _core.conv2d_plan(**arrays | {"x": np.ascontiguousarray(arrays["x"])}, isa="scalar")
    assert not plan["writes_image"] and plan["path"] == "in_place"


@pytest.mark.skipif("amx" not in ISAS, reason="needs AMX")
def test_layers_whose_k_hardly_fills_tiles_leave_amx_and_keep_their_bits() -> None:
    layers = {
        "avx512vnni": [
            some_conv(3, 32, 1, (3, 3), (14, 14)),
            some_conv(16, 96, 1, (1, 1), (14, 14)),
            some_conv(104, 104, 13, (3, 3), (14, 14)),  # groups of 8 channels, tap by tap
        ],
        "amx": [
            some_conv(64, 64, 1, (1, 1), (14, 14)),
            some_conv(96, 576, 1, (1, 1), (14, 14)),
            some_conv(64, 64, 1, (3, 3), (14, 14)),
            some_conv(3, 64, 1, (7, 7), (28, 28)),  # a short piece of each kernel row is moved whole
        ],
    }  # fmt: skip
    for kernel, problems in layers.items():
        for problem in problems:
            _, _, kh, kw = problem.weight.shape
            problem = Conv2d(**{**vars(problem), "padding": (kw // 2, kw // 2, kh // 2, kh // 2)})
            assert f"_{kernel})" in plan_of(problem, "amx")["text"]
            assert_same_bits(problem.run("amx"), problem.expected(), kernel)
