import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkernels.distill import attention_loss, crd_loss, hint_loss, rkd_loss


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_hint_is_the_mean_of_squares() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 0.0]])
    assert hint_loss(student, teacher).item() == pytest.approx((9 + 4) / 2)


def test_attention_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]])  # squares summed over channels: 2, 4
    teacher = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]], [[0.0, 0.0]]]])  # 9, 16
    q = [2 / math.sqrt(20), 4 / math.sqrt(20)]
    p = [9 / math.sqrt(337), 16 / math.sqrt(337)]
    expected = ((q[0] - p[0]) ** 2 + (q[1] - p[1]) ** 2) / 2
    assert attention_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_attention_is_where_not_how_much() -> None:
    student, teacher = features(0, 3, 4, 5, 5), features(1, 3, 6, 5, 5)
    once = attention_loss(student, teacher)
    assert attention_loss(7 * student, teacher).item() == pytest.approx(once.item(), rel=1e-4)
    assert attention_loss(student.flip(1), teacher).item() == pytest.approx(once.item(), rel=1e-4)
    assert attention_loss(student.flip(2), teacher).item() != pytest.approx(once.item(), rel=1e-2)


def test_rkd_by_hand() -> None:
    """Three points on a line against a right triangle with legs 3 and 4."""
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0, 0], [3, 0], [0, 4]])

    def huber(x: float) -> float:
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    def relations(points: list[list[float]]) -> tuple[list[float], list[float]]:
        def vector(a: int, b: int) -> list[float]:
            return [x - y for x, y in zip(points[a], points[b], strict=True)]

        lengths = [math.hypot(*vector(a, b)) for a in range(3) for b in range(3)]
        mean = sum(lengths) / 6  # of the six that are not 0
        cosines = []
        for corner in range(3):
            for a in range(3):
                for c in range(3):
                    u, v = vector(a, corner), vector(c, corner)
                    size = math.hypot(*u) * math.hypot(*v)
                    dot = sum(x * y for x, y in zip(u, v, strict=True))
                    cosines.append(dot / size if size else 0.0)
        return [x / mean for x in lengths], cosines

    mine, theirs = relations(student.tolist()), relations(teacher.tolist())
    distance = sum(huber(a - b) for a, b in zip(mine[0], theirs[0], strict=True)) / 9
    angle = sum(huber(a - b) for a, b in zip(mine[1], theirs[1], strict=True)) / 27
    result = rkd_loss(student, teacher, distance_weight=3, angle_weight=5)
    assert result.item() == pytest.approx(3 * distance + 5 * angle, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 8), st.integers(1, 5), st.integers(0, 99), st.floats(0.1, 10))
def test_rkd_sees_relations_alone(count: int, width: int, seed: int, scale: float) -> None:
    teacher = features(seed, count, width)
    turn = torch.linalg.qr(features(seed + 1, width, width))[0]
    moved = scale * teacher @ turn + features(seed + 2, width)
    assert rkd_loss(moved, teacher).item() == pytest.approx(0, abs=1e-5)
    assert rkd_loss(torch.cat([moved, 0 * moved], 1), teacher).item() == pytest.approx(0, abs=1e-5)


def test_rkd_of_equal_images_has_a_gradient_of_numbers() -> None:
    student = features(0, 1, 4).repeat(5, 1).requires_grad_()
    rkd_loss(student, features(1, 5, 4)).backward()
    assert student.grad is not None and student.grad.isfinite().all()
    half = torch.cat([features(0, 2, 4), features(0, 2, 4)]).requires_grad_()
    rkd_loss(half, features(1, 4, 4)).backward()
    assert half.grad is not None and half.grad.isfinite().all() and half.grad.abs().max() > 0


def test_crd_by_hand() -> None:
    """Unit vectors at known angles, temperature 1/2; the first two images are of one class."""
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    h = math.sqrt(0.5)
    z = [[2, 2 * h, 0], [0, 2 * h, 2], [-2, -2 * h, 0]]  # <s_i, t_j> / temperature
    e = [[math.exp(x) for x in row] for row in z]

    def loss(allowed: list[list[bool]]) -> float:
        total = 0.0
        for i in range(3):
            row = sum(e[i][j] for j in range(3) if allowed[i][j])
            column = sum(e[j][i] for j in range(3) if allowed[j][i])
            total -= math.log(e[i][i] / row) + math.log(e[i][i] / column)
        return total / 3

    everyone = [[True] * 3] * 3
    others = [[True, False, True], [False, True, True], [True, True, True]]
    assert crd_loss(student, teacher, temperature=0.5).item() == pytest.approx(loss(everyone))
    labels = torch.tensor([7, 7, 1])
    with_labels = crd_loss(student, teacher, labels, temperature=0.5)
    assert with_labels.item() == pytest.approx(loss(others))


def test_crd_is_small_for_pairs_that_fit_and_large_for_others() -> None:
    points = torch.eye(6)
    assert crd_loss(points, points).item() < 1e-4
    assert crd_loss(points, points.roll(1, 0)).item() > 20
    chance = crd_loss(torch.ones(6, 3), torch.ones(6, 3))
    assert chance.item() == pytest.approx(2 * math.log(6))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(hint_loss, (4, 3, 2, 2)), (attention_loss, (4, 3, 2, 2)), (rkd_loss, (4, 5))],
)
def test_zero_where_the_student_is_the_teacher_and_gradients_for_the_student_alone(
    loss, shape
) -> None:
    teacher = features(0, *shape).requires_grad_()
    assert loss(teacher.detach(), teacher).item() == pytest.approx(0, abs=1e-6)
    student = features(1, *shape).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().max() > 0
    assert loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


def test_faults_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"student features \[2, 3\] and teacher features \[2, 4\]"
    ):
        hint_loss(features(0, 2, 3), features(0, 2, 4))
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\] .* one height and width"):
        attention_loss(features(0, 2, 3, 4, 4), features(0, 2, 3, 2, 2))
    with pytest.raises(ValueError, match="3 or more images"):
        rkd_loss(features(0, 2, 3), features(0, 2, 3))
    with pytest.raises(ValueError, match=r"both be \[N, D\]"):
        crd_loss(features(0, 2, 3), features(0, 3, 3))
    with pytest.raises(ValueError, match="temperature must be positive, not 0"):
        crd_loss(features(0, 2, 3), features(0, 2, 3), temperature=0)
