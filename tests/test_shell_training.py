"""Trainings that the command line offers beside the plain one: attacks, made images, several teachers, int8."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from qkernels import models
from qkernels.cli import main
from qkernels.data import load
from qkernels.distill import TrainConfig, train
from qkernels.pipeline import describe_architecture
from qkernels.quantization import save

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")
STUDENT = ("--student", "tutorial_cnn", "--student-width", 4)
SHORT = ("--epochs", 1, "--may-lose", 100)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def checkpoint(path: Path, name: str, seed: int, epochs: int, width: int) -> Path:
    digits = load("digits")
    made = describe_architecture(name, digits, width)
    torch.manual_seed(seed)
    net = models.create(name, **made["kwargs"])
    config = TrainConfig(epochs=epochs, batch_size=64, optimizer="adamw", lr=0.01, seed=seed)
    train(net, digits, config, progress=False)
    save(net.eval(), path, architecture=made)
    return path


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return [checkpoint(folder / f"{i}.safetensors", "tutorial_cnn", i, 6, 8) for i in (0, 1)]


@pytest.fixture(scope="module")
def normed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with batch norms."""
    return checkpoint(tmp_path_factory.mktemp("normed") / "a.safetensors", "resnet8", 0, 2, 4)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("taught", [False, True])
def test_a_student_is_trained_under_attack_and_its_accuracy_there_is_said(
    teachers: list[Path], taught: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ["--teacher-weights", teachers[0]] if taught else []
    words = ["distill", "--run", "r", *STUDENT, *teacher, "--adversarial", 16, *SHORT]
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "within eps = 16/255" in said and re.search(r"PGD-20 +float twin +\d+\.\d\d%", said)
    assert (
        run(*words, "--adversarial", 8) == 2
    )  # the last of two counts: other attacks, another run
    assert "holds a run with objective=" in capsys.readouterr().err


def test_a_student_learns_from_made_images_alone(
    normed: Path, teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["--made-images", 128, *SHORT]
    assert run("distill", "--run", "r", *STUDENT, "--teacher-weights", normed, *made) == 0
    assert run("distill", "--run", "n", *STUDENT, "--teacher-weights", teachers[0], *made) == 0
    assert capsys.readouterr().out.count("test accuracy") == 2
    settings = Path("r/config.json").read_text()
    assert '"optimizer": "adamw"' in settings and "batch_norm=0.3" in settings
    assert '"data": "made, 128 images' in settings
    assert "batch_norm=0.0" in Path("n/config.json").read_text()  # a teacher without statistics


def test_several_teachers_teach_their_mean_answer_and_a_finished_run_goes_on(
    teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    both = [word for path in teachers for word in ("--teacher-weights", path)]
    words = ["distill", "--run", "r", *STUDENT, *both, "--may-lose", 100]
    assert run(*words, "--epochs", 2, "--warmup-epochs", 0) == 0
    assert run(*words, "--epochs", 2, "--warmup-epochs", 0) == 0
    assert "nothing trained: r holds all 2 epochs" in capsys.readouterr().out
    assert run(*words, "--epochs", 3, "--warmup-epochs", 0) == 0
    assert len(Path("r/history.jsonl").read_text().splitlines()) == 3
    assert run("distill", "--run", "one", *STUDENT, *both[:2], *SHORT) == 0
    assert run("distill", "--run", "r", *STUDENT, *both[:2], "--may-lose", 100, "--epochs", 3) == 2
    assert "holds a run with" in capsys.readouterr().err  # one teacher less is another run


def test_int8_is_trained_from_the_shell_and_goes_on(
    teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "quantize",
        teachers[0],
        "int8",
        "--images",
        64,
        "--weight",
        "per_tensor",
        "--qat-run",
        "q",
    ]
    assert run(*words, "--qat-epochs", 1) == 0
    assert re.search(r"validation accuracy .* before, .* after", capsys.readouterr().out)
    settings = json.loads(Path("q/training/config.json").read_text())
    assert settings["batch_size"] == 64  # of 1078 images; two processes can share it
    assert run(*words, "--qat-epochs", 2) == 0
    assert len(Path("q/training/history.jsonl").read_text().splitlines()) == 2
    assert run("evaluate", "int8") == 0


def test_int8_far_below_its_float_model_is_an_error_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One scale for all weights, of which one channel's are large: the others are all 0."""
    digits = load("digits")
    made = describe_architecture("tutorial_cnn", digits, 8)
    net = models.create("tutorial_cnn", **made["kwargs"])
    config = TrainConfig(epochs=4, batch_size=64, optimizer="adamw", lr=0.01)
    train(net, digits, config, progress=False)
    with torch.no_grad():  # what the first layer makes larger, the second takes smaller
        net.conv1.weight[0] *= 3000
        net.conv1.bias[0] *= 3000
        net.conv2.weight[:, 0] /= 3000
    save(net.eval(), tmp_path / "w", architecture=made)
    words = ["quantize", tmp_path / "w", tmp_path / "int8", "--images", 64]
    assert run(*words, "--weight", "per_tensor") == 2
    told = capsys.readouterr()
    assert re.search(r"test accuracy .* before [6-9]\d\.\d\d%", told.out)
    assert re.search(r"the accuracy fell by .*--weight per_channel.*--may-lose \d\d", told.err)
    assert (tmp_path / "int8").exists()
    assert run(*words, "--weight", "per_tensor", "--may-lose", 100) == 0
    assert "test accuracy" not in capsys.readouterr().out  # nothing to compare


def test_what_an_option_would_leave_unused_is_refused(
    teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    teach = ["--teacher-weights", teachers[0]]
    train_words = ["distill", "--run", "r", *STUDENT, *SHORT]
    int8 = ["quantize", teachers[0], "int8"]
    cases = {
        "--adversarial has a loss of its own: leave --loss out": [
            *train_words, *teach, "--adversarial", 8, "--loss", "dkd"],
        "--made-images has a loss of its own: leave --alpha out": [
            *train_words, *teach, "--made-images", 64, "--alpha", 0.5],
        "--teacher-cache keeps answers, and images are made from gradients": [
            *train_words, *teach, "--made-images", 64, "--teacher-cache", "c"],
        "images can only be made from one teacher": [*train_words, "--made-images", 64],
        "attacks take one teacher or none": [*train_words, *teach, *teach, "--adversarial", 8],
        "compares features of one teacher, not of 2": [
            *train_words, *teach, *teach, "--loss", "fitnets", "--features", "conv1"],
        "--qat-run is the folder of a training in int8": [*int8, "--qat-run", "q"],
        "--qat-epochs trains static int8, not dynamic": [
            *int8, "--qat-epochs", 1, "--activation", "dynamic"],
    }  # fmt: skip
    for sentence, words in cases.items():
        assert run(*words) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    assert not Path("r").exists() and not Path("int8").exists()


OWN_DATA = """
import torch
from torch.utils.data import TensorDataset

def parts(y, x):
    return TensorDataset(x[:192], y[:192]), TensorDataset(x[192:256], y[192:256]), TensorDataset(x[256:], y[256:])

def images(count=320):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))

def several():
    x = images()
    return parts((x[:, 0, :3, 0] > 0.3).float(), x)

def values():
    x = images()
    return parts(torch.stack([x[:, 0, 0, 0], x[:, 0, 1, 1] - x[:, 0, 2, 2]], 1), x)
"""
OWN_NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, width=32):
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, num_classes))
"""


@pytest.mark.parametrize(
    ("data", "figure", "loss"),
    [("several", "mAP", "focal"), ("values", "R2", "huber")],
)
def test_several_labels_and_values_go_all_the_way_from_the_shell(
    data: str,
    figure: str,
    loss: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torchmetrics")
    Path("shell_data.py").write_text(OWN_DATA)
    Path("shell_nets.py").write_text(OWN_NETS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("shell_data", "shell_nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    own = ["--data", f"shell_data:{data}"]
    net = ["--student", "shell_nets:Net", "--epochs", 6, "--batch-size", 32, "--lr", 0.005]
    assert run("distill", *own, "--run", "t", *net, "--label-loss", loss) == 0
    assert re.search(rf"test {figure} {figure} 0\.\d+", capsys.readouterr().out)
    teacher = ["--teacher-weights", "t/student.safetensors", "--trust"]
    assert run("distill", *own, "--run", "s", *net, "--student-width", 16, *teacher) == 0
    pruned = [
        "--run",
        "p",
        "--share",
        0.3,
        "--multiple",
        1,
        "--epochs",
        1,
        "--may-lose",
        50,
        "--trust",
    ]
    assert run("prune", "s/student.safetensors", "p.safetensors", *own, *pruned) == 0
    qat = ["--qat-epochs", 1, "--images", 64, "--trust"]
    assert run("quantize", "p.safetensors", "int8", *own, *qat) == 0
    assert f"validation {figure}" in capsys.readouterr().out
    assert run("evaluate", "int8", *own, "--trust") == 0
    assert figure in capsys.readouterr().out
    assert run("distill", *own, "--run", "x", *net, "--label-loss", "cross_entropy") == 2
    assert "is none of" in capsys.readouterr().err
    if (
        data == "values"
    ):  # answers that do not look at the input have an R2 of 0, fresh weights less
        untrained = ["--epochs", 1, "--lr", 1e-9, "--warmup-epochs", 0]
        assert run("distill", *own, "--run", "u", *net[:2], *untrained) == 2
        assert "nothing was learned" in capsys.readouterr().err
