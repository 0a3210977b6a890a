"""Images inverted from a teacher of real digits: what they are, what they are good for, and how a run survives."""

import json
from pathlib import Path

import pytest
import torch
from datafree_nets import resnet
from torch import Tensor, nn

import qkernels
from qkernels.data import ImageData
from qkernels.datafree import BatchNormGap, ImageKind, InversionConfig, inversion, invert
from qkernels.distill import TrainConfig, train
from qkernels.evaluate import evaluate

CONFIG = InversionConfig(images=50, batch_size=25, steps=8)


def gap(teacher: nn.Module, images: Tensor) -> float:
    with torch.no_grad(), BatchNormGap(teacher).watching() as gaps:
        teacher(images)
    return float(torch.stack(gaps).sum())


def test_the_images_are_what_was_asked_for(digits: ImageData, teacher: nn.Module) -> None:
    kind = ImageKind.of(digits)
    split = invert(teacher.train(), kind, InversionConfig(images=105, batch_size=105, steps=120))
    assert teacher.training
    teacher.eval()
    assert split.images.shape == (105, 1, 8, 8) and split.labels is not None
    assert split.labels.bincount().tolist() == [11] * 5 + [10] * 5
    images, labels = next(iter(kind.batches(split, 105)))
    assert (teacher(images).argmax(1) == labels).float().mean() > 0.9
    real, _ = next(iter(digits.batches("train", 105)))
    noise = kind.normalise(torch.rand(105, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert gap(teacher, images) < 2 * gap(teacher, real)
    assert gap(teacher, images) < 0.2 * gap(teacher, noise)


def test_int8_calibrated_without_a_real_image_is_as_good(
    digits: ImageData, teacher: nn.Module
) -> None:
    kind = ImageKind.of(digits)
    made = invert(teacher, kind, InversionConfig(images=100, batch_size=100, steps=60))
    blind = qkernels.quantize(teacher, calibration=kind.batches(made))
    sighted = qkernels.quantize(teacher, calibration=digits.batches("train", 64))
    found = [evaluate(model, digits).accuracy for model in (teacher, sighted, blind)]
    assert found[2] > found[1] - 0.01
    assert found[2] > found[0] - 0.02


def test_a_student_learns_from_them(digits: ImageData, teacher: nn.Module) -> None:
    pytest.importorskip("accelerate")
    kind = ImageKind.of(digits)
    made = invert(teacher, kind, InversionConfig(images=400, batch_size=200, steps=60))
    student = resnet(8, seed=1)
    config = TrainConfig(epochs=15, batch_size=50, lr=0.05)
    data = kind.data(made)  # without any validation images either
    train(student, data, config, teacher=teacher, progress=False)
    assert evaluate(student, digits).accuracy > 0.6


def test_a_killed_run_goes_on_to_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: ImageData, teacher: nn.Module
) -> None:
    kind = ImageKind.of(digits)
    expected = invert(teacher, kind, CONFIG)

    class KilledError(Exception):
        pass

    calls, original = iter(range(11)), inversion._Inversion._loss

    def loss(self: inversion._Inversion, *args: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KilledError
        return original(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(inversion._Inversion, "_loss", loss)
        invert(teacher, kind, CONFIG, run_dir=tmp_path)
    assert (
        len((tmp_path / "history.jsonl").read_text().splitlines()) == 1
    )  # the first batch is kept
    for _ in range(2):  # going on, then reading what is finished
        found = invert(teacher, kind, CONFIG, run_dir=tmp_path)
        assert torch.equal(found.images, expected.images)  # type: ignore[arg-type]
        assert torch.equal(found.labels, expected.labels)  # type: ignore[arg-type]
        monkeypatch.setattr(inversion._Inversion, "_add", None)
    records = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [record["batch"] for record in records] == [1, 2]
    assert (tmp_path / "sheet.png").stat().st_size > 0
    with pytest.raises(ValueError, match="with steps=8, not 9"):
        invert(teacher, kind, CONFIG.model_copy(update={"steps": 9}), run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"model='CifarResNet, weights \w{8}', not"):
        invert(resnet(16, seed=4), kind, CONFIG, run_dir=tmp_path)


def test_a_seed_gives_other_images(digits: ImageData, teacher: nn.Module) -> None:
    kind = ImageKind.of(digits)
    first = invert(teacher, kind, CONFIG)
    other = invert(teacher, kind, CONFIG.model_copy(update={"seed": 1}))
    assert not torch.equal(first.images, other.images)  # type: ignore[arg-type]


def test_a_loss_that_is_no_number_stops_and_keeps_what_is_done(
    tmp_path: Path, digits: ImageData, teacher: nn.Module
) -> None:
    class Bomb(nn.Module):
        """Answers NaN after the first batch is made."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = teacher, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.inner(x)
            return out * float("nan") if self.calls > 2 + 8 + 3 else out

    with pytest.raises(
        FloatingPointError, match="the loss is nan in batch 2, step 4: lower the lr"
    ):
        invert(Bomb(), ImageKind.of(digits), CONFIG, run_dir=tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert [len(images) for images in checkpoint["images"]] == [25]


@pytest.mark.parametrize(("field", "value"), [("images", 0), ("batch_size", 1), ("lr", 0.0)])
def test_a_bad_setting_names_its_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        InversionConfig(**{field: value})  # type: ignore[arg-type]
