"""The exact Winograd of 3x3 kernels gives the sums of the direct way, bit for bit, wherever it is taken."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import (
    ISAS,
    Conv2d,
    assert_same_bits,
    convs,
    floats,
    int8,
    quick,
    rng,
    scales,
    some_conv,
    to_numpy,
)
from fence import fenced, guarded
from hypothesis import given

from qkernels import _core
from qkernels.reference import Epilogue

every_isa = pytest.mark.parametrize("isa", ISAS)
squares = convs(square=True)
BOUND = 2**25  # what a sum must stay below


def plan_of(problem: Conv2d, isa: str, **options: Any) -> dict[str, Any]:
    plan: dict[str, Any] = _core.conv2d_plan(**problem.arrays(), isa=isa, **options)
    return plan


def by_winograd(problem: Conv2d, isa: str, **options: Any) -> torch.Tensor:
    assert plan_of(problem, isa, path="winograd")["path"] == "winograd"
    return problem.run(isa, path="winograd", **options)


def extreme(c: int, oc: int, size: tuple[int, int], groups: int = 1) -> Conv2d:
    """Every value at an end: x -128 or 127, weights -127 or 127."""
    problem = some_conv(c, oc, groups, (3, 3), size, padding=(1, 1, 1, 1))
    g = rng(c)
    problem.x = torch.where(torch.rand(problem.x.shape, generator=g) < 0.5, -128, 127).to(torch.int8)  # fmt: skip
    signs = torch.rand(problem.weight.shape, generator=g) < 0.5
    problem.weight = torch.where(signs, -127, 127).to(torch.int8)
    return problem


@given(problem=squares, threads=st.integers(1, 3))
@quick(400)
def test_any_3x3_layer_has_the_bits_of_the_direct_way(problem: Conv2d, threads: int) -> None:
    expected = problem.expected()
    for isa in ISAS:
        assert_same_bits(by_winograd(problem, isa, threads=threads), expected, isa)


@every_isa
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (7, 7), (9, 13), (14, 14)])
@pytest.mark.parametrize("channels", [(16, 32), (64, 48), (33, 17)])
def test_odd_sizes_and_panels_that_stand_alone(
    isa: str, size: tuple[int, int], channels: tuple[int, int]
) -> None:
    problem = some_conv(*channels, 1, (3, 3), size, padding=(1, 1, 1, 1))
    expected = problem.expected()
    for threads in (1, 2, 3):
        assert_same_bits(by_winograd(problem, isa, threads=threads), expected, isa)


@every_isa
@pytest.mark.parametrize("groups", [1, 4])
def test_extreme_values_are_exact(isa: str, groups: int) -> None:
    problem = extreme(128, 64, (10, 11), groups)
    assert_same_bits(by_winograd(problem, isa), problem.expected(), isa)


@every_isa
@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_that_are_taken_are_exact(isa: str, x: int, sign: int) -> None:
    c = 229
    assert 128 * 127 * 9 * c < BOUND <= 128 * 127 * 9 * (c + 1)
    problem = some_conv(c, 16, 1, (3, 3), (6, 6), padding=(1, 1, 1, 1))
    problem.x, problem.weight = torch.full_like(problem.x, x), torch.full_like(problem.weight, sign * 127)  # fmt: skip
    problem.zero_point = torch.zeros(2, dtype=torch.int32)
    assert_same_bits(by_winograd(problem, isa), problem.expected(), isa)


@every_isa
def test_a_wide_layer_whose_weights_are_small_enough_is_taken_by_winograd(isa: str) -> None:
    problem = some_conv(230, 16, 1, (3, 3), (6, 6), padding=(1, 1, 1, 1))
    assert_same_bits(by_winograd(problem, isa), problem.expected(), isa)


@every_isa
def test_a_layer_whose_sums_are_too_large_is_taken_directly(isa: str) -> None:
    problem = extreme(230, 16, (6, 6))
    assert plan_of(problem, isa, path="winograd")["path"] in ("in_place", "packed")
    assert_same_bits(problem.run(isa, path="winograd"), problem.expected(), isa)


@every_isa
def test_the_bound_is_that_of_a_group(isa: str) -> None:
    problem = extreme(2 * 228, 32, (5, 5), 2)
    assert_same_bits(by_winograd(problem, isa), problem.expected(), isa)


@pytest.mark.parametrize(
    "geometry",
    [{"stride": (2, 2)}, {"stride": (1, 2)}, {"dilation": (2, 2)}, {"kernel": (1, 3)}, {"kernel": (5, 5)}],
)  # fmt: skip
def test_only_3x3_of_stride_and_dilation_1_may_be_taken(geometry: dict[str, Any]) -> None:
    kernel = geometry.pop("kernel", (3, 3))
    problem = some_conv(16, 16, 1, kernel, (9, 9), padding=(2, 2, 2, 2), **geometry)
    assert plan_of(problem, "scalar", path="winograd")["path"] != "winograd"


def test_depthwise_layers_are_not_taken() -> None:
    problem = some_conv(16, 32, 16, (3, 3), (9, 9))
    assert plan_of(problem, "scalar", path="winograd")["path"] == "depthwise"


shifts = st.sampled_from([0, 1, 17])


@given(problem=squares, isa=st.sampled_from(ISAS), threads=st.integers(1, 3), shift=shifts)
@quick(150)
def test_nothing_is_read_or_written_past_an_end(
    problem: Conv2d, isa: str, threads: int, shift: int
) -> None:
    expected = problem.expected().permute(0, 2, 3, 1)
    arrays = {k: fenced(a) if isinstance(a, np.ndarray) else a for k, a in problem.arrays().items()}
    buffer, out = guarded(expected.shape, to_numpy(expected).dtype, shift)
    y = by_winograd(problem, isa, **arrays, out=out, threads=threads)
    assert_same_bits(y.permute(0, 2, 3, 1), expected, isa)
    assert (buffer[: 64 + shift] == 0x5A).all()
    assert (buffer[64 + shift + out.nbytes :] == 0x5A).all()


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 1, 1)])
def test_pixels_are_read_where_they_lie_and_from_planes(
    planes: bool, padding: tuple[int, int, int, int]
) -> None:
    problem = some_conv(32, 16, 1, (3, 3), (11, 6), padding=padding)
    x = fenced(to_numpy(problem.x if planes else problem.x.permute(0, 2, 3, 1)))
    x = x.transpose(0, 2, 3, 1) if planes else x
    plan = _core.conv2d_plan(**problem.arrays() | {"x": x}, isa="scalar", path="winograd")
    assert plan["writes_image"] == (planes or padding != (0, 0, 0, 0))
    for isa in ISAS:
        assert_same_bits(by_winograd(problem, isa, x=x), problem.expected(), isa)


@given(problem=squares, isa=st.sampled_from(ISAS), threads=st.integers(1, 3))
@quick(150)
def test_pieces_of_the_workspace_follow_each_other_without_overlap(
    problem: Conv2d, isa: str, threads: int
) -> None:
    plan = plan_of(problem, isa, threads=threads, path="winograd")
    for part in plan["parts"]:
        end = 0
        for name, at, size in part["pieces"]:
            assert at == end and at % 64 == 0, name
            end = at + (size + 63) // 64 * 64
        assert end == part["bytes"]
        alone = threads if part["threads"] < threads else 1
        assert plan["weight_bytes"] + part["bytes"] * alone <= plan["bytes"]


def test_a_batch_and_its_images_have_the_same_bits() -> None:
    g = rng(0)
    problem = some_conv(24, 40, 1, (3, 3), (9, 9), padding=(1, 1, 1, 1))
    problem.x = floats(g, 7, 24, 9, 9) * torch.linspace(0, 100, 7).view(7, 1, 1, 1)
    problem.scale = problem.zero_point = None
    for isa in ISAS:
        x = to_numpy(problem.x.permute(0, 2, 3, 1))
        images = [by_winograd(problem, isa, x=x[i : i + 1]) for i in range(7)]
        for threads in (1, 2, 3):
            y = by_winograd(problem, isa, threads=threads)
            assert_same_bits(torch.cat(images), y, f"{isa}, {threads} threads")


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in ("avx2", "avx512vnni")])
def test_the_plan_takes_winograd_where_it_pays_and_only_there(isa: str) -> None:
    g = rng(0)

    def path(c: int, oc: int, size: int, batch: int) -> str:
        x, weight = int8(g, batch, c, size, size), int8(g, oc, c, 3, 3, low=-127)
        scale, zero = scales(g, 1), torch.zeros(1, dtype=torch.int32)
        problem = Conv2d(x, weight, scales(g, oc), scale, zero, True, Epilogue(), padding=(1, 1, 1, 1))  # fmt: skip
        return str(plan_of(problem, isa)["path"])

    assert path(64, 64, 56, 1) == path(128, 128, 28, 16) == path(64, 64, 16, 32) == "winograd"
    assert path(8, 8, 8, 1) == path(3, 32, 32, 1) == "in_place"
    assert path(200, 200, 4, 1) == "in_place"  # the weight's transform costs more than it gains


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(ValueError, match="path='fast' is unknown; choose one of counted"):
        plan_of(some_conv(4, 4, 1, (3, 3), (5, 5)), "scalar", path="fast")
