import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import ConvNet, conv_net, images
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from qkernels.nn import QuantLinear
from qkernels.quantization import CheckpointError, load, quantize, read_metadata, save
from qkernels.quantization.fold import FoldedBatchNorm1d

SCHEMES = ["static", "dynamic", "weight_only"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def converted(activation: str = "static", **settings: Any) -> nn.Module:
    data = images(8) if activation == "static" else None
    return quantize(conv_net(), {"activation": activation, **settings}, data)


def assert_same(model: nn.Module, loaded: nn.Module, x: Tensor | None = None) -> None:
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name])
    with torch.no_grad():
        x = images() if x is None else x
        assert torch.equal(model(x), loaded(x))


def meta_net() -> nn.Module:
    with torch.device("meta"):
        return ConvNet()


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("activation", SCHEMES)
@pytest.mark.parametrize(
    "model",
    [ConvNet, ConvNet(), conv_net().train(), meta_net],
    ids=["class", "instance", "training", "function"],
)
def test_a_round_trip_keeps_every_bit(
    path: Path, activation: str, fold: bool, model: nn.Module | Callable[[], nn.Module]
) -> None:
    original = converted(activation, fold_batch_norm=fold)
    save(original, path)
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model)  # the cases share it, and load changes it
    loaded = load(path, meta_net() if model is meta_net else model)
    assert not loaded.training
    assert [str(m) for m in original.modules()] == [str(m) for m in loaded.modules()]
    assert_same(original, loaded)


def test_a_converted_model_takes_the_file_too(path: Path) -> None:
    save(converted(), path)
    other = converted(observer="minmax", weight="per_tensor")
    assert_same(converted(), load(path, other))


def test_the_file_holds_canonical_tensors_and_the_story(path: Path) -> None:
    save(converted(), path, extra={"top1": 91.6})
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        assert file.get_tensor("conv1.int8_weight").dtype == torch.int8
    assert {n for n in names if n.startswith("head.")} == {
        f"head.{key}"
        for key in ("int8_weight", "weight_scale", "bias", "input_scale", "input_zero_point")
    }
    metadata = read_metadata(path)
    assert metadata["format_version"] == 2
    assert metadata["extra"] == {"top1": 91.6}
    assert metadata["modules"]["conv1"]["kind"] == "QuantConv2d"
    assert metadata["folded"]["bn3"] == {"kind": "FoldedBatchNorm1d", "into": "hidden", "rest": []}
    assert metadata["architecture"] is None


def test_a_partly_converted_model_keeps_its_float_layers(path: Path) -> None:
    original = converted(exclude=["conv1", "head"])
    save(original, path)
    loaded = load(path, ConvNet)
    assert type(loaded.head) is nn.Linear
    assert isinstance(loaded.bn1, nn.BatchNorm2d)
    assert isinstance(loaded.bn3, FoldedBatchNorm1d)
    assert_same(original, loaded)


def test_a_float_model_round_trips_too(path: Path) -> None:
    save(conv_net(), path)
    assert_same(conv_net(), load(path, ConvNet))


def test_a_root_layer_round_trips(path: Path) -> None:
    original = quantize(nn.Linear(6, 3), "dynamic")
    save(original, path)
    loaded = load(path, lambda: nn.Linear(6, 3))
    assert isinstance(loaded, QuantLinear)
    assert_same(original, loaded, torch.randn(2, 6))


def test_the_architecture_rebuilds_the_model_alone(path: Path) -> None:
    models = pytest.importorskip("qkernels.models")
    kwargs = {"num_classes": 4}
    torch.manual_seed(0)
    original = quantize(models.create("resnet8", **kwargs), "dynamic")
    save(original, path, architecture={"name": "resnet8", "kwargs": kwargs})
    assert_same(original, load(path), torch.randn(1, 3, 32, 32))
    save(original, path)
    with pytest.raises(CheckpointError, match="does not name an architecture"):
        load(path)
    save(original, path, architecture={"name": "resnet9000"})
    with pytest.raises(ValueError, match="resnet9000"):
        load(path)


