"""The int8 convolution of every instruction set against the oracle, bit for bit."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import (
    DTYPES,
    FLOATS,
    ISAS,
    NAMES,
    Conv2d,
    assert_every_isa,
    assert_same_bits,
    convs,
    floats,
    int8,
    quick,
    rng,
    some_conv,
    to_numpy,
    variants,
)
from hypothesis import given

from qkernels.reference import Epilogue

every_isa = pytest.mark.parametrize("isa", ISAS)


@given(problem=convs([torch.int8]))
@quick(300)
def test_int8_input_of_any_geometry(problem: Conv2d) -> None:
    assert_every_isa(problem)


@given(problem=convs(FLOATS))
@quick(300)
def test_float_input_static_and_dynamic(problem: Conv2d) -> None:
    assert_every_isa(problem)


IN_PLACE = {  # what a kernel may read in the image itself: channels, kernel, size, geometry
    "kernel rows": (64, (3, 3), (9, 14), {"padding": (1, 1, 1, 1)}),
    "taps": (64, (3, 3), (9, 32), {"padding": (2, 2, 2, 2), "dilation": (2, 2)}),
    "every second pixel": (64, (3, 5), (7, 31), {"padding": (2, 2, 1, 1), "stride": (2, 2)}),
    "no border": (64, (2, 2), (5, 17), {}),
    "pixels": (128, (1, 1), (3, 16), {"stride": (1, 1)}),
    "rows that end within four": (3, (3, 3), (8, 15), {"padding": (1, 1, 1, 1)}),
    "lines with a thin remainder": (20, (3, 3), (4, 61), {"padding": (1, 1, 1, 1)}),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", IN_PLACE)
def test_windows_read_in_the_image_itself(case: str, threads: int) -> None:
    c, kernel, size, geometry = IN_PLACE[case]
    assert_every_isa(some_conv(c, 40, 1, kernel, size, **geometry), threads=threads)


def reversed_axes(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1]


def every_second(x: np.ndarray) -> np.ndarray:
    wide = np.zeros([2 * s for s in x.shape], x.dtype)[::2, ::2, ::2, ::2]
    wide[...] = x
    return wide


def inside_a_wider_image(x: np.ndarray) -> np.ndarray:
    wide = np.zeros([s + 2 for s in x.shape], x.dtype)[1:-1, 1:-1, 1:-1, 1:-1]
    wide[...] = x
    return wide


def in_order(*axes: int) -> object:
    back = np.argsort(axes)
    return lambda x: np.ascontiguousarray(x.transpose(axes)).transpose(back)


LAYOUTS = {
    "nhwc": np.ascontiguousarray,
    "nchw": in_order(0, 3, 1, 2),
    "nwhc": in_order(0, 2, 1, 3),
    "chwn": in_order(3, 1, 2, 0),
    "reversed": reversed_axes,
    "every_second": every_second,
    "wider": inside_a_wider_image,
}


@given(problem=convs(), layout=st.sampled_from(sorted(LAYOUTS)), isa=st.sampled_from(ISAS))
@quick(200)
def test_strides_of_the_input_do_not_matter(problem: Conv2d, layout: str, isa: str) -> None:
    x = LAYOUTS[layout](to_numpy(problem.x.permute(0, 2, 3, 1)))
    assert_same_bits(problem.run(isa, x=x), problem.expected(), layout)


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_input(dtype: torch.dtype) -> None:
    g = rng(0)
    pixel = int8(g, 1, 20, 1, 1) if dtype == torch.int8 else floats(g, 1, 20, 1, 1, dtype=dtype)
    problem = some_conv(20, 7, 1, (3, 3), (6, 6), padding=(1, 1, 1, 1))
    problem.x = pixel.expand(2, 20, 6, 6)
    assert_every_isa(problem)


# ---- every path by name


PATHS = {
    "pointwise": (33, 17, 1, (1, 1), (5, 7)),
    "stem of three channels": (3, 40, 1, (7, 7), (15, 13)),
    "one channel": (1, 9, 1, (5, 5), (9, 9)),
    "odd channels": (17, 33, 1, (3, 3), (7, 8)),
    "few groups": (34, 51, 17, (3, 3), (6, 6)),
    "wide groups": (66, 38, 2, (3, 3), (6, 6)),
    "depthwise": (35, 35, 35, (3, 3), (8, 8)),
    "depthwise of whole vectors": (32, 32, 32, (5, 5), (9, 9)),
    "depthwise with a multiplier": (5, 15, 5, (3, 3), (8, 8)),
    "depthwise of many taps": (18, 18, 18, (9, 11), (12, 13)),
    "row kernel": (8, 8, 1, (1, 5), (3, 9)),
    "column kernel": (8, 8, 1, (5, 1), (9, 3)),
    "kernel as large as the image": (19, 5, 1, (6, 4), (6, 4)),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_every_kind_of_layer(path: str, out_dtype: torch.dtype) -> None:
    for geometry in ({}, {"padding": (2, 1, 0, 3), "stride": (2, 1)}):
        problem = some_conv(*PATHS[path], **geometry)
        assert_every_isa(variants(problem, out_dtype=out_dtype, output_scale=0.05, clamp_min=0.0))


@pytest.mark.parametrize("path", PATHS)
def test_threads_do_not_change_a_byte(path: str) -> None:
    c, oc, groups, kernel, (h, w) = PATHS[path]
    problem = some_conv(c, oc, groups, kernel, (3 * h, 3 * w), padding=(1, 2, 2, 1))
    for isa in ISAS:
        one = problem.run(isa, threads=1)
        for threads in (2, 3, 256):
            assert_same_bits(problem.run(isa, threads=threads), one, f"{isa}, {threads} threads")


def test_threads_do_not_change_a_byte_of_a_large_image() -> None:
    x = floats(rng(0), 2, 16, 120, 90)
    for groups, oc in ((1, 24), (16, 32)):
        problem = some_conv(16, oc, groups, (3, 3), (4, 4), padding=(1, 1, 1, 1))
        problem.x, problem.scale, problem.zero_point = x, None, None
        expected = problem.expected()
        for threads in (1, 2, 3, 7):
            assert_same_bits(
                problem.run("avx2" if "avx2" in ISAS else "scalar", threads=threads),
                expected,
                f"{threads}",
            )


# ---- meaning


@every_isa
@pytest.mark.parametrize("zero_point", [-128, 5, 127])
@pytest.mark.parametrize("groups", [1, 16])
def test_zeros_padding_is_real_zero(isa: str, groups: int, zero_point: int) -> None:
    x = torch.full((1, 16, 4, 4), zero_point, dtype=torch.int8)
    weight = torch.full((16, 16 // groups, 3, 3), 127, dtype=torch.int8)
    zero = torch.tensor([zero_point], dtype=torch.int32)
    problem = Conv2d(
        x,
        weight,
        torch.ones(16),
        torch.ones(1),
        zero,
        True,
        Epilogue(),
        padding=(1, 1, 1, 1),
        groups=groups,
    )
    assert problem.run(isa).eq(0).all()


@every_isa
@pytest.mark.parametrize("groups", [1, 18])
def test_no_sum_overflows(groups: int, isa: str) -> None:
    kernel = (60, 60)  # 18 * 3600 = 64800 of at most 65535
    x = torch.full((1, 18, 60, 60), -128, dtype=torch.int8)
    weight = torch.full((18, 18 // groups, *kernel), 127, dtype=torch.int8)
    zero = torch.tensor([127], dtype=torch.int32)
    problem = Conv2d(
        x, weight, torch.ones(18), torch.ones(1), zero, True, Epilogue(), groups=groups
    )
    assert problem.run(isa).unique().tolist() == [
        torch.tensor(-255.0 * 127 * 3600 * 18 / groups).item()
    ]


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_image_does_not_depend_on_its_batch(symmetric: bool) -> None:
    problem = some_conv(5, 20, 1, (3, 3), (7, 7), padding=(1, 1, 1, 1))
    g = rng(0)
    problem.x = floats(g, 4, 5, 7, 7) * torch.tensor([1.0, 100.0, 1e-3, 0.0]).view(4, 1, 1, 1)
    problem.scale = problem.zero_point = None
    problem.symmetric = symmetric
    for isa in ISAS:
        x = to_numpy(problem.x.permute(0, 2, 3, 1))
        images = [problem.run(isa, x=x[i : i + 1]) for i in range(4)]
        assert_same_bits(torch.cat(images), problem.run(isa), isa)


@every_isa
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_batch(dtype: torch.dtype, groups: int, isa: str) -> None:
    problem = some_conv(16, 32, groups, (3, 3), (5, 6), padding=(1, 0, 1, 0), stride=(2, 2))
    x = np.zeros((0, 5, 6, 16), to_numpy(torch.zeros(0, dtype=dtype)).dtype)
    scale = {"input_scale": np.ones(1, np.float32), "input_zero_point": np.zeros(1, np.int32)}
    assert problem.run(isa, x=x, out_dtype=NAMES[dtype], **scale).shape == (0, 32, 2, 3)
