import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from qkernels.distill import (
    confidence_penalty,
    dkd_loss,
    hinton_loss,
    logit_mse,
    mean_answer,
    soft_cross_entropy,
)
from qkernels.distill.registry import SOFT_LOSSES

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


LABELS = torch.tensor([0, 1, 2, 3, 0])


def test_logit_mse_by_hand() -> None:
    student, teacher = (
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 4.0], [3.0, 0.0]]),
    )
    assert logit_mse(student, teacher).item() == pytest.approx((0.5 * (1 + 4) + 0.5 * 9) / 2)


def test_dkd_by_hand() -> None:
    student, teacher = logits(0), logits(1)
    tckd = nckd = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        p, q = probabilities(t, T), probabilities(s, T)
        tckd += p[y] * math.log(p[y] / q[y])
        tckd += (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        for k in set(range(4)) - {y}:
            a, b = p[k] / (1 - p[y]), q[k] / (1 - q[y])
            nckd += a * math.log(a / b)
    result = dkd_loss(student, teacher, LABELS, temperature=T, target_weight=2, other_weight=5)
    assert result.item() == pytest.approx(T * T * (2 * tckd + 5 * nckd) / 5, rel=1e-5)


def test_dkd_weighed_as_the_paper_derives_is_hintons_loss() -> None:
    """Equation 5: KL = TCKD + (1 - p) NCKD, image by image."""
    for row in range(5):
        student, teacher, label = logits(0)[row, None], logits(1)[row, None], LABELS[row, None]
        rest = 1 - (teacher / T).softmax(1)[0, label].item()
        decoupled = dkd_loss(student, teacher, label, temperature=T, other_weight=rest)
        whole = hinton_loss(student, teacher, temperature=T, alpha=1.0)
        assert decoupled.item() == pytest.approx(whole.item(), rel=1e-4)


def test_dkd_of_a_teacher_that_is_all_but_certain_is_finite() -> None:
    teacher, student = logits(1) + 200 * torch.eye(4)[LABELS], logits(0).requires_grad_()
    loss = dkd_loss(student, teacher, LABELS, temperature=1.0)
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()


EVERY = [(name, task) for name, tasks in SOFT_LOSSES.items() for task in tasks]


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_every_soft_loss_is_at_its_least_where_the_student_is_the_teacher(
    name: str, task: str
) -> None:
    loss, teacher = SOFT_LOSSES[name][task], logits(1)
    student = teacher.clone().requires_grad_()
    least = loss(student, teacher, LABELS, T)
    least.backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-5
    if name != "soft_cross_entropy":  # that one is the teacher's entropy there
        assert least.item() == pytest.approx(0, abs=1e-5)
    assert loss(logits(0), teacher, LABELS, T) > least + 0.1


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_every_soft_loss_is_a_mean_over_images_with_gradients_for_the_student_alone(
    name: str,
    task: str,
) -> None:
    loss = SOFT_LOSSES[name][task]
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    once = loss(student, teacher, LABELS, T)
    once.backward()
    assert teacher.grad is None and student.grad is not None and student.grad.abs().max() > 0
    twice = loss(logits(0).repeat(2, 1), logits(1).repeat(2, 1), LABELS.repeat(2), T)
    assert twice.item() == pytest.approx(once.item(), rel=1e-5)
    assert loss(student.bfloat16(), teacher.bfloat16(), LABELS, T).dtype == torch.float32


def test_t_squared_makes_soft_cross_entropy_pull_like_hintons_loss() -> None:
    gradients = []
    for name in ("hinton", "soft_cross_entropy"):
        student = logits(0).requires_grad_()
        SOFT_LOSSES[name]["multiclass"](student, logits(1), None, T).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


def test_the_mean_answer_is_the_mean_of_softened_probabilities() -> None:
    teachers = [logits(0), logits(1), logits(2)]
    expected = sum(w * (t / T).softmax(1) for w, t in zip((0.5, 0.3, 0.2), teachers, strict=True))
    mean = mean_answer(teachers, temperature=T, weights=[5, 3, 2])
    torch.testing.assert_close((mean / T).softmax(1), expected)
    equal = mean_answer(teachers, temperature=T)
    torch.testing.assert_close(
        (equal / T).softmax(1), sum((t / T).softmax(1) for t in teachers) / 3
    )
    assert mean_answer([logits(0)], temperature=T) is not None
    assert torch.equal(mean_answer([logits(0)], temperature=T), logits(0))
    silent = mean_answer([logits(0), logits(1)], temperature=T, weights=[1, 0])
    torch.testing.assert_close(silent.softmax(1), logits(0).softmax(1))


def test_the_confidence_penalty_is_minus_the_entropy() -> None:
    assert confidence_penalty(torch.zeros(3, 4)).item() == pytest.approx(-math.log(4))
    assert confidence_penalty(torch.tensor([[100.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)


def test_more_faults_are_named() -> None:
    with pytest.raises(ValueError, match=r"student \[5, 4\] and teacher \[5, 3\]"):
        logit_mse(logits(0), logits(0, classes=3))
    with pytest.raises(ValueError, match="temperature must be positive, not -1"):
        dkd_loss(logits(0), logits(1), LABELS, temperature=-1)
    for weights in ([1.0], [0, 0], [1, -1], [1, math.inf], [1, math.nan]):
        with pytest.raises(ValueError, match="2 teachers cannot have the weights"):
            mean_answer([logits(0), logits(1)], temperature=T, weights=weights)
    with pytest.raises(ValueError, match="0 teachers"):
        mean_answer([], temperature=T)