def test_a_factory_never_allocates_parameters_but_keeps_computed_buffers(path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.free = nn.Parameter(torch.ones(4))
            self.register_buffer("ramp", torch.linspace(0, 1, 4), persistent=False)
            made.append(self.fc.weight.is_meta and self.free.is_meta and not self.ramp.is_meta)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.ramp + self.free

    made: list[bool] = []
    original = quantize(Net(), "dynamic")
    save(original, path)
    loaded = load(path, Net)
    assert made == [False, True]
    assert_same(original, loaded, torch.randn(2, 4))
    assert isinstance(loaded.free, nn.Parameter)
    assert not nn.Linear(2, 2).weight.is_meta  # and the way of making modules is as before
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(CheckpointError, match="'ramp' is not in the file"):
        load(path, empty)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight
        self.again = self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(self.fc(self.embed(x))))


def test_shared_modules_and_tied_parameters_are_stored_once_and_stay_shared(path: Path) -> None:
    original = quantize(Tied(), {"activation": "dynamic", "exclude": ["out", "embed"]})
    save(original, path)
    with safe_open(path, framework="pt") as file:
        assert not {"out.weight", "again.weight"} & set(file.keys())
    for model in (Tied, Tied()):
        loaded = load(path, model)
        assert loaded.again is loaded.fc
        assert loaded.out.weight is loaded.embed.weight
        assert_same(original, loaded, torch.tensor([1, 2]))


def test_views_of_one_storage_are_stored_apart(path: Path) -> None:
    model = nn.Module()
    whole = torch.arange(12.0).view(3, 4)
    model.register_buffer("whole", whole)
    model.register_buffer("row", whole[1])
    model.register_buffer("turned", whole.t())
    model.register_buffer("none", whole[:0])
    save(model, path)
    loaded = load(path, model)
    for name in ("whole", "row", "turned", "none"):
        assert torch.equal(getattr(loaded, name), getattr(model, name))


def test_a_transformer_loads_without_the_fused_float_path(path: Path) -> None:
    def make() -> nn.Module:
        return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    original = quantize(make(), "dynamic")
    save(original, path)
    with torch.inference_mode():
        assert_same(original, load(path, make), torch.randn(2, 5, 16))


