"""Exported files, run by ONNX Runtime and compared with the models that they come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from exact_runtime import exact_session
from torch import Tensor, nn

import qkernels as qk
from qkernels import models
from qkernels.export import export_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(os.environ.get("QKERNELS_DATA", "/nonexistent"))


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def run(path: Path, *inputs: Tensor, fused: bool = True) -> Tensor:
    """What ONNX Runtime makes of the file; not `fused`: operator by operator, as the file has it."""
    session = exact_session(path, fused=fused)
    names = [value.name for value in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def quantized(model: nn.Module, *x: Tensor, **config: object) -> nn.Module:
    calibration = None if config.get("activation") == "weight_only" else lambda m: m(*x)
    return qk.quantize(model.eval(), config, calibration)


def off(found: Tensor, expected: Tensor) -> float:
    """Relative error by the norm."""
    return float((found - expected).norm() / expected.norm())


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


LAYERS = {
    "plain": lambda: nn.Conv2d(3, 8, 3, padding=1),
    "strided, no bias": lambda: nn.Conv2d(3, 8, 5, stride=2, bias=False),
    "dilated": lambda: nn.Conv2d(3, 8, 3, dilation=2, padding=2),
    "depthwise": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "same, odd": lambda: nn.Conv2d(3, 8, (2, 3), padding="same"),
    "reflect": lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(3, 8, 3, padding=(1, 2), padding_mode="circular"),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 81, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_returns_the_same_but_for_rounding(name: str, tmp_path: Path) -> None:
    """One layer: an input on a tie may move by a step, and float sums have another order."""
    torch.manual_seed(0)
    x = images(2, 3, 9, 9)
    model = quantized(LAYERS[name](), x, activation="static")
    export_onnx(model, x, tmp_path / "m.onnx")
    for batch in (1, 5):
        y = images(batch, 3, 9, 9, seed=batch)
        assert off(run(tmp_path / "m.onnx", y, fused=False), model(y)) < 1e-3


MORE_KINDS = {
    "Conv1d": (lambda: nn.Conv1d(3, 8, 5, stride=2, padding=2, groups=1), (3, 21)),
    "Conv1d, circular": (lambda: nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular", groups=2), (4, 9)),
    "Conv3d": (lambda: nn.Conv3d(3, 4, 3, padding=(1, 0, 2)), (3, 5, 6, 7)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 5, 4, stride=2, padding=1), (3, 9)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1, dilation=2), (3, 6, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MORE_KINDS)
def test_the_other_convolutions_return_the_same_but_for_rounding(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, size = MORE_KINDS[name]
    x = images(2, *size)
    model = quantized(nn.Sequential(build()), x, activation="static")
    export_onnx(model, x, tmp_path / "m.onnx")
    for batch in (1, 5):
        y = images(batch, *size, seed=batch)
        assert off(run(tmp_path / "m.onnx", y, fused=False), model(y)) < 1e-3


def test_a_table_of_words_is_int8_in_the_file_and_gives_the_same_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    index = torch.randint(0, 500, (2, 6))
    model = quantized(nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 4)), index)
    export_onnx(model, index, tmp_path / "m.onnx")
    other = torch.randint(0, 500, (5, 6))
    assert off(run(tmp_path / "m.onnx", other, fused=False), model(other)) < 1e-3
    assert (tmp_path / "m.onnx").stat().st_size < 500 * 64 * 2


def test_a_grouped_transposed_convolution_is_refused_with_its_reason(tmp_path: Path) -> None:
    x = images(2, 4, 5, 5)
    model = quantized(nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2)), x)
    with pytest.raises(ValueError, match="2 groups"):
        export_onnx(model, x, tmp_path / "m.onnx")


def test_weights_are_int8_with_a_scale_a_channel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = images(2, 3, 9, 9)
    model = quantized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), x)
    export_onnx(model, x, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    initializers = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    dequantized = [n for n in graph.node if n.op_type == "DequantizeLinear"]
    weights = [initializers[n.input[0]] for n in dequantized if n.input[0] in initializers]
    assert [(w.dtype.name, w.shape) for w in weights] == [
        ("int8", (8, 3, 3, 3)),
        ("int8", (4, 8, 3, 3)),
    ]
    assert (weights[0] == model[0].int8_weight.numpy()).all()
    scales = [initializers[n.input[1]] for n in dequantized if n.input[0] in initializers]
    assert [s.shape for s in scales] == [(8,), (4,)]
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in graph.input] == ["batch"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]
    assert b"/qkernels/" not in (tmp_path / "m.onnx").read_bytes()  # no paths of this machine


@pytest.mark.parametrize("name", ["tutorial_cnn", "resnet8", "vit"])
def test_models_agree_up_to_rounding(name: str, tmp_path: Path) -> None:
    """Random weights: rounding, a step here and there in each layer, is all that may differ."""
    torch.manual_seed(0)
    options = {"width": 24, "depth": 1, "heads": 3} if name == "vit" else {"width": 8}
    x = images(4, 3, 16, 16)
    model = quantized(models.create(name, image_size=16, **options), x, activation="static")
    export_onnx(model, x[:1], tmp_path / "m.onnx")
    y = images(3, 3, 16, 16, seed=1)
    for fused in (False, True):
        assert off(run(tmp_path / "m.onnx", y, fused=fused), model(y)) < 0.02


def test_a_weight_only_encoder_and_two_inputs(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = models.TransformerEncoder(24, 1, heads=3)
            self.other = nn.Linear(5, 24)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.encoder(x) + self.other(y)[:, None]

    torch.manual_seed(0)
    x, y = images(2, 6, 24), images(2, 5)
    model = quantized(Sum(), x, y, activation="weight_only")
    export_onnx(model, (x, y), tmp_path / "m.onnx")
    x, y = images(3, 6, 24, seed=1), images(3, 5, seed=1)
    assert off(run(tmp_path / "m.onnx", x, y), model(x, y)) < 1e-5


def test_what_cannot_be_exported_is_one_sentence(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    x, path = torch.ones(2, 4), tmp_path / "m.onnx"
    net = nn.Sequential(nn.Linear(4, 4)).eval()
    static = quantized(net, x)
    with pytest.raises(ValueError, match=r"layer '0' finds its input's range in every call"):
        export_onnx(qk.quantize(net, "dynamic"), x, path)
    with pytest.raises(ValueError, match=r"is torch\.float16; only float32"):
        export_onnx(static, x.half(), path)
    with pytest.raises(ValueError, match="no int8 layer"):
        export_onnx(net, x, path)
    with pytest.raises(ValueError, match="a chained model"):
        export_onnx(qk.compile(static, x, exact=True), x, path)
    with pytest.raises(ValueError, match="Branches cannot be exported to ONNX: ") as refused:
        export_onnx(quantized(Branches(), x), x, path)
    assert "\n" not in str(refused.value)
    with pytest.raises(OSError):
        export_onnx(static, x, tmp_path / "nowhere" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_export_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    x = images(2, 3, 9, 9)
    model = quantized(nn.Sequential(nn.Conv2d(3, 8, 3)), x)
    before = model(x)
    export_onnx(model, x, tmp_path / "m.onnx")
    assert isinstance(model[0], qk.QuantConv2d)
    assert torch.equal(model(x), before)


def test_classes_of_official_images_stay(tmp_path: Path) -> None:
    """ResNet-20 on the official test images: fused int8 kernels of ONNX Runtime name the class that we name."""
    from qkernels.data import load
    from qkernels.data.paths import find
    from qkernels.evaluate import agreement, predict
    from qkernels.pipeline import calibration_batches

    places = (ROOT / "models", ROOT.parent / "models")
    weights = next((d / "cifar10_resnet20.safetensors" for d in places if d.is_dir()), None)
    if find(("official_subset.npz",), ROOT) is None or weights is None:
        pytest.skip("needs QKERNELS_DATA with the subset and the weights")
    data = load("cifar10-subset")
    model = models.load_weights(models.create("resnet20"), weights).eval()
    model = qk.quantize(model, "static", calibration_batches(data, 512, seed=0))
    batches = data.batches("test", 233)
    export_onnx(model, images(1, 3, 32, 32), tmp_path / "m.onnx")
    found = torch.cat([run(tmp_path / "m.onnx", x) for x, _ in batches])
    assert agreement(predict(model, batches), found) > 0.99


def test_layers_and_pools_that_a_forward_reaches_through_a_list_are_exported(
    tmp_path: Path,
) -> None:
    class Walked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.head = (
                nn.Conv2d(3, 8, 3),
                nn.AdaptiveAvgPool2d(1),
                nn.Linear(8, 4),
            )
            self.steps = [self.conv, self.pool, torch.nn.Flatten(), self.head]

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = step(x)
            return x

    torch.manual_seed(0)
    x = images(2, 3, 8, 8)
    int8 = quantized(Walked().eval(), x)
    export_onnx(int8, x, tmp_path / "m.onnx")
    assert off(run(tmp_path / "m.onnx", x), int8(x)) < 0.01


class Tied(nn.Module):
    """Reads the weights of its layers itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(40, 16), nn.Linear(16, 16)

    def forward(self, words: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        h = self.layer(self.table(words)) * mask.unsqueeze(-1)
        decoded = nn.functional.linear(h, self.table.weight)
        return {"logits": decoded, "state": h @ self.layer.weight}


def test_a_model_with_keyword_arguments_and_tied_weights_returns_the_same_but_for_rounding(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    call = {"words": torch.randint(0, 40, (2, 6)), "mask": torch.ones(2, 6)}
    model = qk.quantize(Tied().eval(), {"activation": "static"}, [call])
    export_onnx(model, call, tmp_path / "m.onnx")
    session = exact_session(tmp_path / "m.onnx")
    assert [value.name for value in session.get_inputs()] == list(call)
    call = {"words": torch.randint(0, 40, (5, 6)), "mask": torch.rand(5, 6)}
    got = session.run(None, {name: x.numpy() for name, x in call.items()})
    for found, expected in zip(got, model(**call).values(), strict=True):
        assert off(torch.from_numpy(found), expected) < 1e-3
