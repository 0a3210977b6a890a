import pytest
import torch
from nets import conv_net, images

import qkernels as qk
from qkernels.quantization import QuantConfig, quantize


def test_global_gives_all_layers_the_one_range_that_covers_them() -> None:
    model, x = conv_net(), images(16)
    own = qk.report(quantize(model, {"observer": "minmax"}, x))
    shared = quantize(model, {"observer": "global"}, x)
    report = qk.report(shared)
    scales = {layer.input_scale for layer in report.converted}
    own_scales = [layer.input_scale for layer in own.converted]
    assert len(scales) == 1 and len(set(own_scales)) == 4
    assert scales.pop() >= max(own_scales)
    assert shared(x).isfinite().all()


def test_a_fixed_range_needs_no_data_and_is_the_one_given() -> None:
    model = quantize(conv_net(), {"observer": "fixed", "range": (-4, 4)})
    report = qk.report(model)
    assert [layer.input_scale for layer in report.converted] == pytest.approx([8 / 255] * 4)
    assert model(images()).isfinite().all()
    mixed = {"overrides": {"conv1": {"observer": "fixed", "range": [-4, 4]}}}
    report = qk.report(quantize(conv_net(), mixed, images()))
    assert [layer.input_scale == pytest.approx(8 / 255) for layer in report.converted] == [
        True, False, False, False,
    ]  # fmt: skip


def test_a_fixed_range_survives_json() -> None:
    config = QuantConfig(observer="fixed", range=(-1.5, 2))
    assert QuantConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("value", [(1, 1), (2, -2), (0, float("inf")), (0, float("nan"))])
def test_a_range_without_width_is_refused(value: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be finite, with low below high"):
        QuantConfig(observer="fixed", range=value)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="range=3 must be two numbers"):
        QuantConfig(range=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'conv1': the fixed observer needs range"):
        quantize(conv_net(), {"observer": "fixed"})
    report = qk.report(quantize(conv_net(), {"exclude": ["conv3"]}, torch.randn(4, 3, 8, 8)))
    assert any(
        "'conv3' of the config matches no module; the nearest: conv" in n for n in report.notes
    )
