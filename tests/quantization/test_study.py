import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkernels.quantization.study import (
    affine_minmax,
    fake_affine,
    fixed_point,
    requantize_fixed_point,
    round_by,
)
from qkernels.reference import round_to_int8

VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40).map(torch.tensor)
MODES = ["nearest_even", "half_away", "floor"]


@given(VALUES, st.integers(2, 8), st.sampled_from(MODES))
def test_affine_errs_by_half_a_step_and_keeps_both_ends(x, bits, mode) -> None:
    got = affine_minmax(x, bits=bits, rounding=mode)
    error = (got.values() - x.double()).abs().max().item()
    slack = 1e-9 * float(x.abs().max()) + 1e-12
    assert error <= got.scale * (1 if mode == "floor" else 0.5) + slack
    assert int(got.codes.max()) <= 2**bits - 1
    if mode != "floor":  # truncation may lose the top by a rounding of the division
        back = got.values()
        assert back.min().item() == pytest.approx(x.min().item(), abs=slack)
        assert back.max().item() == pytest.approx(x.max().item(), abs=slack)


@pytest.mark.parametrize("value", [0.0, -3.5, 7.0])
def test_a_tensor_of_one_value_comes_back(value: float) -> None:
    assert torch.equal(fake_affine(torch.full((3, 2), value)), torch.full((3, 2), value))


def test_the_largest_weight_does_not_wrap_and_negatives_stay() -> None:
    x = torch.tensor([-1.0, -0.5, 0.0, 0.999, 1.0])
    for bits in range(2, 9):
        back = fake_affine(x, bits=bits)
        assert back[-1] == 1 and back[0] == -1
        assert (back.diff() >= 0).all()


@given(VALUES)
def test_rounding_modes_keep_their_bounds(x) -> None:
    x = x.double()
    for mode in MODES:
        error = x - round_by(x, mode)
        low, high = (0, 1) if mode == "floor" else (-0.5, 0.5)  # 1 - tiny is 1 in float64
        assert ((error >= low) & (error <= high)).all()


def test_rounding_modes_differ_on_ties() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997])
    assert round_by(x, "nearest_even").tolist() == [-2, -2, 0, 0, 2, 2, 0]
    assert round_by(x, "half_away").tolist() == [-3, -2, -1, 1, 2, 3, 0]
    assert round_by(x, "floor").tolist() == [-3, -2, -1, 0, 1, 2, 0]


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40),
    st.floats(1e-9, 1.0),
    st.integers(-128, 127),
)
def test_fixed_point_is_within_one_of_the_float_rescaling(totals, factor, zero_point) -> None:
    total = torch.tensor(totals, dtype=torch.int32)
    got = requantize_fixed_point(total, factor, zero_point)
    scale = torch.tensor(factor, dtype=torch.float32)
    expected = round_to_int8(total.float(), scale, torch.tensor(zero_point))
    assert int((got.int() - expected.int()).abs().max()) <= 1


@given(st.floats(1e-9, 1e9))
def test_multiplier_and_shift_hold_the_factor_to_31_bits(factor: float) -> None:
    multiplier, shift = fixed_point(factor)
    assert 2**30 <= multiplier < 2**31
    assert multiplier * 2.0 ** (-31 - shift) == pytest.approx(factor, rel=2**-31)


def test_fixed_point_rounds_ties_up() -> None:
    got = requantize_fixed_point(torch.tensor([-3, -1, 1, 3], dtype=torch.int32), 0.5, 0)
    assert got.tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize("bits", [1, 9, 0, -8])
def test_bits_outside_2_to_8_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits={bits} must be a whole number from 2 to 8"):
        affine_minmax(torch.randn(4), bits=bits)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="it is empty"):
        affine_minmax(torch.empty(0, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        affine_minmax(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="rounding='up' is not known: choose one of nearest_even"):
        round_by(torch.ones(1), "up")  # type: ignore[arg-type]
    for factor in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="must be finite and above 0"):
            fixed_point(factor)
