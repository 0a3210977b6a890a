"""Images of other sizes as steps of a program: nearest and bilinear, mirrored and circular borders."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program_bytes import payload, seal
from torch import Tensor
from torch.nn import functional as F
from value_steps import ISAS

from qkernels import _core, reference
from qkernels.program import Program
from qkernels.program.format import Step, Value, assemble


def program_of(kind: str, channels: int, dtype: str, **fields: Any) -> Program:
    """An image through one step; int8 on the way where ``dtype`` says so, each number an integer."""
    image = {"rank": 4, "callers": True}
    if dtype == "float32":
        values = [
            Value(channels, dtype="float32", nhwc_only=True, **image),
            Value(channels, dtype="float32", **image),
        ]
        return Program(assemble(values, [Step(kind, kind, 0, 1, fields=fields)], [0], [1]))
    eye = {
        "weight": _core.pack_weight(np.eye(channels, dtype=np.int8)),
        "w_scale": np.ones(channels, np.float32),
    }
    inside = [Value(channels, 4, "int8") for _ in range(2)]
    values = [
        Value(channels, dtype="float32", nhwc_only=True, **image),
        *inside,
        Value(channels, dtype="float32", **image),
    ]
    steps = [
        Step("linear", "to int8", 0, 1, fields={"k": channels}, constants=eye),
        Step(kind, kind, 1, 2, fields=fields),
        Step("linear", "to float", 2, 3, fields={"k": channels}, constants=eye),
    ]
    return Program(assemble(values, steps, [0], [3]))


def image(size: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == "float32":
        return torch.randn(size, generator=generator)
    return torch.randint(-128, 128, size, generator=generator).float()


def outputs(program: Program, x: Tensor) -> list[Tensor]:
    """On every instruction set, by 1 to 3 threads."""
    core = _core.Program(program.data)
    runs = [core.run([x.numpy()], 1 + i % 3, isa=isa) for i, isa in enumerate(ISAS * 3)]
    return [torch.from_numpy(y.copy()) for [y] in runs]


images = st.tuples(
    st.integers(1, 3), st.sampled_from([1, 3, 20]), st.integers(1, 13), st.integers(1, 13)
)


@settings(max_examples=80, deadline=None)
@given(
    mode=st.sampled_from(["nearest", "nearest-exact", "bilinear"]),
    dtype=st.sampled_from(["float32", "int8"]),
    size=images,
    out=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    align_corners=st.booleans(),
)
def test_an_image_of_a_given_size_is_that_of_torch(
    mode: str, dtype: str, size: tuple[int, ...], out: tuple[int, int], align_corners: bool
) -> None:
    how = {"align_corners": align_corners} if mode == "bilinear" else {}
    x = image(size, dtype)
    expected = F.interpolate(x, out, mode=mode, **how)
    exact = expected
    if mode == "bilinear":
        given_x = x if dtype == "float32" else x.to(torch.int8)
        exact = reference.resize_bilinear(given_x, out, **how).float()
    program = program_of(
        "resize",
        size[1],
        dtype,
        mode=mode,
        out_h=out[0],
        out_w=out[1],
        **{k: int(v) for k, v in how.items()},
    )
    for y in outputs(program, x):
        assert torch.equal(y, exact)
        assert (y - expected).abs().max() <= (1e-5 if dtype == "float32" else 0.5001)


@settings(max_examples=80, deadline=None)
@given(
    mode=st.sampled_from(["nearest", "nearest-exact", "bilinear"]),
    size=images,
    scale=st.tuples(st.floats(0.4, 3.5), st.floats(0.4, 3.5))
    | st.sampled_from([(2.0, 2.0), (0.5, 0.5), (4.0, 3.0)]),
    recompute=st.booleans(),
)
def test_an_image_of_a_given_scale_is_that_of_torch(
    mode: str, size: tuple[int, ...], scale: tuple[float, float], recompute: bool
) -> None:
    out = tuple(math.floor(n * s) for n, s in zip(size[2:], scale, strict=True))
    fields: dict[str, Any] = {"mode": mode, "scale_h": scale[0], "scale_w": scale[1]}
    if recompute:
        fields = {"mode": mode, "out_h": max(out[0], 1), "out_w": max(out[1], 1)}
    program, x = program_of("resize", size[1], "float32", **fields), image(size, "float32")
    if min(out) < 1:
        if not recompute:
            with pytest.raises(ValueError, match="becomes an empty one"):
                program(x.numpy())
        return
    expected = F.interpolate(x, scale_factor=scale, mode=mode, recompute_scale_factor=recompute)
    for y in outputs(program, x):
        assert y.shape == expected.shape
        assert torch.equal(y, expected) if mode != "bilinear" else (y - expected).abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["reflect", "replicate", "circular"]),
    dtype=st.sampled_from(["float32", "int8"]),
    size=images,
    sides=st.tuples(*[st.integers(0, 4)] * 4),
)
def test_a_border_of_the_images_own_pixels_is_that_of_torch(
    mode: str, dtype: str, size: tuple[int, ...], sides: tuple[int, int, int, int]
) -> None:
    left, right, top, bottom = sides
    program = program_of(
        "pad",
        size[1],
        dtype,
        pad_mode=mode,
        pad_top=top,
        pad_bottom=bottom,
        pad_left=left,
        pad_right=right,
    )
    x = image(size, dtype)
    limit = {"reflect": -1, "circular": 0, "replicate": 99}[mode]
    if max(top, bottom) > size[2] + limit or max(left, right) > size[3] + limit:
        with pytest.raises(
            ValueError, match=f"its padding does not fit an image of {size[2]}x{size[3]}"
        ):
            program(x.numpy())
        return
    for y in outputs(program, x):
        assert torch.equal(y, F.pad(x, sides, mode=mode))


@pytest.mark.parametrize(
    ("kind", "field", "value", "sentence"),
    [
        ("resize", "mode", 3, "it resizes in no known mode"),
        ("resize", "align_corners", 1, "it resizes in no known mode"),
        ("resize", "scale_h", -1.0, "its scale is not finite and at least 0"),
        ("resize", "scale_w", np.nan, "its scale is not finite and at least 0"),
        ("resize", "out_h", 0, "its output has no size"),
        ("resize", "out_w", -1, "its output has no size"),
        ("pad", "pad_mode", 0, "its padding is negative or of no mode"),
        ("pad", "pad_left", -1, "its padding is negative or of no mode"),
    ],
)
def test_a_forged_size_or_border_is_refused(
    kind: str, field: str, value: float, sentence: str
) -> None:
    fields = {"out_h": 3, "out_w": 4} if kind == "resize" else {"pad_left": 1}
    data = program_of(kind, 3, "float32", **fields).data.copy()
    payload(data, 0)[field] = value
    seal(data)
    with pytest.raises(ValueError, match=sentence):
        Program(data)
