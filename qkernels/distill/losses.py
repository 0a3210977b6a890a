"""What a student can learn from a teacher's answers (logits) and from the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import (
    cosine_similarity,
    cross_entropy,
    kl_div,
    log_softmax,
    logsigmoid,
    one_hot,
)

from qkernels.data.task import Task


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


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1/2 * sum over classes of (s - t)^2, averaged over the N images; a scalar.

    Ba, Caruana 2014 (1312.6184), equation 1. Unlike the others it also fixes the level of the logits, not only their
    differences. Logits float [N, K]; the teacher gets no gradient. Raises ValueError for differing shapes.
    """
    _check_shapes(student_logits, teacher_logits)
    difference = student_logits.float() - teacher_logits.detach().float()
    return 0.5 * difference.square().sum(1).mean()


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    target_weight: float = 1.0,
    other_weight: float = 1.0,
) -> Tensor:
    """T^2 * (target_weight * TCKD + other_weight * NCKD); a scalar.

    Zhao et al. 2022 (2203.08679), equation 7. Hinton's KL is TCKD + (1 - p) * NCKD, p the teacher's probability of the
    labelled class: a sure teacher silences what it knows of the other classes. Here both parts are weighed freely; the
    paper tunes `other_weight` by the task, up to 8 for 100 classes and hundreds of epochs.
    TCKD: KL of the two probabilities (labelled class, all others). NCKD: KL over the other classes alone. Softened by
    T, averaged over images. Logits float [N, K], K > 1, labels int64 [N]; the teacher gets no gradient.
    Raises ValueError for differing shapes or temperature <= 0.
    """
    _check(student_logits, teacher_logits, temperature)
    target = one_hot(labels, student_logits.shape[1]).bool()
    parts = []
    for logits in (student_logits.float(), teacher_logits.detach().float()):
        softened = logits / temperature
        # log(1 - p) as a log-sum over the other classes: exact where p is close to 1.
        others = softened[~target].view(len(logits), -1)
        log_total = softened.logsumexp(1)
        log_pair = torch.stack([softened[target], others.logsumexp(1)], dim=1) - log_total[:, None]
        parts.append((log_pair, log_softmax(others, dim=1)))
    (pair, rest), (teacher_pair, teacher_rest) = parts
    tckd = kl_div(pair, teacher_pair, reduction="batchmean", log_target=True)
    nckd = kl_div(rest, teacher_rest, reduction="batchmean", log_target=True)
    return temperature**2 * (target_weight * tckd + other_weight * nckd)


