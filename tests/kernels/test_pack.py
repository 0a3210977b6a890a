"""The packed layout: exactly invertible, zero where padded, with its sums."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from cases import channels, int8, quick, rng
from hypothesis import given

from qkernels import _core


@st.composite
def weights(draw: Any) -> tuple[np.ndarray, int]:
    g = rng(draw(st.integers(0, 2**20)))
    if draw(st.booleans()):
        return int8(g, draw(st.integers(1, 70)), draw(st.integers(1, 200)), low=-127).numpy(), 1
    c, oc, groups = channels(draw, draw(st.sampled_from(["dense", "grouped", "depthwise"])))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return int8(g, oc, c // groups, *kernel, low=-127).numpy(), groups


@given(case=weights())
@quick(150)
def test_unpack_is_the_exact_inverse(case: tuple[np.ndarray, int]) -> None:
    weight, groups = case
    packed = _core.pack_weight(weight, groups)
    assert (_core.unpack_weight(packed, weight.shape, groups) == weight).all()


@given(
    n=st.integers(1, 70), k=st.integers(1, 200), depthwise=st.booleans(), seed=st.integers(0, 99)
)
@quick(100)
def test_padding_is_zero_and_sums_are_true(n: int, k: int, depthwise: bool, seed: int) -> None:
    weight = int8(rng(seed), n, k, low=-127).numpy()
    packed = (
        _core.pack_weight(weight.reshape(n, 1, 1, k), n) if depthwise else _core.pack_weight(weight)
    )
    n_padded = -(-n // 16) * 16
    values, sums, shape = np.split(packed, [-16 - 4 * n_padded, -16])
    sums = sums.view(np.int32)
    assert shape.view(np.int32).tolist() == [_core.LAYOUT_VERSION, 1, n, k]
    assert len(values) == n_padded * (-(-k // 64) * 64)
    assert (values != 0).sum() == (weight != 0).sum()
    assert (sums[:n] == weight.astype(np.int32).sum(1)).all()
    assert (sums[n:] == 0).all()


def test_the_layout_is_panels_of_16_channels_by_4() -> None:
    weight = np.arange(32 * 8, dtype=np.int64).reshape(32, 8) % 127
    values = _core.pack_weight(weight.astype(np.int8))[: 32 * 64].reshape(2, 16, 16, 4)
    assert (values[:, :2].transpose(0, 2, 1, 3).reshape(32, 8) == weight).all()
    assert _core.LAYOUT_VERSION == 2


def test_each_kernel_row_starts_a_new_group_of_four() -> None:
    weight = int8(rng(0), 16, 3, 2, 3, low=-127).numpy()
    values = _core.pack_weight(weight)[: 16 * 64].reshape(16, 16, 4)[:6].transpose(1, 0, 2)
    rows = values.reshape(16, 2, 12)  # nine values of a kernel row, three zeros
    assert (rows[:, :, :9].reshape(16, 2, 3, 3) == weight.transpose(0, 2, 3, 1)).all()
    assert (rows[:, :, 9:] == 0).all()


@pytest.mark.parametrize("order", ["F", "C"])
def test_any_strides_are_packed(order: str) -> None:
    weight = int8(rng(0), 20, 3, 3, 3, low=-127).numpy()
    for view in (np.asarray(weight, order=order), weight[::-1], weight.transpose(0, 1, 3, 2)):
        assert (_core.unpack_weight(_core.pack_weight(view), view.shape) == view).all()
