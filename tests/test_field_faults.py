"""Further members of the faults found in the field: each named by what breaks."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from qkernels import prune
from qkernels.adversarial import AdversarialTraining, Ball, pgd
from qkernels.cli import main
from qkernels.data import ImageData, Labels, Split, from_datasets
from qkernels.data import load as load_data
from qkernels.distill import TrainConfig, soft_objective, train
from qkernels.image_input import pixels_of
from qkernels.models import load_weights
from qkernels.reports import report

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=1, batch_size=16, lr=0.05)
X, Y = torch.randn(96, 6, generator=torch.Generator().manual_seed(0)), torch.arange(96) % 2


def net(outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


def data(x: Tensor = X, y: Tensor = Y) -> ImageData:
    return from_datasets(TensorDataset(x, y), TensorDataset(X, Y))


def pictures() -> ImageData:
    shown = torch.randint(256, (64, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    split = Split(shown.to(torch.uint8), torch.arange(64) % 2)
    return ImageData("pictures", ("a", "b"), split, split, split, (0.5,), (0.25,))


def flat(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, outputs))


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


# ---- 1: trainer and server see different pictures


@pytest.mark.parametrize("mode", ["PA", "I", "LAB", "YCbCr"])
def test_a_picture_of_a_rare_mode_is_the_same_for_trainer_and_server(
    mode: str, tmp_path: Path
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    values = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    step = {"PA": "P", "I": "L"}.get(mode, "RGB")
    for copy in ("a.tif", "b.tif"):
        path = tmp_path / "train" / "x" / copy
        path.parent.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(values).convert(step).convert(mode).save(path)
    trained = load_data("imagefolder", tmp_path, image_size=16, val_fraction=0.0)
    served = pixels_of(image_module.open(path), 3, (16, 16), trained.border)
    assert (trained.train.images[torch.tensor([0])][0].numpy() == served).all()


def test_pixels_without_a_range_are_refused_by_trainer_and_server(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "train" / "x" / "a.tif"
    path.parent.mkdir(parents=True)
    image_module.fromarray(np.full((20, 20), 0.5, np.float32)).save(path)
    with pytest.raises(ValueError, match="floating-point pixels"):
        pixels_of(image_module.open(path), 3, (16, 16), 0.0)
    images = load_data("imagefolder", tmp_path, image_size=16, val_fraction=0.0).train.images
    with pytest.raises(ValueError, match=r"a\.tif.*floating-point pixels"):
        images[torch.tensor([0])]


# ---- 2: a run folder is taken for other data


@pytest.mark.parametrize(
    "change", [{"mean": (0.1,)}, {"std": (0.5,)}, {"meaning": Labels(ignore=1)}], ids=str
)
def test_a_run_is_not_continued_on_pixels_of_another_scale_or_labels_of_another_meaning(
    change: dict[str, Any], tmp_path: Path
) -> None:
    train(flat(), pictures(), CONFIG, run_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds a run with data_digest="):
        train(flat(), replace(pictures(), **change), CONFIG, run_dir=tmp_path, progress=False)


# ---- 3: pruning meets a structure it does not know


class Mixed(nn.Module):
    """A first layer that can be pruned, then channels whose number or sum the forward looks at."""

    def __init__(self, look: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)
        self.head, self.look = nn.Linear(8, 4), look

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.look(self.second(self.first(x).relu())).mean((2, 3)))


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.softmax(1),
        lambda x: nn.functional.normalize(x, dim=1),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x * x.amax(1, keepdim=True),
    ],
    ids=["softmax", "normalize", "mean", "max"],
)
def test_channels_that_are_compared_with_each_other_are_not_cut_silently(look: Any) -> None:
    pytest.importorskip("torch_pruning")
    model, x = Mixed(look).eval(), torch.randn(2, 3, 8, 8)
    scores = prune.magnitude(prune.weights(model))
    smaller = prune.prune_channels(model, x, scores, amount=0.5, scope="layer", multiple=1)
    assert (smaller.first.out_channels, smaller.second.out_channels) == (8, 8)
    assert any("second keeps its channels" in note for note in report(smaller).notes)


# ---- 4: outputs that are no tensor

Answer = namedtuple("Answer", "logits aux")  # as torchvision's networks with auxiliary heads


@pytest.mark.parametrize(
    "form", [lambda y: Answer(y, None), lambda y: {"logits": y}, lambda y: SimpleNamespace(logits=y)]
)  # fmt: skip
def test_scores_and_attacks_take_the_logits_out_of_any_answer(form: Any) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = flat()

        def forward(self, x: Tensor) -> Any:
            return form(self.inner(x))

    model, plain, shown = Wrapped(), flat(), pictures()
    batches = list(shown.batches("train", 32))
    taken = prune.taylor(model, batches)["inner.1.weight"]
    torch.testing.assert_close(taken, prune.taylor(plain, batches)["1.weight"])
    ball, (images, labels) = Ball.of(shown, 0.1), batches[0]
    attacked = [pgd(m, images, labels, ball, steps=2, random_start=False) for m in (model, plain)]
    torch.testing.assert_close(*attacked)


# ---- 5: "lower the lr", whatever it is


def test_an_input_that_is_no_number_is_no_fault_of_the_lr_or_the_model() -> None:
    first, late = X.clone(), X.clone()
    first[:, 2], late[70, 2] = torch.inf, torch.nan
    with pytest.raises(
        FloatingPointError, match="16 of 16 inputs of the first batch are not finite"
    ):
        train(net(), data(first), CONFIG, progress=False)
    with pytest.raises(FloatingPointError) as caught:
        train(net(), data(late), CONFIG, progress=False)
    assert "inputs" in str(caught.value) and "lower the lr" not in str(caught.value)


# ---- 6: what lies in a folder of images


def folder_of_pictures(root: Path) -> Path:
    image_module = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        place = root / "train" / name
        place.mkdir(parents=True)
        for i in range(4):
            image_module.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(place / f"{i}.png")
    return root / "train"


def test_a_stray_picture_does_not_take_the_labels_of_all_others(tmp_path: Path) -> None:
    train_folder = folder_of_pictures(tmp_path)
    (train_folder / "stray.png").write_bytes((train_folder / "cat" / "0.png").read_bytes())
    found = load_data("imagefolder", tmp_path, val_fraction=0.25)
    assert found.train.labels is not None and len(found.train) + len(found.val) == 8
    assert any("kept 8 of 9 files (1 beside the class folders" in note for note in found.notes)


def test_a_link_to_nothing_does_not_vanish_silently(tmp_path: Path) -> None:
    train_folder = folder_of_pictures(tmp_path)
    (train_folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = load_data("imagefolder", tmp_path, val_fraction=0.25)
    assert any("kept 8 of 9 files (1 links to nothing" in note for note in found.notes)


# ---- 7: a head of one output


def test_attacks_on_a_head_of_one_output_are_refused_and_do_not_learn_nothing() -> None:
    shown = pictures()
    one = replace(shown.train, labels=torch.zeros(64, dtype=torch.int64))
    single = replace(shown, class_names=("a",), train=one, val=one, test=one)
    objective = AdversarialTraining(Ball.of(single, 0.1), steps=1)
    with pytest.raises(ValueError, match="two classes or more"):
        train(flat(1), single, CONFIG, objective=objective, progress=False)


def test_a_teacher_of_other_classes_is_named_before_training() -> None:
    with pytest.raises(ValueError, match=r"student \[4, 2\] and teacher \[4, 5\]"):
        train(net(), data(), CONFIG, teacher=net(5), progress=False)
    several = soft_objective("hinton", CONFIG, net(2), net(5))
    with pytest.raises(ValueError, match=r"\[4, 2\].*\[4, 5\]"):
        train(net(), data(), CONFIG, objective=several, progress=False)


# ---- 8: odd models


def test_a_model_without_values_and_one_that_can_have_no_gradient_are_named() -> None:
    with torch.device("meta"):
        empty = net()
    with pytest.raises(
        ValueError, match=r"0\.weight of Sequential is on the meta device and holds no"
    ):
        train(empty, data(), CONFIG, progress=False)
    with torch.inference_mode():
        made = net()
    with pytest.raises(
        ValueError, match=r"0\.weight of Sequential was made in torch\.inference_mode"
    ):
        train(made, data(), CONFIG, progress=False)
    train(net(), data(), CONFIG, teacher=made, progress=False)  # a teacher needs none


# ---- 10: files


def test_a_foreign_file_is_called_what_it_is(tmp_path: Path) -> None:
    script, arrays, onnx = tmp_path / "a.pt", tmp_path / "a.npz", tmp_path / "a.onnx"
    torch.jit.script(nn.Linear(2, 2)).save(str(script))
    np.savez(arrays, weight=np.ones(3))
    onnx.write_bytes(b"\x08\x07\x12\x07pytorch")
    plain = {"empty": b"", "keras.h5": b"\x89HDF\r\n\x1a\n", "llama.gguf": b"GGUF" + bytes(60)}
    for name, content in plain.items():
        (tmp_path / name).write_bytes(content)
    said = {
        "a.pt": "is a TorchScript program", "a.npz": "is an archive of NumPy arrays", "a.onnx": "is an ONNX model",
        "empty": "is empty", "keras.h5": "is an HDF5 file", "llama.gguf": "is a GGUF file",
    }  # fmt: skip
    for name, what in said.items():
        with pytest.raises(ValueError, match=what) as caught:
            load_weights(net(), tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


# ---- 11: the command line


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("cifar10-jpeg", "cifar10/jpeg.zip", b"garbage"),
        ("cifar10-subset", "cifar10/official_subset.npz", b"PK\x03\x04garbage"),
        ("cifar10", "cifar-10-batches-py/data_batch_1", b"nope"),
        ("cifar10", "cifar-10-batches-py/data_batch_1", b""),
    ],
)
def test_a_damaged_data_file_is_one_sentence_with_its_path(
    name: str, file: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_bytes(content)
    assert run("data", "--data", name, "--data-root", tmp_path) == 2
    said = capsys.readouterr().err
    assert f"{path} is damaged" in said and said.count("\n") == 1


def test_an_argument_of_another_type_is_not_called_an_unknown_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--run", tmp_path, "--student", "tutorial_cnn", "--student-args"]
    assert run(*words, '{"width": "a"}') == 2
    assert "does not take {'width': 'a'}" in capsys.readouterr().err
