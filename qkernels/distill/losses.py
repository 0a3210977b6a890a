"""What a student learns from: the teacher's soft answers and the true labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax


def soft_cross_entropy(
    student_logits: Tensor, teacher_probs: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """-sum over classes of p log softmax(s / T), averaged over the N images; a scalar.

    `student_logits` float [N, K]; `teacher_probs` float [N, K], rows summing to 1;
    they get no gradient. Raises ValueError if the shapes differ or the temperature is not positive.
    """
    _check(student_logits, teacher_probs, temperature)
    log_probs = log_softmax(student_logits.float() / temperature, dim=1)
    return -(teacher_probs.detach() * log_probs).sum(1).mean()


def hinton_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """alpha * T^2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) * cross-entropy; a scalar.

    Hinton, Vinyals, Dean 2015 (1503.02531): T^2 keeps the size of the soft gradient when T changes.
    KL is summed over classes and averaged over images. Logits are float [N, K], labels int64 [N];
    without labels only T^2 * KL remains. The teacher gets no gradient. Computed in float32.
    Raises ValueError for differing shapes, temperature <= 0 or alpha outside [0, 1].
    """
    _check(student_logits, teacher_logits, temperature)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}")
    student = log_softmax(student_logits.float() / temperature, dim=1)
    teacher = log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    # "batchmean", because "mean" would divide by the number of classes as well.
    soft = temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
    if labels is None:
        return soft
    hard = cross_entropy(student_logits.float(), labels, label_smoothing=label_smoothing)
    return alpha * soft + (1 - alpha) * hard


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {list(student.shape)} and teacher {list(teacher.shape)} must both be [N, K]"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
