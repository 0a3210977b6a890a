"""Models and data of one's own, from the shell and in Python."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import qkernels as qk
from qkernels import models
from qkernels.cli import main
from qkernels.data import from_datasets, load
from qkernels.pipeline import ModelChoice, describe_architecture
from qkernels.quantization import CheckpointError, read_metadata

pytest.importorskip("accelerate")
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(self.pool(x).flatten(1))

def make(width):
    return Net(2, width)

number = 3
"""
DATA = """
import torch
from torch.utils.data import TensorDataset

def load(root=None, count=160):
    torch.manual_seed(0)
    y = torch.arange(count) % 2
    x = torch.randn(count, 1, 8, 8) * 0.3 + y[:, None, None, None]
    return TensorDataset(x[:96], y[:96]), TensorDataset(x[96:128], y[96:128]), TensorDataset(x[128:], y[128:])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules of a user."""
    (tmp_path / "own_nets.py").write_text(NETS)
    (tmp_path / "own_data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_nets", "own_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("own_nets", "own_data"):
        sys.modules.pop(name, None)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_a_model_and_data_of_one_s_own_go_all_the_way(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "own_data:load"]
    net = ["--student", "own_nets:Net", "--student-args", '{"width": 8}']
    short = ["--epochs", 8, "--batch-size", 16, "--lr", 0.03]
    assert run("distill", *data, "--run", "t", "--student", "own_nets:Net", *short) == 0
    weights = torch.load("t/checkpoint.pt", weights_only=True)["model"]
    torch.save({"state_dict": {f"module.{n}": w for n, w in weights.items()}}, "teacher.pth")
    teacher = ["--teacher", "own_nets:Net", "--teacher-weights", "teacher.pth"]
    assert run("distill", *data, "--run", "s", *net, *teacher, *short) == 0
    student = Path("s/student.safetensors")
    assert read_metadata(student)["architecture"] == {
        "name": "own_nets:Net",
        "kwargs": {"num_classes": 2, "width": 8},
    }
    prune = ["--share", 0.3, "--multiple", 1, "--epochs", 1, "--may-lose", 100]
    capsys.readouterr()
    assert run("prune", student, "p.safetensors", *data, "--run", "p", *prune) == 2
    assert "own_nets:Net lies outside the installed packages" in capsys.readouterr().err
    assert run("prune", student, "p.safetensors", *data, "--run", "p", *prune, "--trust") == 0
    again = ["prune", "p.safetensors", "pp.safetensors", *data, "--run", "pp", "--trust"]
    assert run(*again, *prune) == 0  # a pruned one, pruned again
    warm = ["--student-weights", "pp.safetensors", "--teacher-weights", "p.safetensors", "--trust"]
    assert (
        run("distill", *data, "--run", "w", *warm, *short, "--may-lose", 100) == 0
    )  # and as student and teacher
    assert run("quantize", "w/student.safetensors", "int8", *data, "--trust", "--images", 64) == 0
    assert run("evaluate", "int8", *data, "--trust") == 0
    assert run("compile", "int8", "m.qkp", "--size", "1,1,8,8", "--trust") == 0
    capsys.readouterr()
    assert run("quantize", "int8", "again", *data, "--trust") == 2
    assert "int8 is int8 already" in capsys.readouterr().err
    assert "image_input" not in read_metadata("int8")["extra"]  # its data set normalises, not we


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "own_nets:Nets"], "own_nets has no 'Nets'"),
        (["--model", "no_such:Net"], "there is no module no_such"),
        (["--model", "own_nets:Net", "--model-args", '{"depth": 3}'], "own_nets:Net cannot be called"),
        (["--model", "own_nets:Net", "--model-args", "width=3"], "are no JSON"),
        (["--model", "own_nets:number"], "is a int, no class and no function"),
        (["--model", "torchvision:resnet5"], "torchvision has no model 'resnet5'"),
        (["--model", "own_nets:Net", "--data", "own_data:nothing"], "own_data has no 'nothing'"),
        (["--model", "own_nets:Net", "--image-size", "9"], "has no parameter 'image_size'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_name_is_one_sentence(
    own: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({}, "w.pth")
    if words[1].startswith("torchvision"):
        pytest.importorskip("torchvision")
    assert run("evaluate", "w.pth", "--data", "own_data:load", *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["os:system", "own_nets:make", "subprocess:run", "torch:load"])
def test_a_file_runs_nothing_that_it_names(own: Path, name: str) -> None:
    kwargs = {"command": "touch was_run"} if name == "os:system" else {"width": 4}
    qk.save(nn.Linear(2, 2), "evil.safetensors", architecture={"name": name, "kwargs": kwargs})
    with pytest.raises(CheckpointError, match=f"names its model: {name} .*trust=True"):
        qk.load("evil.safetensors")
    assert not Path("was_run").exists()


def test_a_class_of_an_installed_package_needs_no_trust(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    named = {"name": "qkernels.models:TutorialCNN", "kwargs": {"width": 2}}
    qk.save(models.TutorialCNN(width=2), path, architecture=named)
    assert isinstance(qk.load(path), models.TutorialCNN)


def test_models_of_libraries_fit_the_data() -> None:
    digits = load("digits")
    pytest.importorskip("timm")
    made = describe_architecture("timm:test_resnet", digits)
    assert made["kwargs"] == {"num_classes": 10, "in_chans": 1}
    assert models.create(made["name"], **made["kwargs"])(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    pytest.importorskip("torchvision")
    made = describe_architecture("torchvision:squeezenet1_1", digits)
    assert models.create(made["name"], **made["kwargs"])(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_arguments_of_a_model_are_a_json_object() -> None:
    assert ModelChoice("a:B", '{"x": 1}', width=3).arguments == {"x": 1, "width": 3}
    for text in ("[1]", "3", "{"):
        with pytest.raises(ValueError, match="model arguments"):
            ModelChoice("a:B", text).arguments  # noqa: B018


# ---- data sets of torch


class Pictures(Dataset):
    classes = ("dark", "light")

    def __init__(self, form: Any, size: int = 8) -> None:
        self.form, self.size = form, size

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i >= len(self):
            raise IndexError
        return self.form(torch.full((3, self.size, 8), 100 * (i % 2), dtype=torch.uint8)), i % 2


def test_pictures_arrays_and_tensors_become_batches() -> None:
    image_module = pytest.importorskip("PIL.Image")
    forms = [
        lambda x: x,
        lambda x: x.permute(1, 2, 0).numpy(),
        lambda x: image_module.fromarray(x.permute(1, 2, 0).numpy()),
        lambda x: x / 255,
    ]
    batches = []
    for form in forms:
        data = from_datasets(Pictures(form), val_fraction=0.5)
        assert data.class_names == ("dark", "light") and len(data.train) == len(data.val) == 10
        batches.append(next(iter(data.batches("train", 4))))
    for images, labels in batches:
        assert torch.allclose(images, batches[0][0]) and torch.equal(labels, batches[0][1])
    assert from_datasets(Pictures(forms[0])).image_input is not None
    assert from_datasets(Pictures(forms[3])).image_input is None


def test_every_kind_of_loader_is_read() -> None:
    x, y = torch.randn(30, 5), torch.arange(30) % 3

    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(zip(x, y, strict=True))

    plain = TensorDataset(x, y)
    collate = lambda items: tuple(map(torch.stack, zip(*items, strict=True)))  # noqa: E731
    for given in (
        plain,
        DataLoader(plain, batch_size=7),
        DataLoader(Stream(), batch_size=7),
        DataLoader(plain, batch_size=7, collate_fn=collate),
    ):
        data = from_datasets(given, given)
        assert data.num_classes == 3 and data.image_shape == (5,)
        ((images, labels),) = data.batches("train", 30)
        assert torch.equal(images, x) and torch.equal(labels, y)
    half = from_datasets(Subset(plain, [3, 4, 5]), plain)
    assert half.train.labels.tolist() == [0, 1, 2]


def test_faults_of_a_data_set_are_named() -> None:
    class Odd(Pictures):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            return torch.zeros(3, 8 + (i == 7), 8), 0

    with pytest.raises(ValueError, match=r"item 7 of Odd has shape \[3, 9, 8\]"):
        next(iter(from_datasets(Odd(None), val_fraction=0.0).batches("train", 20)))
    with pytest.raises(
        ValueError, match=r"an item of the data set is a Tensor, not \(input, label"
    ):
        from_datasets(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="without batches"):
        from_datasets(DataLoader(TensorDataset(torch.zeros(0, 3), torch.zeros(0)), collate_fn=list))


def test_other_items_are_other_data() -> None:
    x, y = torch.randn(30, 5), torch.arange(30) % 3
    first, same = (from_datasets(TensorDataset(x, y)).digest() for _ in range(2))
    assert first == same != from_datasets(TensorDataset(x + 1, y)).digest()


def test_the_lines_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "own.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code[code.index("data = ") :].splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    from qkernels.program import Program

    x = names["x"][:4]
    got = Program.load("student.qkp")(x.numpy())
    assert (got == names["int8"](x).numpy()).all()