def test_writing_is_atomic(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(converted(), path)
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(converted(), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_can_be_replaced_while_a_model_uses_it(path: Path) -> None:
    original = converted()
    save(original, path)
    loaded = load(path, ConvNet)
    save(quantize(nn.Linear(300, 300), "dynamic"), path)
    assert_same(original, loaded)


def test_saving_again_gives_the_same_file(path: Path) -> None:
    save(converted(), path)
    first = path.read_bytes()
    save(load(path, ConvNet), path)
    assert path.read_bytes() == first


def test_others_may_read_the_file(path: Path) -> None:
    save(converted(), path)
    (path.parent / "plain").touch()
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_says_so(path: Path, keep: int) -> None:
    save(converted(), path)
    path.write_bytes(path.read_bytes()[:keep])
    for read in (read_metadata, lambda p: load(p, ConvNet)):
        with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
            read(path)


def test_a_foreign_file_says_so(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not written by qkernels"):
        load(path, ConvNet)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not written by qkernels"):
        load(path, ConvNet)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(path, ConvNet)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load(path.with_name("absent"), ConvNet)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the qkernels metadata of a file, tensors untouched."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    metadata = json.loads(header["__metadata__"]["qkernels"])
    change(metadata)
    header["__metadata__"]["qkernels"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def test_a_newer_format_asks_for_an_upgrade(path: Path) -> None:
    save(converted(), path)
    rewrite(path, lambda m: m.update(format_version=99, qkernels_version="9.9"))
    with pytest.raises(CheckpointError, match=r"format 99, written by qkernels 9\.9.*upgrade"):
        load(path, ConvNet)


def test_an_unknown_layer_kind_asks_for_an_upgrade(path: Path) -> None:
    save(converted(), path)
    rewrite(path, lambda m: m["modules"]["head"].update(kind="QuantLSTM"))
    with pytest.raises(CheckpointError, match=r"'head' is a QuantLSTM.*upgrade"):
        load(path, ConvNet)


def changed(**layers: nn.Module) -> nn.Module:
    model = ConvNet()
    for name, layer in layers.items():
        setattr(model, name, layer)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "folded a batch norm 'bn1' that the model lacks"),
        (changed(bn2=nn.ReLU()), "batch norm 'bn2'"),
        (changed(head=nn.ReLU()), "QuantLinear at 'head', the model a ReLU"),
        (changed(head=nn.Linear(16, 6)), "'head' has out_features=5 in the file, 6 in the model"),
        (changed(conv2=nn.Conv2d(8, 8, 3, groups=2)), "'conv2' has padding="),
        (changed(extra=nn.Linear(2, 2)), "the file lacks 'extra.weight', 'extra.bias'"),
    ],
)
def test_a_wrong_model_is_refused(path: Path, model: nn.Module, message: str) -> None:
    save(converted(), path)
    with pytest.raises(CheckpointError, match=message):
        load(path, model)


def test_missing_unexpected_and_misshapen_tensors_are_named(path: Path) -> None:
    save(conv_net(), path)
    model = changed(head=nn.Identity())
    with pytest.raises(CheckpointError, match=r"the model lacks 'head\.bias', 'head\.weight'"):
        load(path, model)
    with pytest.raises(CheckpointError, match=r"size mismatch for head\.weight"):
        load(path, changed(head=nn.Linear(16, 6)))


def test_state_that_is_no_tensor_or_json_is_refused(path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"anything": 1}

    with pytest.raises(CheckpointError, match="'_extra_state' is a dict"):
        save(Extra(2, 2), path)
    with pytest.raises(CheckpointError, match="meta device"):
        save(meta_net(), path)
    with pytest.raises(CheckpointError, match="JSON"):
        save(conv_net(), path, extra={"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="architecture="):
        save(conv_net(), path, architecture={"nom": "resnet20"})
    assert not path.exists()


class Adapted(nn.Linear):
    """Low-rank matrices in a subclass (Hu et al. 2021), and a module that is called from outside."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class OwnNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.offset = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.matrix * 0.3, self.offset)


class WithActivation(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.act = nn.Sequential(nn.ReLU(), nn.PReLU())


class CallsInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = WithActivation()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.act(self.layer(x))


MADE_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "own forward": Adapted,
    "other names": OwnNames,
    "weight norm by a hook": lambda: nn.utils.weight_norm(nn.Linear(8, 8)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5),
    "children that others call": CallsInside,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", MADE_PLAIN)
def test_what_conversion_used_up_of_a_layer_does_not_come_back_by_loading(
    kind: str, scheme: str, path: Path
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(MADE_PLAIN[kind](), nn.ReLU(), nn.Linear(8, 3)).eval()

    x = torch.randn(5, 8)
    int8 = quantize(build(), scheme, [x])
    save(int8, path)
    for fresh in (build(), build):
        assert_same(int8, load(path, fresh), x)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_layer_that_stays_float_keeps_its_weight_norm_in_model_and_file(path: Path) -> None:
    def build() -> nn.Module:
        conv = nn.utils.weight_norm(nn.Conv1d(2, 4, 3))
        return nn.Sequential(conv, nn.Flatten(), nn.Linear(24, 3)).eval()

    x = torch.randn(5, 2, 8)
    int8 = quantize(build(), "weight_only", [x])
    assert "0.weight_v" in int8.state_dict()
    save(int8, path)
    for fresh in (build(), build):
        assert_same(int8, load(path, fresh), x)
