import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import qkernels
from qkernels import data as datasets
from qkernels.distill import TrainConfig, train
from qkernels.evaluate import evaluate
from qkernels.models import create
from qkernels.qat import (
    FakeQuantConv2d,
    FakeQuantLinear,
    convert_qat,
    fake_quantize,
    fit_qat,
    prepare_qat,
)


def net(
    groups: int = 1, padding_mode: str = "zeros", relu6: bool = False, seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode=padding_mode, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=groups), nn.ReLU6() if relu6 else nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    for _ in range(5):
        model(torch.randn(16, 3, 10, 10))
    return model.eval()


def images(seed: int = 1, count: int = 16) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


def train_a_little(model: nn.Module, steps: int = 5) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(16) % 5
    for step in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(images(step)), labels).backward()
        optimizer.step()


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([1, 2, 8]),
    st.sampled_from(["zeros", "reflect", "circular"]),
    st.booleans(),
    st.sampled_from(["per_channel", "per_tensor"]),
    st.integers(0, 99),
)
def test_the_converted_model_has_the_bits_of_the_trained_one(
    groups: int, padding_mode: str, relu6: bool, weight: str, seed: int
) -> None:
    model = prepare_qat(net(groups, padding_mode, relu6, seed), {"weight": weight}, images())
    train_a_little(model)
    int8 = convert_qat(model)
    x = images(7)
    assert torch.equal(model.train()(x), int8(x))  # what was trained, gradients on
    with torch.no_grad():
        assert torch.equal(model.eval()(x), int8(x))
    assert not any(isinstance(m, FakeQuantConv2d | FakeQuantLinear) for m in int8.modules())


def test_before_training_it_is_the_ptq_model_and_the_float_model_stays() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_qat(model, calibration=images())
    ptq = qkernels.quantize(model, calibration=images())
    assert torch.equal(prepared(images(3)), ptq(images(3)))
    train_a_little(prepared)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_training_moves_weights_and_scales_and_lowers_the_loss() -> None:
    model = prepare_qat(net(), calibration=images())
    before = {name: value.clone() for name, value in model.named_parameters()}
    labels = torch.arange(16) % 5
    loss = cross_entropy(model(images(0)), labels).item()
    train_a_little(model, 20)
    moved = {n for n, v in model.named_parameters() if not torch.equal(v, before[n])}
    assert moved == set(before)
    assert any(name.endswith("weight_scale") for name in moved)
    assert cross_entropy(model(images(0)), labels).item() < loss


def test_scales_stay_when_they_are_not_to_learn() -> None:
    model = prepare_qat(net(), calibration=images(), learn_scales=False)
    before = model[0].input_scale.clone()
    train_a_little(model)
    assert torch.equal(model[0].input_scale, before)


def test_the_gradients_are_those_of_lsq() -> None:
    x = torch.tensor([0.26, -0.9, 5.0, -9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = fake_quantize(x, scale, -4.0, 3.0)
    torch.testing.assert_close(y, torch.tensor([0.5, -1.0, 1.5, -2.0]))
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 0, 0]
    inside = (1 - 0.52) + (-2 + 1.8)
    expected = (inside + 3 - 4) / (4 * 127) ** 0.5
    torch.testing.assert_close(scale.grad, torch.tensor(expected))


def test_a_shared_layer_stays_shared_and_float_layers_stay_float() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    prepared = prepare_qat(model, {"exclude": ["3"]}, torch.randn(8, 4))
    assert prepared[0] is prepared[2] and type(prepared[3]) is nn.Linear
    int8 = convert_qat(prepared)
    assert int8[0] is int8[2] and type(int8[3]) is nn.Linear


def test_a_trained_model_saves_and_loads_with_the_same_bits(tmp_path: Path) -> None:
    model = prepare_qat(net(), calibration=images())
    train_a_little(model)
    int8 = convert_qat(model)
    qkernels.save(int8, tmp_path / "m.safetensors")
    other = qkernels.quantize(net(), calibration=images())
    loaded = qkernels.load(tmp_path / "m.safetensors", model=other)
    assert torch.equal(loaded(images(3)), int8(images(3)))


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="layer '0' is dynamic: only static layers train"):
        prepare_qat(net(), {"activation": "dynamic"}, images())
    with pytest.raises(ValueError, match="starts from ranges: give calibration"):
        prepare_qat(net())
    with pytest.raises(ValueError, match="calibration data is empty"):
        prepare_qat(net(), calibration=[])
    with pytest.raises(ValueError, match="Sequential has no fake-quant layer"):
        convert_qat(net())


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, datasets.ImageData, Tensor]:
    data = datasets.load("digits")
    torch.manual_seed(0)
    model = create("resnet8", num_classes=10, in_channels=1, width=4)
    train(model, data, TrainConfig(epochs=3, lr=0.05, **COMMON), progress=False)
    return model, data, next(iter(data.batches("train", 256)))[0]


COMMON = {"batch_size": 128, "augment": False}


def test_it_trains_with_a_teacher_in_the_same_trainer(digits, tmp_path: Path) -> None:
    model, data, calibration = digits
    settings = TrainConfig(epochs=2, lr=0.005, temperature=1.0, **COMMON)
    int8 = fit_qat(
        model, data, settings, calibration, teacher=model, run_dir=tmp_path, progress=False
    )
    result, got = qkernels.report(int8), evaluate(int8, data, "val")
    assert got.accuracy == max(result.before.accuracy, result.after.accuracy)
    assert any(tmp_path.iterdir())


def test_training_that_ruins_the_model_gives_ptq_back(digits) -> None:
    model, data, calibration = digits
    settings = TrainConfig(epochs=1, lr=1.0, clip_grad_norm=1.0, **COMMON)
    int8 = fit_qat(model, data, settings, calibration, progress=False)
    result = qkernels.report(int8)
    ptq = qkernels.quantize(model, calibration=calibration)
    assert not result.trained and result.after.accuracy < result.before.accuracy
    assert torch.equal(int8(calibration), ptq(calibration))


def test_no_validation_images_is_one_sentence(digits) -> None:
    model, data, calibration = digits
    bare = replace(data, val=data.val.head(0))
    with pytest.raises(ValueError, match="has no validation images to compare on"):
        fit_qat(model, bare, TrainConfig(), calibration)


def test_a_folder_of_another_model_or_scheme_is_refused(digits, tmp_path: Path) -> None:
    model, data, calibration = digits
    settings = TrainConfig(epochs=1, lr=1e-4, **COMMON)

    def fit(model: nn.Module, **quant: Any) -> None:
        fit_qat(model, data, settings, calibration, quant=quant, run_dir=tmp_path, progress=False)

    fit(model)
    fit(model)
    with pytest.raises(ValueError, match="holds a run with quant="):
        fit(model, weight="per_tensor")
    other = copy.deepcopy(model)
    next(other.parameters()).data.mul_(2)
    with pytest.raises(ValueError, match="holds a run with weights="):
        fit(other)
