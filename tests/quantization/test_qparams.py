import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkernels.quantization.qparams import QMAX, QMIN, choose_qparams

REALS = st.floats(-(2.0**100), 2.0**100, width=32)


def round_trip(x: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """The contract's quantizer and back, in float32 until the codes."""
    inverse = np.float32(1) / np.float32(scale)
    codes = np.rint(x.astype(np.float32) * inverse).astype(np.float64) + zero_point
    return (np.clip(codes, QMIN, QMAX) - zero_point) * scale


@given(REALS, REALS, st.booleans())
def test_every_value_in_range_returns_within_half_a_step(a: float, b: float, s: bool) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = choose_qparams(low, high, symmetric=s)
    x = np.linspace(min(low, 0), max(high, 0), 101)
    assert np.abs(round_trip(x, scale, zero_point) - x).max() <= scale * (0.5 + 1e-4)


@given(REALS, REALS, st.booleans())
def test_zero_is_exact_and_codes_are_legal(a: float, b: float, symmetric: bool) -> None:
    scale, zero_point = choose_qparams(min(a, b), max(a, b), symmetric=symmetric)
    assert QMIN <= zero_point <= QMAX
    assert round_trip(np.zeros(1), scale, zero_point) == 0
    assert scale > 0
    assert np.float32(scale) == scale
    assert np.isfinite(np.float32(1) / np.float32(scale))


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_empty_range_has_scale_one(symmetric: bool) -> None:
    assert choose_qparams(0.0, 0.0, symmetric=symmetric)[0] == 1.0


def test_one_sided_ranges_use_all_codes() -> None:
    assert choose_qparams(0.0, 255.0, symmetric=False) == (1.0, -128)
    assert choose_qparams(-255.0, 0.0, symmetric=False) == (1.0, 127)
    assert choose_qparams(3.0, 255.0, symmetric=False) == (1.0, -128)  # widened to hold 0
    assert choose_qparams(-10.0, 127.0, symmetric=True) == (1.0, 0)


def test_the_largest_and_smallest_floats_do_not_overflow() -> None:
    top = float(np.finfo(np.float32).max)
    scale, zero_point = choose_qparams(-top, top, symmetric=False)
    assert np.isfinite(np.float32(scale))
    assert zero_point in (-1, 0)
    assert choose_qparams(0.0, 1e-45, symmetric=False)[0] == float(np.finfo(np.float32).tiny)
