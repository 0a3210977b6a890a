"""FGSM and PGD: images moved within a ball so that the loss of a model rises."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.adversarial.ball import Ball
from qkernels.modules.answers import logits_of
from qkernels.modules.eval_mode import eval_mode


def fgsm(model: nn.Module, images: Tensor, target: Tensor, ball: Ball) -> Tensor:
    """One step to the border: x + eps * sign(grad of the loss); Goodfellow et al. 2015 (1412.6572).

    Arguments, result and errors are those of `pgd`.
    """
    return pgd(model, images, target, ball, steps=1, step=ball.eps, random_start=False)


def pgd(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    ball: Ball,
    *,
    steps: int = 10,
    step: float | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`steps` times x <- projection on the ball of x + step * sign(grad); Madry et al. 2018 (1706.06083).

    The loss is cross-entropy with `target`: labels int64 [N], or probabilities float [N, K], which moves images as
    the divergence KL(target || model) does. The model answers in eval mode; its flags and gradients stay as they were.

    Args:
        model: a classifier; its answers are logits [N, K].
        images: float [N, C, H, W], normalised as `ball` says.
        target: int64 [N] or float [N, K], as above.
        ball: how far from an image an attack may go.
        steps: at least 1.
        step: in pixels 0..1; None: 2.5 * eps / steps, which reaches the border from anywhere (the paper, appendix).
        random_start: begin at a uniformly drawn point of the ball.
        generator: of that point, on the CPU; None: torch's own.

    Returns:
        Images of the same shape and dtype, without gradient.

    Raises:
        ValueError: fewer than one step, a step outside [0, 1], or as `Ball`. FloatingPointError: the gradient is not
            finite.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if step is not None and not 0 <= step <= 1:
        raise ValueError(f"step={step} is outside [0, 1], the range of a pixel")
    moved = images = images.detach()
    low, high = ball.bounds(images)
    rate = ball.scaled(images, 2.5 * ball.eps / steps if step is None else step)
    if random_start:
        draw = 2 * torch.rand(images.shape, generator=generator) - 1
        moved = images + ball.scaled(images, ball.eps) * draw.to(images)
        moved = moved.clamp(low, high)
    with eval_mode(model), torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_()
            loss = cross_entropy(logits_of(model, moved).float(), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            if not gradient.isfinite().all():  # its sign would be 0, and the model look robust
                raise FloatingPointError(
                    "the gradient at the images is not finite, nor may the answers be"
                )
            moved = (moved.detach() + rate * gradient.sign()).clamp(low, high)
    return moved
