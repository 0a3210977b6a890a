"""Chained models against the module-wise models that they come from."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels import models

ROOT = Path(os.environ.get("QKERNELS_DATA", "/nonexistent"))


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def quantized(model: nn.Module, *x: Tensor, activation: str = "static") -> nn.Module:
    calibration = [x if len(x) > 1 else x[0]] if activation == "static" else None
    return qk.quantize(model.eval(), {"activation": activation}, calibration)


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 12, 3, stride=2), nn.ReLU6(), nn.Flatten(), nn.Dropout(),
        nn.Linear(12 * 9, 7), nn.ReLU(), nn.Linear(7, 4),
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_chain_without_residuals_keeps_every_bit(batch: int, layout: torch.memory_format) -> None:
    x = images(4, 3, 15, 15)
    model = quantized(plain_net(), x)
    chained = qk.compile(model, x, exact=True)
    assert [r.writes for r in chained.report.layers] == ["int8", "int8", "int8", "float32"]
    assert chained.report.unfused == []
    x = images(batch, 3, 15, 15, seed=batch).contiguous(memory_format=layout)
    assert torch.equal(chained(x), model(x))


def test_the_tutorial_cnn_keeps_every_bit() -> None:
    torch.manual_seed(0)
    x = images(3, 3, 32, 32)
    model = quantized(models.create("tutorial_cnn"), x)
    chained = qk.compile(model, x, exact=True)
    assert chained.report.chained == 3
    assert torch.equal(chained(x), model(x))


@pytest.mark.parametrize("activation", ["dynamic", "static"])
def test_float_residuals_and_dynamic_layers_keep_every_bit(activation: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x) + self.b(x))
            return self.head(y.mean((2, 3)))

    torch.manual_seed(0)
    x = images(2, 3, 9, 7)
    model = quantized(Net(), x, activation=activation)
    chained = qk.compile(model, x, exact=True)
    assert chained.report.unfused == ["mean"]
    assert torch.equal(chained(x), model(x))


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v2"])
def test_residual_models_keep_every_bit_unless_their_residuals_are_int8(name: str) -> None:
    torch.manual_seed(0)
    x = images(2, 3, 33, 33)
    model = quantized(models.create(name), x)
    expected = model(x)
    assert torch.equal(qk.compile(model, x, exact=True)(x), expected)
    chained = qk.compile(model, x)
    assert chained.report.chained > len(chained.report.layers) // 2
    error = (chained(x) - expected).norm() / expected.norm()
    assert 0 < error < 0.1


class OwnView(nn.Module):
    """Shapes asked of the data, in-place steps, and a submodule whose name is a function's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Linear(6, 4),
        )
        self.relu = nn.PReLU()
        self.inplace = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inplace(self.a(x))
        y = self.relu(self.b(x))
        y += x
        y = self.b(self.inplace(y))
        return self.head(y.view(y.size(0), 6, -1).amax(2))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 3, 9, 9), (3, 3, 11, 6), (5, 3, 4, 17)])
