"""What a student can learn from a teacher's features: activations inside the network. Computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize, smooth_l1_loss


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (s - t)^2 over all elements; a scalar.

    FitNets, Romero et al. 2015 (1412.6550), equation 3, which sums and halves; the mean does not depend on the size of
    the features. Both [N, C, H, W] or [N, D] of one shape: the student's after its regressor. The teacher gets no
    gradient. Raises ValueError for differing shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"{_shapes(student, teacher)} must have the same shape")
    return mse_loss(student.float(), teacher.detach().float())


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images and pixels of (q(s) - q(t))^2, q the channel mean of squares scaled to unit length; a scalar.

    Attention transfer, Zagoruyko, Komodakis 2017 (1612.03928), the form of the authors' code. Where a network looks,
    not how many channels it has: [N, C, H, W] and [N, C', H, W]. The teacher gets no gradient. Raises ValueError
    if the other sizes differ.
    """
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"{_shapes(student, teacher)} must be [N, C, H, W] of one height and width"
        )
    mine, theirs = (
        normalize(x.float().square().mean(1).flatten(1), dim=1) for x in (student, teacher.detach())
    )
    return mse_loss(mine, theirs)


def rkd_loss(
    student: Tensor, teacher: Tensor, *, distance_weight: float = 1.0, angle_weight: float = 2.0
) -> Tensor:
    """Relations between the images of a batch: distance_weight * distances + angle_weight * angles; a scalar.

    RKD, Park et al. 2019 (1904.05068). Distances |a - b| of all pairs, divided by their mean, and cosines of the angles
    a-b-c of all triples are compared by the Huber loss (delta 1), averaged. Only relations count: turning, shifting or
    scaling the student's features changes nothing, and widths may differ: [N, ...] and [N, ...], flattened.
    Memory grows with N^3. The teacher gets no gradient. Raises ValueError for other batch sizes or N < 3.
    """
    if len(student) != len(teacher) or len(student) < 3:
        raise ValueError(
            f"{_shapes(student, teacher)} must be 3 or more images, as many as each other"
        )
    mine, theirs = student.float().flatten(1), teacher.detach().float().flatten(1)
    distance = smooth_l1_loss(_distances(mine), _distances(theirs))
    angle = smooth_l1_loss(_cosines(mine), _cosines(theirs))
    return distance_weight * distance + angle_weight * angle


def _distances(points: Tensor) -> Tensor:
    """Euclidean distances [N, N] of points [N, D] in units of their mean."""
    # The exact form: the one by products is inexact for near points, and cdist has no NaN gradient at 0.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    positive = distances[distances > 0]
    return distances / positive.mean() if len(positive) else distances


def _cosines(points: Tensor) -> Tensor:
    """Cosines [N, N, N] of the angles at point b between a and c, of points [N, D]."""
    directions = normalize(points[None] - points[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def crd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, temperature: float = 0.07
) -> Tensor:
    """-log of the share that an image's own pair has among all pairs, from both sides; a scalar.

    CRD, Tian et al. 2020 (1910.10699), in the in-batch form: with z = <s_i, t_j> / temperature of unit vectors,
    -log(e^z_ii / sum_j e^z_ij) averaged over i, once over the teacher's vectors j and once over the student's. The
    negatives are the batch's other images (with labels: those of other classes, as in the paper); the paper
    draws 16,384 from a memory of all images and scores each by noise-contrastive estimation instead.

    Embeddings [N, D] of one shape, both trained: detach the features that the teacher's is made of.
    Raises ValueError for differing shapes or temperature <= 0.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(f"{_shapes(student, teacher)} must both be [N, D]")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    alike = normalize(student.float(), dim=1) @ normalize(teacher.float(), dim=1).T / temperature
    own = torch.arange(len(student), device=student.device)
    if labels is not None:
        friends = (labels[:, None] == labels) & (own[:, None] != own)
        alike = alike.masked_fill(friends, -torch.inf)
    return cross_entropy(alike, own) + cross_entropy(alike.T, own)


def _shapes(student: Tensor, teacher: Tensor) -> str:
    return f"student features {list(student.shape)} and teacher features {list(teacher.shape)}"
