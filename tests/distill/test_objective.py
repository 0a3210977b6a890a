"""Objectives, their parameters, and the hook after each step."""

import copy
from pathlib import Path

import pytest
import torch
from distill_toys import same_state, toy_data, toy_model
from torch import Tensor, nn

from qkernels.distill import (
    DeepSupervision,
    LabelObjective,
    Objective,
    Regularised,
    SoftObjective,
    StepLoss,
    TrainConfig,
    confidence_penalty,
    hinton_loss,
    learning_rate,
    soft_objective,
    train,
)
from qkernels.distill.objective import frozen

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.05)
SHAPE = (1, 4, 4)


class Shifted(Objective):
    """Cross-entropy of logits with a learned shift: a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        assert labels is not None
        logits = model(images) + self.shift
        return StepLoss(nn.functional.cross_entropy(logits, labels), logits, labels)


def test_the_objectives_parameters_are_trained_with_the_model() -> None:
    objective, model = Shifted(), toy_model()
    train(model, toy_data(), CONFIG, objective=objective)
    assert objective.shift.abs().min() > 0
    assert not same_state(model, toy_model())


def test_after_each_step_the_hook_sees_the_model_and_the_lr(tmp_path: Path) -> None:
    """A mask set in the hook holds in the final weights, momentum and weight decay notwithstanding."""
    rates: list[float] = []
    model = toy_model()
    mask = torch.rand_like(model[0].weight) > 0.5

    def hook(stepped: nn.Module, lr: float) -> None:
        assert stepped is model
        rates.append(lr)
        with torch.no_grad():
            model[0].weight.mul_(mask)

    train(model, toy_data(), CONFIG, after_step=hook, run_dir=tmp_path)
    assert rates == [learning_rate(CONFIG, step, 6) for step in range(18)]
    assert torch.equal(model[0].weight == 0, ~mask)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert torch.equal(saved["0.weight"], model[0].weight)


def test_a_teacher_and_an_objective_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="not both"):
        train(toy_model(), toy_data(), CONFIG, teacher=toy_model(), objective=LabelObjective())


def test_a_teacher_is_held_once_and_keeps_its_flags() -> None:
    teacher = toy_model(8).train()
    teacher[0].weight.requires_grad_(False)
    twin = frozen(teacher)
    for mine, theirs in zip(teacher.parameters(), twin.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
    for mine, theirs in zip(teacher.buffers(), twin.buffers(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
    assert not any(p.requires_grad for p in twin.parameters())
    assert not any(module.training for module in twin.modules())
    flags = [p.requires_grad for p in teacher.parameters()]
    assert flags == [False] + [True] * (len(flags) - 1)
    assert all(module.training for module in teacher.modules())


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_copies_no_weight_of_the_teacher(channels_last: bool) -> None:
    teacher = toy_model(8)
    objective = soft_objective("hinton", CONFIG, teacher)
    config = CONFIG.model_copy(update={"epochs": 1, "channels_last": channels_last})
    train(toy_model(), toy_data(), config, objective=objective)
    twins = objective.teachers[0].parameters()
    for mine, theirs in zip(teacher.parameters(), twins, strict=True):
        assert mine.data_ptr() == theirs.data_ptr()


def test_a_model_cannot_teach_itself_in_place() -> None:
    model = toy_model()
    with pytest.raises(ValueError, match="shares weights with the model that is trained"):
        train(model, toy_data(), CONFIG, teacher=model)
    train(model, toy_data(), CONFIG, teacher=copy.deepcopy(model))


def test_a_teacher_of_other_classes_is_refused_before_training(tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ValueError, match=r"student \[4, 2\] and teacher \[4, 5\]"):
        train(toy_model(), toy_data(), CONFIG, teacher=teacher, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_check_before_training_changes_nothing() -> None:
    """It runs the model in eval mode: batch statistics and dropout's numbers are as without it."""
    first, second = toy_model(), toy_model()
    train(first, toy_data(), CONFIG)

    class Unchecked(LabelObjective):
        def check(self, *_: object) -> None:
            pass

    train(second, toy_data(), CONFIG, objective=Unchecked())
    assert same_state(first, second)


def test_alpha_0_is_plain_training_to_the_bit() -> None:
    plain, distilled = toy_model(), toy_model()
    train(plain, toy_data(), CONFIG)
    train(distilled, toy_data(), CONFIG.model_copy(update={"alpha": 0.0}), teacher=toy_model(8))
    assert same_state(plain, distilled)


