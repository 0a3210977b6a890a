"""Losses by hand, and what training with them does to real digits."""

import copy
from pathlib import Path

import pytest
import torch
from adversarial_nets import cnn
from torch import Tensor, nn

import qkernels
from qkernels.adversarial import ARD, RSLAD, AdversarialTraining, Ball, pgd, robustness
from qkernels.data import ImageData
from qkernels.distill import Objective, TrainConfig, train
from qkernels.distill.losses import hinton_loss

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=2, batch_size=128, lr=0.05)


class KilledError(Exception):
    pass


def first_batch(data: ImageData) -> tuple[Tensor, Tensor]:
    images, labels = next(iter(data.batches("train", 32)))
    assert labels is not None
    return images, labels


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(1)[torch.arange(len(labels)), labels]


def divergences(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p, q = (z.div(temperature).softmax(1) for z in (teacher, student))
    return (p * (p / q).log()).sum(1)


def test_losses_by_hand(digits: ImageData, teacher: nn.Module) -> None:
    images, labels = first_batch(digits)
    student, region = cnn().eval(), Ball.of(digits, 0.1)
    guide = teacher(images)
    torch.manual_seed(5)
    moved = pgd(student, images, labels, region, steps=3)
    torch.manual_seed(5)
    moved_softly = pgd(student, images, guide.softmax(1), region, steps=3)
    attacked, clean, softly = student(moved), student(images), student(moved_softly)
    expected = {
        AdversarialTraining(region, steps=3): cross_entropies(attacked, labels),
        ARD(teacher, region, steps=3, temperature=3, alpha=0.7): 0.7 * 9 * divergences(guide, attacked, 3)
        + 0.3 * cross_entropies(clean, labels),
        RSLAD(teacher, region, steps=3, alpha=0.8): 0.8 * divergences(guide, softly, 1)
        + 0.2 * divergences(guide, clean, 1),
    }  # fmt: skip
    for objective, losses in expected.items():
        torch.manual_seed(5)
        result = objective(student, images, labels)
        assert result.loss.item() == pytest.approx(losses.mean().item(), rel=1e-4)
        seen = softly if isinstance(objective, RSLAD) else attacked
        torch.testing.assert_close(result.logits, seen, rtol=1e-4, atol=1e-5)
        assert torch.equal(result.truth, labels)


def test_without_perturbation_each_is_its_plain_form(digits: ImageData, teacher: nn.Module) -> None:
    images, labels = first_batch(digits)
    student, region = cnn().eval(), Ball.of(digits, 0.0)
    ard = ARD(teacher, region, temperature=3, alpha=0.7)(student, images, labels)
    plain = hinton_loss(student(images), teacher(images), labels, temperature=3, alpha=0.7)
    assert ard.loss.item() == pytest.approx(plain.item(), rel=1e-5)
    rslad = RSLAD(teacher, region)(student, images, None)
    soft = hinton_loss(student(images), teacher(images), temperature=1, alpha=1)
    assert rslad.loss.item() == pytest.approx(soft.item(), rel=1e-5)
    assert torch.equal(rslad.truth, teacher(images).argmax(1))


def test_the_gradient_reaches_the_student_alone(digits: ImageData, teacher: nn.Module) -> None:
    images, labels = first_batch(digits)
    region = Ball.of(digits, 0.05)
    for make in (ARD, RSLAD):
        student = cnn()
        make(teacher, region, steps=2)(student, images, labels).loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
        assert all(p.grad is None for p in teacher.parameters())


def test_ard_students_withstand_what_distilled_ones_do_not_before_and_after_int8(
    digits: ImageData, teacher: nn.Module
) -> None:
    region = Ball.of(digits, 0.1)
    config = TrainConfig(epochs=15, batch_size=64, lr=0.05)
    found = {}
    for name, objective in {"plain": None, "ard": ARD(teacher, region, steps=4)}.items():
        student = cnn(8, seed=1)
        train(
            student, digits, config, progress=False,
            objective=objective, teacher=teacher if objective is None else None,
        )  # fmt: skip
        int8 = qkernels.quantize(student, calibration=list(digits.batches("train", 128)))
        row = robustness(student, digits, region, int8=int8, steps=10).row("PGD-10")
        assert row.int8 is not None
        found[name] = row.float32.accuracy, row.int8.accuracy
    assert found["ard"][0] > found["plain"][0] + 0.1
    assert found["ard"][1] > found["plain"][1] + 0.1


@pytest.mark.parametrize("kind", ["at", "ard", "rslad"])
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, digits: ImageData, teacher: nn.Module, kind: str
) -> None:
    def objective(eps: float = 0.1) -> Objective:
        ball = Ball.of(digits, eps)
        if kind == "at":
            return AdversarialTraining(ball, steps=2)
        return (ARD if kind == "ard" else RSLAD)(teacher, ball, steps=2)

    undisturbed = cnn()
    train(undisturbed, digits, CONFIG, objective=objective())

    steps = iter(range(11))  # eight an epoch

    def kill(model: nn.Module, lr: float) -> None:
        if next(steps, None) is None:
            raise KilledError

    with pytest.raises(KilledError):
        train(cnn(), digits, CONFIG, objective=objective(), after_step=kill, run_dir=tmp_path)
    resumed = cnn(seed=9)
    train(resumed, digits, CONFIG, objective=objective(), run_dir=tmp_path)
    other = undisturbed.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in resumed.state_dict().items())
    with pytest.raises(ValueError, match=r"objective=.*eps=0.1"):
        train(cnn(), digits, CONFIG, objective=objective(eps=0.2), run_dir=tmp_path)


def test_rslad_needs_no_labels(digits: ImageData, teacher: nn.Module) -> None:
    student, unlabelled = cnn(), digits.with_train(digits.train.unlabelled())
    result = train(
        student, unlabelled, CONFIG, objective=RSLAD(teacher, Ball.of(digits, 0.05), steps=2)
    )
    assert result.history[-1].loss < result.history[0].loss
    with pytest.raises(ValueError, match="without labels need a teacher"):
        train(cnn(), unlabelled, CONFIG, objective=AdversarialTraining(Ball.of(digits, 0.05)))


def test_of_a_trained_model_the_weights_that_withstand_most_are_kept_and_not_the_start(
    digits: ImageData, teacher: nn.Module
) -> None:
    """Clean images would always prefer the start: an attack costs accuracy on them."""
    region, student = Ball.of(digits, 0.1), copy.deepcopy(teacher)
    config = TrainConfig(epochs=3, batch_size=64, lr=0.02, keep="best")
    done = train(student, digits, config, objective=AdversarialTraining(region, steps=4))
    assert done.kept
    before, after = (
        robustness(model, digits, region, steps=4).row("PGD-4").float32.accuracy
        for model in (teacher, student)
    )
    assert after > before + 0.1
    images, labels = next(iter(digits.batches("val", len(digits.val))))
    assert labels is not None
    draw = torch.Generator().manual_seed(0)
    seen = pgd(student.eval(), images, labels, region, steps=4, generator=draw)
    hits = (student(seen).argmax(1) == labels).float().mean().item()
    kept = done.history[done.kept - 1].val_accuracy
    assert kept == pytest.approx(hits, abs=0.05)  # here in one batch
