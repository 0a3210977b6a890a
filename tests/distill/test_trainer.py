import copy
from pathlib import Path

import pytest
import torch
from distill_toys import same_state, toy_data, toy_model
from torch import Tensor, nn

from qkernels.distill import TrainConfig, train
from qkernels.evaluate import evaluate

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "lr": 0.01, "clip_grad_norm": 1.0},
        {"precision": "bf16", "channels_last": True},
        {"label_smoothing": 0.1, "warmup_epochs": 1.0, "momentum": 0.0},
    ],
)
def test_training_learns(changes: dict[str, object]) -> None:
    model = toy_model()
    result = train(model, toy_data(), CONFIG.model_copy(update=changes))
    assert [record.epoch for record in result.history] == [1, 2, 3, 4]
    assert result.history[-1].loss < result.history[0].loss
    assert evaluate(model, toy_data()).accuracy > 0.9
    assert result.val_accuracy is not None and result.val_accuracy > 0.9


def test_same_seed_same_weights() -> None:
    first, second, other = toy_model(), toy_model(), toy_model()
    train(first, toy_data(), CONFIG)
    torch.rand(7)  # what happened before must not matter
    train(second, toy_data(), CONFIG)
    train(other, toy_data(), CONFIG.model_copy(update={"seed": 1}))
    assert same_state(first, second)
    assert not same_state(first, other)


def test_the_teacher_is_not_touched_and_answers_in_eval_mode() -> None:
    modes: list[bool] = []

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model(8, seed=3)

        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training or torch.is_grad_enabled())
            return self.inner(x)  # type: ignore[no-any-return]

    teacher = Teacher().train()
    before = copy.deepcopy(teacher)
    train(toy_model(), toy_data(), CONFIG, teacher=teacher)
    assert modes and not any(modes)
    assert same_state(teacher, before)
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_a_student_learns_from_the_teacher_without_labels() -> None:
    teacher = toy_model(8)
    train(teacher, toy_data(), CONFIG)
    student = toy_model(2, seed=5)
    result = train(student, toy_data(labelled=False), CONFIG, teacher=teacher)
    assert evaluate(student, toy_data()).accuracy > 0.9
    assert result.history[-1].accuracy > 0.8  # agreement with the teacher


def test_without_labels_and_teacher_there_is_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="without labels need a teacher"):
        train(toy_model(), toy_data(labelled=False), CONFIG)


def test_a_batch_larger_than_the_data_is_the_whole_data() -> None:
    result = train(toy_model(), toy_data(train=8), CONFIG.model_copy(update={"batch_size": 999}))
    assert len(result.history) == 4


def test_validation_is_as_often_as_asked() -> None:
    result = train(toy_model(), toy_data(), CONFIG.model_copy(update={"eval_every": 3}))
    assert [r.val_accuracy is not None for r in result.history] == [False, False, True, True]


def test_validation_equals_evaluate() -> None:
    model = toy_model()
    result = train(model, toy_data(), CONFIG)
    held_out = evaluate(model, toy_data(), "val")
    assert result.val_accuracy == held_out.accuracy
    assert result.history[-1].val_loss == pytest.approx(held_out.loss, rel=1e-5)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Bomb(nn.Module):
        """Answers NaN from the 8th batch on: in the second epoch of six steps."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = toy_model(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            out: Tensor = self.inner(x)
            return out * float("nan") if self.calls >= 8 else out

    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2, step 2"):
        train(Bomb(), toy_data(), CONFIG, run_dir=tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["history"]) == 1
    assert all(tensor.isfinite().all() for tensor in checkpoint["model"].values())
