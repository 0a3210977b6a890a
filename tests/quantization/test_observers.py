import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkernels.quantization import QuantConfig
from qkernels.quantization.clip import best_range, divergence, squared_error
from qkernels.quantization.histogram import Histogram
from qkernels.quantization.observers import (
    MSE,
    Entropy,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    make_observer,
)
from qkernels.quantization.qparams import QMAX, QMIN, choose_qparams

KINDS = [MinMax, MovingAverage, Percentile, MSE, Entropy]
VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50)
SHAPES = ["normal", "relu", "laplace", "outlier", "uniform", "negative"]


def sample(shape: str, n: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, generator=generator)
    if shape == "relu":
        return x.relu()
    if shape == "laplace":
        return x.sign() * -torch.rand(n, generator=generator).clamp_min(1e-7).log()
    if shape == "outlier":
        return torch.cat([x, torch.tensor([60.0, -20.0])])
    if shape == "uniform":
        return torch.rand(n, generator=generator) * 3 - 1
    return -x.abs() if shape == "negative" else x


def true_error(x: Tensor, scale: float, zero_point: int) -> float:
    codes = ((x.double() / scale).round() + zero_point).clamp(QMIN, QMAX)
    return ((codes - zero_point) * scale - x.double()).square().mean().item()


def histogram_of(x: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.add(x, x.min().item(), x.max().item())
    return histogram


@given(VALUES, VALUES)
@settings(deadline=None)
def test_minmax_clips_nothing(first: list[float], second: list[float]) -> None:
    observer = MinMax()
    observer.observe(torch.tensor(first))
    observer.observe(torch.tensor(second))
    everything = [*first, *second, 0.0]
    assert observer.range() == (min(everything), max(everything))


@given(st.lists(VALUES, min_size=1, max_size=5), st.floats(0.01, 1))
@settings(deadline=None)
def test_moving_average_equals_the_recurrence(batches: list[list[float]], momentum: float) -> None:
    observer = MovingAverage(momentum=momentum)
    low, high = min(batches[0]), max(batches[0])
    for i, batch in enumerate(batches):
        observer.observe(torch.tensor(batch))
        if i:
            low += momentum * (min(batch) - low)
            high += momentum * (max(batch) - high)
    assert observer.range() == pytest.approx((min(low, 0), max(high, 0)))


@given(VALUES)
@settings(deadline=None)
def test_percentile_hardly_clips_few_values(values: list[float]) -> None:
    observer = Percentile()
    observer.observe(torch.tensor(values))
    low, high = observer.range()
    slack = 2e-3 * max(map(abs, values))
    assert low <= min([*values, 0]) + slack
    assert high >= max([*values, 0]) - slack


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile_equals_numpy_on_both_tails(percentile: float) -> None:
    x = sample("normal")
    observer = Percentile(percentile=percentile)
    for batch in x.split(777):
        observer.observe(batch)
    expected = np.percentile(x.double().numpy(), [100 - percentile, percentile])
    np.testing.assert_allclose(observer.range(), expected, atol=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_close_to_the_best_of_a_brute_force_grid(shape: str, symmetric: bool) -> None:
    x = sample(shape)
    observer = MSE(symmetric=symmetric)
    observer.observe(x)
    found = true_error(x, *observer.qparams())
    low, high = min(x.min().item(), 0), max(x.max().item(), 0)
    fractions = np.geomspace(1, 0.02, 40)
    grid = [(low * a, high * b) for a in fractions for b in fractions if not symmetric or a == b]
    best = min(true_error(x, *choose_qparams(*ends, symmetric=symmetric)) for ends in grid)
    assert found <= best * 1.05


@given(st.sampled_from(SHAPES), st.floats(0.05, 1.2), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_squared_error_of_the_histogram_is_that_of_the_data(
    shape: str, fraction: float, symmetric: bool
) -> None:
    x = sample(shape)
    histogram = histogram_of(x)
    qparams = choose_qparams(
        histogram.low * fraction, histogram.high * fraction, symmetric=symmetric
    )
    expected = true_error(x, *qparams)
    assert squared_error(histogram)(*qparams) / len(x) == pytest.approx(expected, rel=0.05)


def test_divergence_falls_when_an_outlier_is_clipped() -> None:
    histogram = histogram_of(sample("outlier", 200_000))
    loss = divergence(histogram)
    whole = loss(*choose_qparams(histogram.low, histogram.high, symmetric=False))
    low, high = best_range(histogram, loss, symmetric=False)
    assert loss(*choose_qparams(low, high, symmetric=False)) < whole
    assert 2.5 < high < 30
    assert -20 < low < -2.5


def test_divergence_equals_a_plain_loop() -> None:
    histogram = histogram_of(sample("laplace"))
    scale, zero_point = choose_qparams(-3, 4, symmetric=False)
    counts, edges = histogram.bins(4096)
    bins: dict[int, list[float]] = {}
    below = above = 0.0
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        code = int(np.rint((left + right) / 2 / scale)) + zero_point
        if count and code < QMIN:
            below += count
        elif count and code > QMAX:
            above += count
        elif count:
            bins.setdefault(code, []).append(count)
    p = [count for code in sorted(bins) for count in bins[code]]
    q = [sum(bins[code]) / len(bins[code]) for code in sorted(bins) for _ in bins[code]]
    p[0] += below
    p[-1] += above
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    expected = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence(histogram)(scale, zero_point) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_observer_keeps_the_bulk_of_the_data(
    kind: type[Observer], shape: str, symmetric: bool
) -> None:
    x = sample(shape)
    observer = kind(symmetric=symmetric)
    for batch in x.split(5000):
        observer.observe(batch)
    scale, zero_point = observer.qparams()
    bulk = x[:20_000]
    noise, signal = true_error(bulk, scale, zero_point), bulk.double().square().mean().item()
    assert noise < signal * 2e-2
    assert QMIN <= zero_point <= QMAX
    assert not symmetric or zero_point == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30, -1e30, 1e-45])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constants_come_back(kind: type[Observer], value: float, symmetric: bool) -> None:
    observer = kind(symmetric=symmetric)
    x = torch.full((100,), value)
    observer.observe(x)
    scale, zero_point = observer.qparams()
    assert scale == 1.0 if value == 0 else scale > 0
    codes = ((x.double() / scale).round() + zero_point).clamp(QMIN, QMAX)
    assert ((codes - zero_point) * scale - x).abs().max() <= max(abs(value) * 4e-3, 1e-38)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_are_counted_and_the_layer_named(kind: type[Observer]) -> None:
    x = torch.tensor([1.0, float("nan"), float("inf"), float("-inf"), float("nan")])
    with pytest.raises(ValueError, match=r"'body\.fc' holds 2 NaN and 2 infinite values of 5"):
        kind("body.fc").observe(x)
    with pytest.raises(ValueError, match="0 NaN and 1 infinite"):
        kind().observe(torch.tensor([1.0, float("inf")]))


@pytest.mark.parametrize("kind", KINDS)
def test_no_values_is_an_error_and_empty_batches_change_nothing(kind: type[Observer]) -> None:
    observer = kind("fc")
    observer.observe(torch.empty(0, 3))
    with pytest.raises(ValueError, match="'fc' has seen no values"):
        observer.qparams()
    observer.observe(torch.tensor([2.0]))
    before = observer.qparams()
    observer.observe(torch.empty(0, 3))
    assert observer.qparams() == before


@pytest.mark.parametrize("kind", [MinMax, Percentile, MSE, Entropy])
def test_the_answer_does_not_depend_on_batch_size(kind: type[Observer]) -> None:
    x = sample("laplace")
    answers = set()
    for size in (37, 5000, len(x)):
        observer = kind()
        for batch in x.split(size):
            observer.observe(batch)
        answers.add(observer.qparams())
    assert len(answers) == 1


def test_the_config_chooses_the_observer_and_its_settings() -> None:
    def made(**settings: object) -> Observer:
        return make_observer("fc", QuantConfig.from_dict(settings))

    assert isinstance(made(), Percentile)
    assert made(percentile=99.0).percentile == 99.0  # type: ignore[attr-defined]
    assert made(observer="moving_average", momentum=0.5).momentum == 0.5  # type: ignore[attr-defined]
    for name, kind in {"minmax": MinMax, "mse": MSE, "entropy": Entropy}.items():
        observer = made(observer=name, symmetric=True)
        assert (type(observer), observer.symmetric, observer.name) == (kind, True, "fc")
