from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

from qkernels.models import TutorialCNN, available, create, load_weights
from qkernels.models.mobilenet_v2 import multiple_of_8

SMALL = {"num_classes": 7, "in_channels": 2}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("mobilenet_v2", 3_504_872),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, published: int) -> None:
    with torch.device("meta"):
        model = create(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@pytest.mark.parametrize("name", available())
def test_every_model_traces_and_the_trace_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, **SMALL, image_size=32).eval()
    images = torch.randn(2, 2, 32, 32)
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(traced(images), expected)
    assert expected.shape == (2, 7)


@pytest.mark.parametrize("name", available())
def test_a_nonlinearity_is_used_once(name: str) -> None:
    """Passes and hooks address a layer by its module: two uses of one would get mixed up."""
    with torch.device("meta"):
        graph = fx.symbolic_trace(create(name)).graph
    targets = [node.target for node in graph.nodes if node.op == "call_module"]
    assert len(targets) == len(set(targets))
    functions = {node.target for node in graph.nodes if node.op == "call_function"}
    assert not functions & {torch.relu, nn.functional.relu, nn.functional.relu6}


@pytest.mark.parametrize("size", [4, 8, 9, 15, 28, 32])
def test_tutorial_cnn_computes_its_feature_size(size: int) -> None:
    model = create("tutorial_cnn", **SMALL, image_size=size, width=4)
    assert model(torch.randn(3, 2, size, size)).shape == (3, 7)


def test_tutorial_cnn_is_that_of_the_tutorial() -> None:
    names = [type(module).__name__ for module in TutorialCNN().children()]
    assert names == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Linear", "ReLU", "Linear"]
    assert TutorialCNN().fc1.in_features == 128 * 8 * 8
    with pytest.raises(ValueError, match="at least 4 for two poolings, not 3"):
        TutorialCNN(image_size=3)


def test_narrow_and_shallow_students() -> None:
    counts = [
        sum(parameter.numel() for parameter in create(name, width=width).parameters())
        for name, width in [("resnet8", 4), ("resnet8", 16), ("resnet20", 16)]
    ]
    assert counts == sorted(counts)
    with pytest.raises(ValueError, match=r"depth must be 6n\+2 .* not 21"):
        create("resnet20").__class__(21)


def test_shortcut_of_option_a() -> None:
    block = create("resnet8", width=4).layer2[0]
    x = torch.randn(1, 4, 6, 6)
    out = block.shortcut(x)
    assert out.shape == (1, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() + out[:, 6:].abs().sum() == 0


def test_imagenet_names_are_torchvisions() -> None:
    with torch.device("meta"):
        resnet, mobile = create("resnet50").state_dict(), create("mobilenet_v2").state_dict()
    assert {"conv1.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias"} <= resnet.keys()
    assert not any(name.startswith("layer1.1.downsample") for name in resnet)
    assert {
        "features.0.0.weight",
        "features.1.conv.0.0.weight",
        "features.1.conv.1.weight",
        "features.2.conv.1.1.running_mean",
        "features.17.conv.3.bias",
        "features.18.0.weight",
        "classifier.1.weight",
    } <= mobile.keys()
    assert len(resnet) == 320
    assert len(mobile) == 314


def test_multiple_of_8() -> None:
    assert [multiple_of_8(x) for x in (1, 8, 11, 12, 16 * 0.75, 24 * 0.35, 32 * 0.35)] == [
        8, 8, 16, 16, 16, 8, 16,
    ]  # fmt: skip


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no model 'resnet21'; the nearest: resnet"):
        create("resnet21")


def test_weights_round_trip(tmp_path: Path) -> None:
    source, target = create("resnet8", width=4), create("resnet8", width=4)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(target, tmp_path / "w.safetensors") is target
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(create("resnet8", width=4).state_dict(), path)
    with pytest.raises(ValueError, match=r"bn1.bias is \[4\] in the file, \[16\] in the model"):
        load_weights(create("resnet8"), path)
    with pytest.raises(ValueError, match=r"\d+ names missing \(first .*\), 0 unexpected"):
        load_weights(create("resnet14", width=4), path)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_weights(create("resnet8"), tmp_path / "absent.safetensors")
    path.write_bytes(b"this is not a safetensors file")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_weights(create("resnet8"), path)
