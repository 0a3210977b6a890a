import copy

import pytest
import torch
from adversarial_nets import small_net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.adversarial import Ball, fgsm, pgd
from qkernels.data import ImageData

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batch(count: int = 6, channels: int = 3, side: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normalised images with black and white pixels among them, and labels of four classes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, channels, side, side, generator=generator)
    pixels = (1.5 * pixels - 0.25).clamp(0, 1)
    mean, std = (torch.tensor(v[:channels]).view(1, -1, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std, torch.randint(4, (count,), generator=generator)


def ball(eps: float, channels: int = 3) -> Ball:
    return Ball(eps, MEAN[:channels], STD[:channels])


def pixels_of(images: Tensor, channels: int = 3) -> Tensor:
    mean, std = (torch.tensor(v[:channels]).view(1, -1, 1, 1) for v in (MEAN, STD))
    return images * std + mean


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 7),
    st.floats(0, 1),
    st.integers(1, 3),
    st.floats(0, 1) | st.none(),
    st.booleans(),
)
def test_no_pixel_leaves_the_ball_or_the_range_of_pixels(
    channels: int, side: int, eps: float, steps: int, step: float | None, random_start: bool
) -> None:
    images, labels = batch(3, channels, side)
    moved = pgd(
        small_net(channels), images, labels, ball(eps, channels),
        steps=steps, step=step, random_start=random_start,
    )  # fmt: skip
    before, after = pixels_of(images, channels), pixels_of(moved, channels)
    assert (after - before).abs().max() <= eps + 1e-6
    assert after.min() >= -1e-6 and after.max() <= 1 + 1e-6
    measured = ball(eps, channels).distance(images, moved)
    torch.testing.assert_close(
        measured, (after - before).abs().flatten(1).amax(1), atol=1e-6, rtol=0
    )


def test_fgsm_of_a_linear_model_by_hand() -> None:
    """Two classes: the gradient of the loss of class 0 is a positive multiple of w1 - w0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 25, 2)).eval()
    images, _ = batch(4)
    moved = fgsm(model, images, torch.zeros(4, dtype=torch.int64), ball(0.1))
    weight = model[1].weight.detach()
    sign = (weight[1] - weight[0]).sign().view(1, 3, 5, 5)
    expected = (pixels_of(images) + 0.1 * sign).clamp(0, 1)
    torch.testing.assert_close(pixels_of(moved), expected, atol=1e-6, rtol=0)


def test_eps_0_moves_nothing_not_even_by_rounding() -> None:
    images, labels = batch()
    assert torch.equal(fgsm(small_net(3), images, labels, ball(0.0)), images)
    assert torch.equal(pgd(small_net(3), images, labels, ball(0.0)), images)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_images_are_those_of_torchattacks(normalised: bool) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model = small_net(3).double().eval()  # in float64 no rounding turns the sign of a gradient
    images, labels = batch(8)
    images = images.double()
    region = ball(8 / 255)
    if not normalised:
        images, region = pixels_of(images), Ball(8 / 255, (0.0,) * 3, (1.0,) * 3)
    ours = (
        fgsm(model, images, labels, region),
        pgd(model, images, labels, region, steps=7, step=2 / 255, random_start=False),
    )
    theirs = (
        torchattacks.FGSM(model, eps=8 / 255),
        torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=7, random_start=False),
    )
    for moved, attack in zip(ours, theirs, strict=True):
        if normalised:
            attack.set_normalization_used(list(MEAN), list(STD))
        torch.testing.assert_close(moved, attack(images, labels).double(), atol=1e-6, rtol=0)
        assert region.distance(images, moved).max() > 0.99 * 8 / 255


def test_the_loss_rises_and_more_steps_raise_it_more(digits: ImageData, teacher: nn.Module) -> None:
    images, labels = next(iter(digits.batches("test", 100)))
    assert labels is not None
    region = Ball.of(digits, 0.1)
    losses = [
        cross_entropy(teacher(moved), labels).item()
        for moved in (
            images,
            fgsm(teacher, images, labels, region),
            pgd(teacher, images, labels, region, steps=20),
        )
    ]
    assert losses[0] < losses[1] < losses[2]


def test_probabilities_are_a_target_like_labels() -> None:
    model, (images, labels) = small_net(3), batch()
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    by_label = pgd(model, images, labels, ball(0.05), random_start=False)
    torch.testing.assert_close(
        by_label, pgd(model, images, one_hot, ball(0.05), random_start=False)
    )
    even = torch.full((6, 4), 0.25)
    assert not torch.equal(by_label, pgd(model, images, even, ball(0.05), random_start=False))


def test_the_model_is_left_as_it_was() -> None:
    model, (images, labels) = small_net(3).train(), batch()
    model[1].eval()  # a frozen batch norm stays frozen
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    kept = images.clone()
    moved = pgd(model, images, labels, ball(0.05))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(images, kept) and not images.requires_grad and not moved.requires_grad


def test_a_seed_repeats_the_random_start() -> None:
    model, (images, labels) = small_net(3), batch()

    def attacked(seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return pgd(model, images, labels, ball(0.1), steps=1, step=0.01, generator=draw)

    assert torch.equal(attacked(1), attacked(1))
    assert not torch.equal(attacked(1), attacked(2))


@pytest.mark.parametrize("eps", [-0.1, 8.0, float("nan")])
def test_an_eps_that_is_no_share_of_the_range_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match=rf"eps={eps} is outside \[0, 1\].*eps=8 / 255"):
        ball(eps)


def test_faults_are_named() -> None:
    model, (images, labels) = small_net(3), batch()
    with pytest.raises(ValueError, match=r"must be \[N, 3, H, W\].*not \[6, 1, 5, 5\]"):
        fgsm(model, images[:, :1], labels, ball(0.1))
    with pytest.raises(ValueError, match=r"pixels from -?\d.* to \d.*, not in \[0, 1\]"):
        fgsm(model, images * 3, labels, ball(0.1))
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        pgd(model, images, labels, ball(0.1), steps=0)
    with pytest.raises(ValueError, match="step=2 is outside"):
        pgd(model, images, labels, ball(0.1), step=2)
    with pytest.raises(FloatingPointError, match="gradient at the images is not finite"):
        nan = copy.deepcopy(model)
        nan[0].weight.data.fill_(float("nan"))
        fgsm(nan, images, labels, ball(0.1))
