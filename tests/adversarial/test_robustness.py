"""Accuracy under attack is counted on the same images for a float model and its int8 form."""

import pytest
import torch
from adversarial_nets import cnn
from torch import nn

import qkernels
from qkernels.adversarial import Ball, fgsm, pgd, robustness
from qkernels.data import ImageData
from qkernels.evaluate import evaluate
from qkernels.qat import prepare_qat


def test_stronger_attacks_leave_less_and_int8_is_near_its_twin(
    digits: ImageData, teacher: nn.Module
) -> None:
    calibration = list(digits.batches("train", 128))
    int8 = qkernels.quantize(teacher, calibration=calibration)
    twin = prepare_qat(teacher, calibration=calibration)
    found = robustness(
        teacher, digits, Ball.of(digits, 0.1), int8=int8, steps=10,
        through={"straight-through": twin, "another": cnn(seed=3)},
    )  # fmt: skip
    clean, one, many = found.row("clean"), found.row("FGSM"), found.row("PGD-10")
    assert clean.float32 == evaluate(teacher, digits)
    assert clean.int8 == evaluate(int8, digits)
    assert clean.float32.accuracy > 0.9
    assert many.float32.correct <= one.float32.correct < clean.float32.correct
    for row in (clean, one, many):
        assert row.int8 is not None
        assert abs(row.int8.accuracy - row.float32.accuracy) < 0.05
    straight = found.row("PGD-10", "straight-through").int8
    weak = found.row("PGD-10", "another").int8
    assert straight is not None and weak is not None and clean.int8 is not None
    assert straight.correct < weak.correct <= clean.int8.correct  # gradients that fit hurt more
    assert "PGD-10" in str(found) and "eps = 25.5/255" in str(found)
    with pytest.raises(KeyError, match="no row PGD-7 float twin; there are clean, FGSM float twin"):
        found.row("PGD-7")


def test_rows_are_the_accuracies_of_the_attacks(digits: ImageData, teacher: nn.Module) -> None:
    region = Ball.of(digits, 0.08)
    found = robustness(teacher, digits, region, steps=3, limit=60, batch_size=40, seed=4)
    right = dict.fromkeys(("FGSM", "PGD-3"), 0)
    draw = torch.Generator().manual_seed(4)
    for images, labels in digits.batches("test", 40).head(60):
        assert labels is not None
        for name, moved in (
            ("FGSM", fgsm(teacher, images, labels, region)),
            ("PGD-3", pgd(teacher, images, labels, region, steps=3, generator=draw)),
        ):
            right[name] += int((teacher(moved).argmax(1) == labels).sum())
    for name, correct in right.items():
        assert (found.row(name).float32.correct, found.row(name).float32.count) == (correct, 60)
        assert found.row(name).int8 is None


def test_int8_itself_cannot_be_attacked_and_says_so(digits: ImageData, teacher: nn.Module) -> None:
    int8 = qkernels.quantize(teacher, calibration=list(digits.batches("train", 128)))
    images, labels = next(iter(digits.batches("test", 10)))
    assert labels is not None
    with pytest.raises(RuntimeError, match="inference"):
        fgsm(int8, images, labels, Ball.of(digits, 0.1))


def test_a_split_without_labels_is_refused(digits: ImageData, teacher: nn.Module) -> None:
    unlabelled = digits.with_train(digits.train.unlabelled())
    with pytest.raises(ValueError, match="the split train has no labelled images"):
        robustness(teacher, unlabelled, Ball.of(digits, 0.1), split="train")
