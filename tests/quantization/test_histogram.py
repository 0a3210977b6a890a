import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkernels.quantization.histogram import SIDE, Histogram

WIDE = st.floats(-(2.0**66), 2.0**66, width=32) | st.floats(-1, 1, width=32)
VALUES = st.lists(WIDE.filter(lambda v: v == 0 or abs(v) > 2.0**-80) | st.just(0.0), min_size=1)


def filled(batches: list[list[float]]) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        if batch:
            histogram.add(torch.tensor(batch), min(batch), max(batch))
    return histogram


@given(VALUES, st.data())
@settings(max_examples=60, deadline=None)
def test_batches_and_their_order_do_not_matter(values: list[float], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(values))
    cut = data.draw(st.integers(0, len(values)))
    one, two = filled([values]), filled([shuffled[:cut], shuffled[cut:]])
    assert (one.low, one.high, one.zeros, one.total) == (two.low, two.high, two.zeros, two.total)
    assert one.width == two.width
    for a, b in zip(one.bins(), two.bins(), strict=True):
        np.testing.assert_array_equal(a, b)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_counts_equal_numpys_on_the_same_edges(values: list[float]) -> None:
    histogram = filled([values[:3], values[3:]])
    counts, edges = histogram.bins()
    x = np.array([v for v in values if v != 0], dtype=np.float32)
    assert counts.sum() == len(x)
    assert histogram.total == len(values)
    if len(x):
        index = np.floor(x * np.float32(1 / histogram.width)).astype(int)
        index -= round(edges[0] / histogram.width)
        np.testing.assert_array_equal(counts, np.bincount(index, minlength=len(counts)))


@given(VALUES, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_quantiles_equal_numpys_within_a_bin(values: list[float], fraction: float) -> None:
    histogram = filled([values])
    expected = np.quantile(np.array(values, dtype=np.float64), fraction)
    clamped = np.clip(expected, histogram.low, histogram.high)
    assert abs(histogram.quantile(fraction) - clamped) <= histogram.width * 1.001


def test_bins_stay_fine_beside_an_outlier() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    x[0] = 1e3
    histogram = filled([x.tolist()])
    assert histogram.width <= 1e3 / (SIDE / 2)
    assert histogram.quantile(0.999) == pytest.approx(np.quantile(x.numpy(), 0.999), abs=0.07)


def test_memory_is_bounded_and_large_tensors_are_counted_whole() -> None:
    histogram = Histogram()
    x = torch.linspace(-1, 1, (1 << 22) + 17)  # more than one chunk
    for scale in (1, 3, 1e6):
        histogram.add(x * scale, -scale, scale)
    counts, _ = histogram.bins()
    assert counts.sum() + histogram.zeros == 3 * x.numel() == histogram.total
    assert len(counts) <= 2 * SIDE
    assert len(histogram.bins(16)[0]) <= 32
    assert histogram.bins(16)[0].sum() == counts.sum()


def test_half_precision_and_strided_tensors_count_like_their_float_copies() -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for view in (x, x.t(), x[::2, 1:4], x[:1].expand(5, 6)):
        histogram = Histogram()
        histogram.add(view, view.min().item(), view.max().item())
        expected = filled([view.float().flatten().tolist()])
        np.testing.assert_array_equal(histogram.bins()[0], expected.bins()[0])


def test_a_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        Histogram().quantile(0.5)