def test_a_regulariser_of_weight_0_is_plain_training_to_the_bit() -> None:
    def endless(logits: Tensor) -> Tensor:
        return logits.sum() * float("inf")  # 0 * inf would be no number

    plain, regularised, penalised = toy_model(), toy_model(), toy_model()
    train(plain, toy_data(), CONFIG)
    train(regularised, toy_data(), CONFIG, objective=Regularised(LabelObjective(), endless, 0.0))
    assert same_state(plain, regularised)
    sharp = Regularised(LabelObjective(), confidence_penalty, 2.0)
    train(penalised, toy_data(), CONFIG, objective=sharp)
    images = next(iter(toy_data().batches("test", 32)))[0]
    plain_entropy, entropy = (
        -confidence_penalty(model.eval()(images)).item() for model in (plain, penalised)
    )
    assert entropy > 1.5 * plain_entropy


def test_the_loss_is_the_base_plus_weight_times_the_regulariser() -> None:
    model = toy_model(batch_norm=False).eval()
    images, labels = next(iter(toy_data().batches("train", 8)))
    base = LabelObjective()(model, images, labels)
    step = Regularised(LabelObjective(), lambda logits: logits.square().mean(), 0.5)(model, images, labels)  # fmt: skip
    assert step.loss.item() == pytest.approx((base.loss + 0.5 * base.logits.square().mean()).item())


def test_two_teachers_teach_their_weighted_mean() -> None:
    first, second, student = toy_model(4, 1).eval(), toy_model(8, 2).eval(), toy_model(4, 3).eval()
    images, labels = next(iter(toy_data().batches("train", 8)))
    objective = SoftObjective(
        first, second, soft=softened, name="hinton", alpha=0.7, temperature=3.0, weights=[3, 1]
    )
    probs = 0.75 * (first(images) / 3).softmax(1) + 0.25 * (second(images) / 3).softmax(1)
    step = objective(student, images, labels)
    expected = hinton_loss(student(images), 3 * probs.log(), labels, temperature=3.0, alpha=0.7)
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    unlabelled = objective(student, images, None)
    assert torch.equal(unlabelled.truth, probs.argmax(1))


def softened(s: Tensor, t: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
    return hinton_loss(s, t, temperature=temperature, alpha=1.0)


def deep(student: nn.Module, weight: float = 0.3) -> DeepSupervision:
    return DeepSupervision(
        LabelObjective(), student, ["2", "4"], image_shape=SHAPE, num_classes=2, weight=weight
    )


def test_auxiliary_heads_are_trained_and_reach_the_layers_before_them() -> None:
    model = toy_model()
    objective = deep(model)
    before = copy.deepcopy(objective)
    train(model, toy_data(), CONFIG, objective=objective)
    assert not any(
        torch.equal(a.weight, b.weight) for a, b in zip(objective.heads, before.heads, strict=True)
    )
    assert not model[2]._forward_hooks and not model[4]._forward_hooks
    images, labels = next(iter(toy_data().batches("train", 8)))
    model.eval()
    step, plain = objective(model, images, labels), LabelObjective()(model, images, labels)
    heads = [
        nn.functional.cross_entropy(head(features), labels)
        for head, features in zip(
            objective.heads, (model[:3](images).mean((2, 3)), model[:5](images)), strict=True
        )
    ]
    expected = plain.loss + 0.3 * (heads[0] + heads[1]) / 2
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_heads_of_weight_0_leave_the_student_as_plain_training() -> None:
    plain, model = toy_model(), toy_model()
    train(plain, toy_data(), CONFIG)
    train(model, toy_data(), CONFIG, objective=deep(model, weight=0.0))
    assert same_state(plain, model)


def test_gradients_longer_than_allowed_are_clipped_with_the_objectives_own() -> None:
    """The length is that of all gradients together, model and objective."""
    objective, model = Shifted(), toy_model()
    seen: list[float] = []

    def length(_: nn.Module, lr: float) -> None:
        grads = [p.grad for p in [*model.parameters(), *objective.parameters()]]
        seen.append(float(torch.stack([g.norm() for g in grads if g is not None]).norm()))

    config = CONFIG.model_copy(update={"clip_grad_norm": 0.01, "epochs": 1})
    train(model, toy_data(), config, objective=objective, after_step=length)
    assert seen and max(seen) <= 0.0101
