import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from qkernels.distill import hinton_loss, soft_cross_entropy

T = 3.0


def logits(seed: int, count: int = 5, classes: int = 4) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 2


def probabilities(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_soft_cross_entropy_by_hand() -> None:
    student, teacher = logits(0), logits(1).softmax(1)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total -= sum(p * math.log(q) for p, q in zip(t, probabilities(s, T), strict=True))
    result = soft_cross_entropy(student, teacher, temperature=T)
    assert result.item() == pytest.approx(total / 5, rel=1e-5)


def test_hinton_loss_by_hand() -> None:
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 0])
    soft = hard = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = probabilities(t, T), probabilities(s, T)
        soft += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        hard -= math.log(probabilities(s, 1.0)[label])
    expected = 0.7 * T * T * soft / 5 + 0.3 * hard / 5
    result = hinton_loss(student, teacher, labels, temperature=T, alpha=0.7)
    assert result.item() == pytest.approx(expected, rel=1e-5)
    only_soft = hinton_loss(student, teacher, temperature=T, alpha=0.7)
    assert only_soft.item() == pytest.approx(T * T * soft / 5, rel=1e-5)


def test_alpha_0_is_plain_training() -> None:
    labels = torch.tensor([0, 1, 2, 3, 0])
    result = hinton_loss(logits(0), logits(1), labels, temperature=T, alpha=0.0)
    assert result.item() == pytest.approx(cross_entropy(logits(0), labels).item(), rel=1e-6)


def test_no_gradient_where_the_student_equals_the_teacher_up_to_a_shift() -> None:
    teacher = logits(0)
    student = (teacher + torch.arange(5.0)[:, None]).requires_grad_()
    hinton_loss(student, teacher, temperature=T, alpha=1.0).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6
    student.grad = None
    soft_cross_entropy(student, teacher.softmax(1)).backward()
    assert student.grad.abs().max() < 1e-6


def test_t_squared_keeps_the_size_of_the_gradient() -> None:
    """For large T the gradient tends to (s - t) / K of centred logits, whatever T is."""
    norms = []
    for temperature in (20.0, 40.0, 80.0):
        student = logits(0).requires_grad_()
        hinton_loss(student, logits(1), temperature=temperature, alpha=1.0).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert max(norms) / min(norms) < 1.1
    centred = logits(0) - logits(1)
    limit = (centred - centred.mean(1, keepdim=True)) / 4 / 5
    assert norms[-1] == pytest.approx(limit.norm().item(), rel=0.05)


def test_the_teacher_gets_no_gradient() -> None:
    teacher, student = logits(1).requires_grad_(), logits(0).requires_grad_()
    hinton_loss(student, teacher, temperature=T, alpha=0.5).backward()
    soft_cross_entropy(student, teacher.softmax(1)).backward()
    assert teacher.grad is None


def test_mean_is_over_images_not_over_classes() -> None:
    once = hinton_loss(logits(0), logits(1), temperature=T, alpha=1.0)
    twice = hinton_loss(logits(0).repeat(2, 1), logits(1).repeat(2, 1), temperature=T, alpha=1.0)
    assert once.item() == pytest.approx(twice.item(), rel=1e-6)
    far = torch.full((5, 3), -1e4)  # classes that nobody believes in
    more = hinton_loss(
        torch.cat([logits(0), far], 1), torch.cat([logits(1), far], 1), temperature=T, alpha=1.0
    )
    assert once.item() == pytest.approx(more.item(), rel=1e-6)


def test_bfloat16_logits_are_computed_in_float32() -> None:
    low = hinton_loss(logits(0).bfloat16(), logits(1).bfloat16(), temperature=T, alpha=1.0)
    assert low.dtype == torch.float32


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match=r"student \[5, 4\] and teacher \[5, 3\]"):
        hinton_loss(logits(0), logits(0, classes=3), temperature=1, alpha=1)
    with pytest.raises(ValueError, match="temperature must be positive, not 0"):
        hinton_loss(logits(0), logits(1), temperature=0, alpha=1)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], not 2"):
        hinton_loss(logits(0), logits(1), temperature=1, alpha=2)