def binary_hinton_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """T^2 * the sum over labels of KL(sigmoid(t / T) || sigmoid(s / T)), averaged over the N images; a scalar.

    Hinton's loss of labels that do not exclude each other: each is a distribution over yes and no (the logit part of
    Yang et al. 2023, 2308.06453). Logits float [N, K], K >= 1; the teacher gets no gradient. Raises ValueError for
    differing shapes or temperature <= 0.
    """
    _check_shapes(student_logits, teacher_logits)
    _check_temperature(temperature)
    student, teacher = (
        student_logits.float() / temperature,
        teacher_logits.detach().float() / temperature,
    )
    yes = teacher.sigmoid()
    divergence = yes * (logsigmoid(teacher) - logsigmoid(student))
    divergence = divergence + (1 - yes) * (logsigmoid(-teacher) - logsigmoid(-student))
    return temperature**2 * divergence.sum(1).mean()


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(s, t), averaged over the N inputs; a scalar in [0, 2].

    For embeddings that are compared by their direction, such as those of sentences. Float [N, D] of one shape; the
    teacher gets no gradient. Raises ValueError for differing shapes.
    """
    _check_shapes(student, teacher)
    return (1 - cosine_similarity(student.float(), teacher.detach().float(), dim=1)).mean()


def focal_loss(
    logits: Tensor, labels: Tensor, *, gamma: float, weights: Tensor | None = None
) -> Tensor:
    """-(1 - p)^gamma log p, p the probability of the label; the mean over images, weighted by their class; a scalar.

    Lin et al. 2017 (1708.02002), equation 5: images that are right already count less. Logits float [N, K], K > 1,
    labels int64 [N], `weights` [K]; gamma 0 is cross-entropy. Raises ValueError for gamma < 0.
    """
    _check_gamma(gamma)
    log_probs, label = log_softmax(logits.float(), dim=1), labels[:, None]
    log_p = log_probs.gather(1, label).squeeze(1)
    # log(1 - p) as a log-sum over the other classes: a power below 1 has no gradient at 0, its logarithm has.
    log_rest = log_probs.scatter(1, label, -torch.inf).logsumexp(1)
    each = -(gamma * log_rest).exp() * log_p
    share = torch.ones_like(each) if weights is None else weights[labels]
    return (share * each).sum() / share.sum()


def binary_focal_loss(
    logits: Tensor, labels: Tensor, *, gamma: float, pos_weight: Tensor | None = None
) -> Tensor:
    """The focal loss of each of K labels that do not exclude each other, [N, K]; `pos_weight` [K] weighs the 1s.

    Logits and labels (0 or 1) float [N, K]; gamma 0 is binary cross-entropy. Raises ValueError for gamma < 0.
    """
    _check_gamma(gamma)
    signed = logits.float() * (2 * labels - 1)
    each = -(gamma * logsigmoid(-signed)).exp() * logsigmoid(signed)
    return each if pos_weight is None else each * torch.where(labels > 0.5, pos_weight, 1.0)


def mean_answer(
    logits: Sequence[Tensor],
    *,
    temperature: float,
    weights: Sequence[float] | None = None,
    task: Task = "multiclass",
) -> Tensor:
    """Logits [N, K] whose softmax(. / T) is the weighted mean of the softmax(l / T) of several teachers.

    The mean of softened probabilities (Hinton, Vinyals, Dean 2015) in a form that every logit loss takes. Of multilabel
    answers it is the mean of the sigmoids, of values the mean itself.
    `weights` are >= 0, one a teacher, and are scaled to sum to 1; None: equal. One teacher's logits come back as they
    are. Raises ValueError for differing shapes, bad weights or temperature <= 0.
    """
    for other in logits[1:]:
        (_check if task == "multiclass" else _check_values)(logits[0], other, temperature)
    each = [1.0] * len(logits) if weights is None else list(weights)
    shares = torch.tensor(each, dtype=torch.float32)
    if len(shares) != len(logits) or not (shares >= 0).all() or not 0 < shares.sum() < torch.inf:
        raise ValueError(f"{len(logits)} teachers cannot have the weights {weights}")
    if len(logits) == 1:
        return logits[0]
    shares = (shares / shares.sum()).to(logits[0].device)
    if task == "regression":
        return torch.tensordot(shares, torch.stack([one.float() for one in logits]), dims=1)
    if task == "multilabel":
        probs = torch.stack([(one.float() / temperature).sigmoid() for one in logits])
        return temperature * torch.tensordot(shares, probs, dims=1).logit(eps=1e-7)
    log_probs = torch.stack([log_softmax(one.float() / temperature, dim=1) for one in logits])
    log_shares = shares.log()
    return temperature * (log_probs + log_shares[:, None, None]).logsumexp(0)


def confidence_penalty(logits: Tensor) -> Tensor:
    """sum over classes of p log p, p = softmax(logits), averaged over images: minus the entropy; in [-log K, 0].

    Pereyra et al. 2017 (1701.06548). As a regulariser it keeps a student from being surer than it should be.
    """
    log_probs = log_softmax(logits.float(), dim=1)
    return (log_probs.exp() * log_probs).sum(1).mean()


def check_classes(logits: Tensor) -> None:
    """Raise ValueError for logits that no softmax makes sense of: not [N, K], or fewer than two classes.

    The softmax of one class is 1 whatever the model answers: no loss, no gradient, and every answer right.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"a softmax loss needs logits [N, K] of two classes or more, not {list(logits.shape)}"
        )


def _check(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> None:
    _check_shapes(student, teacher)
    check_classes(student)
    _check_temperature(temperature)


def _check_values(student: Tensor, teacher: Tensor, temperature: float) -> None:
    _check_shapes(student, teacher)
    _check_temperature(temperature)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")


def _check_gamma(gamma: float) -> None:
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {list(student.shape)} and teacher {list(teacher.shape)} must both be [N, K]"
        )