def test_other_batches_and_image_sizes_than_the_example_work(
    threads: int, size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    example = images(2, 3, 8, 8)
    model = quantized(OwnView(), example)
    chained = qk.compile(model, example, exact=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(chained(images(*size)), model(images(*size)))
    finally:
        torch.set_num_threads(before)
    assert "relu (prelu)" in chained.report.unfused


def test_a_layer_used_twice_two_inputs_and_two_outputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(torch.relu(self.conv(x))), torch.sigmoid(self.other(y))

    torch.manual_seed(0)
    x, y = images(2, 3, 8, 8), images(2, 3, 5, 7, seed=1)
    net = Twice().eval()
    model = qk.quantize(net, {"activation": "static"}, lambda m: m(x, y))
    chained = qk.compile(model, (x, y), exact=True)
    for got, expected in zip(chained(x, y), model(x, y), strict=True):
        assert torch.equal(got, expected) and got.is_contiguous()
    assert chained.report.unfused == ["sigmoid"]


def test_callers_on_many_threads_get_the_same_bits() -> None:
    x = images(4, 3, 15, 15)
    chained = qk.compile(quantized(plain_net(), x), x, exact=True)
    expected, got = chained(x), []
    workers = [threading.Thread(target=lambda: got.append(chained(x))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(got) == 4 and all(torch.equal(y, expected) for y in got)


def test_bad_models_and_inputs_get_one_sentence() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    x = torch.ones(2, 4)
    model = quantized(Branches(), x)
    with pytest.raises(ValueError, match="cannot be captured, so it stays un-chained"):
        qk.compile(model, x, exact=True)
    with pytest.raises(ValueError, match="no int8 layer"):
        qk.compile(nn.Sequential(nn.Linear(4, 4)).eval(), x, exact=True)
    chained = qk.compile(quantized(nn.Sequential(nn.Linear(4, 4)), x), x)
    with pytest.raises(ValueError, match=r"input 0 is torch\.float16"):
        chained(x.half())
    with pytest.raises(ValueError, match="2 dimensions is needed"):
        chained(x[None])


def test_a_write_into_a_value_that_others_read_reaches_them_as_in_the_model() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) + self.relu(y)

    x = images(3, 4)
    model = quantized(Shared(), x)
    chained = qk.compile(model, x, exact=True)
    assert torch.equal(chained(x), model(x)) and chained.program is not None


def test_a_view_of_a_copy_beside_a_step_of_torch_is_not_of_what_was_copied() -> None:
    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.erf(self.a(x)).transpose(1, 2).contiguous().view(len(x), 2, 12)
            return self.b(torch.erf(y))

    torch.manual_seed(0)
    x = images(2, 3, 6)
    model = quantized(Copied(), x)
    for exact in (True, False):
        assert torch.equal(qk.compile(model, x, exact=exact)(x), model(x))


@pytest.mark.parametrize("name", ["resnet20", pytest.param("resnet56", marks=pytest.mark.slow)])
def test_accuracy_on_official_images_is_unchanged(name: str) -> None:
    from qkernels.data import load
    from qkernels.data.paths import find
    from qkernels.evaluate import evaluate
    from qkernels.pipeline import calibration_batches

    places = (ROOT / "models", ROOT.parent / "models")
    path = next((d / f"cifar10_{name}.safetensors" for d in places if d.is_dir()), None)
    if find(("official_subset.npz",), ROOT) is None or path is None:
        pytest.skip("needs QKERNELS_DATA with the subset and the weights")
    data = load("cifar10-subset")
    model = models.load_weights(models.create(name), path)
    x = images(1, 3, 32, 32)
    calibration = calibration_batches(data, 512, seed=0)
    model = qk.quantize(model.eval(), {"activation": "static"}, calibration)
    expected = evaluate(model, data).correct
    exact, quick = (qk.compile(model, x, exact=flag) for flag in (True, False))
    assert evaluate(exact, data).correct == expected
    assert abs(evaluate(quick, data).correct - expected) <= 3  # measured: 854 of 854, 864 of 866


def test_a_batch_norm_and_a_relu_before_a_layer_are_one_step() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), norm, nn.ReLU(), nn.Conv2d(8, 4, 3)
    ).eval()
    x = torch.randn(2, 3, 12, 12)
    compiled = qk.compile(qk.quantize(model, "static", [x]), x)
    assert compiled.program is not None
    kinds = [step.kind for step in compiled.profile(x, runs=1).steps]
    assert kinds == ["conv2d", "max_pool", "affine", "conv2d"]
    assert compiled.report.sqnr_db["output"] > 30


def test_a_clamp_of_a_part_of_what_a_layer_writes_leaves_the_other_part_as_it_is() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.a(x).chunk(2, 1)
            return self.b(one.relu()) + self.c(two) + self.c(self.a(x)[:, :4].clamp(-0.1, 0.1))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    int8 = qk.quantize(Halves().eval(), "static", [x])
    for exact in (True, False):
        compiled = qk.compile(int8, x, exact=exact)
        assert compiled.report.sqnr_db["output"] > 25
    assert torch.equal(qk.compile(int8, x, exact=True)(x), int8(x))


def test_windows_along_a_line_and_what_is_behind_them_are_one_program() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool1d(3, stride=2, padding=1), nn.Conv1d(8, 8, 3),
        nn.AvgPool1d(2), nn.Conv1d(8, 8, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    x = torch.randn(2, 4, 40)
    int8 = qk.quantize(model, "static", [x])
    compiled = qk.compile(int8, x)
    assert compiled.program is not None
    other = torch.randn(3, 4, 40)
    assert (compiled(other) - int8(other)).norm() < 0.02 * int8(other).norm()
    assert torch.equal(qk.compile(int8, x, exact=True)(other), int8(other))


def test_a_model_that_asks_for_its_batch_is_compiled_for_that_of_the_example() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * 2 if x.shape[0] == 2 else self.layer(x)

    torch.manual_seed(0)
    x = torch.randn(1, 4)
    int8 = qk.quantize(Asking().eval(), "static", [x])
    compiled = qk.compile(int8, x, exact=True)
    assert torch.equal(compiled(x), int8(x))
    with pytest.raises(ValueError, match="the model was made for a size of 1 in dimension 0"):
        compiled(torch.cat([x, x]))
