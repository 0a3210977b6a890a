from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from nets import conv_net, images
from torch import Tensor, nn

from qkernels.quantization import calibrate
from qkernels.quantization.observers import MinMax

X = images(6)
LABELS = torch.zeros(6)


def generator() -> Iterator[Tensor]:
    yield from X.split(2)


def run(model: nn.Module) -> None:
    model(X[:4])
    model(X[4:])


@pytest.mark.parametrize(
    "data",
    [
        X,
        [X],
        X.split(4),
        generator(),
        [(X, LABELS)],
        [[X, LABELS]],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, LABELS), batch_size=4),
        {"x": X},
        [{"x": X[:3]}, {"x": X[3:]}],
        run,
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_form_of_data_shows_the_same_inputs(data: Any) -> None:
    observers = {"conv1": MinMax(), "head": MinMax()}
    calibrate(conv_net(), observers, data)
    assert observers["conv1"].range() == (X.min().item(), X.max().item())
    assert observers["conv1"].count == X.numel()
    assert observers["head"].count == 6 * 16


@pytest.mark.parametrize("data", [[], (), iter([])])
def test_no_batches_is_an_error(data: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        calibrate(conv_net(), {}, data)


@pytest.mark.parametrize("batch", [3.5, "x", None, ()])
def test_a_batch_of_another_type_is_named(batch: Any) -> None:
    with pytest.raises(ValueError, match=f"is a {type(batch).__name__}"):
        calibrate(conv_net(), {}, [batch])


def test_nan_names_the_layer_it_enters() -> None:
    model = conv_net()
    with torch.no_grad():
        model.hidden.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="'head' holds 6 NaN"):
        calibrate(model, {"conv1": MinMax("conv1"), "head": MinMax("head")}, X)


def test_training_flags_statistics_and_hooks_are_left_as_they_were() -> None:
    model = conv_net().train()
    model.bn2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, {"conv1": MinMax()}, X)
    assert model.training
    assert model.bn1.training
    assert not model.bn2.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.conv1._forward_pre_hooks

    def fail(model: nn.Module) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        calibrate(model, {"conv1": MinMax()}, fail)
    assert model.training
    assert not model.conv1._forward_pre_hooks


def test_layers_called_by_keyword_and_twice_are_seen() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=x) + self.fc(-2 * x)

    observer = MinMax()
    calibrate(Net(), {"fc": observer}, torch.tensor([[1.0, 3.0]]))
    assert observer.range() == (-6.0, 3.0)


def test_the_model_itself_can_be_the_layer() -> None:
    observer = MinMax()
    calibrate(nn.Linear(2, 2), {"": observer}, torch.tensor([[-1.0, 3.0]]))
    assert observer.range() == (-1.0, 3.0)


def test_progress_appears_only_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    calibrate(conv_net(), {}, X.split(1))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("qkernels.quantization.calibration._PROGRESS_AFTER", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    calibrate(conv_net(), {}, X.split(1))
    assert "calibrating" in capsys.readouterr().err


def test_nothing_is_drawn_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qkernels.quantization.calibration._PROGRESS_AFTER", -1.0)
    monkeypatch.setitem(__import__("sys").modules, "rich.progress", None)
    monkeypatch.setenv("FORCE_COLOR", "1")
    seen: list[int] = []
    model = conv_net()
    model.register_forward_hook(lambda module, given, answer: seen.append(len(answer)))
    calibrate(model, {}, X.split(1))
    assert sum(seen) == len(X) and capsys.readouterr().err == ""


def test_grad_mode_is_off_inside() -> None:
    modes: list[bool] = []
    check: Callable[[nn.Module], None] = lambda model: modes.append(  # noqa: E731
        torch.is_grad_enabled() or torch.is_inference_mode_enabled()
    )
    calibrate(conv_net(), {}, check)
    assert modes == [False]  # inference tensors that a forward keeps in the model would break it
