"""L1 and elastic net by proximal steps: weights become exactly 0, which gradients of |w| never make them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """sign(x) max(|x| - threshold, 0), the proximal operator of threshold * |x|."""
    return x.sign() * (x.abs() - threshold).clamp(min=0)


class Proximal:
    """Adds l1 |w| + l2/2 w^2 of the named parameters to what `train(..., after_step=proximal)` minimises.

    After each step of length lr: w <- soft_threshold(w, lr l1) / (1 + lr l2), the proximal step of the elastic net
    (Zou, Hastie 2005; Parikh, Boyd 2014, "Proximal Algorithms", section 6.5.3). l2 = 0 is the lasso, l1 = 0 ridge
    regression. On batch norm scales (names from `gammas`) it is network slimming (Liu et al. 2017, 1708.06519).
    Set the optimizer's weight_decay to 0 where l2 is meant to be the only one.
    """

    def __init__(self, names: Iterable[str], *, l1: float, l2: float = 0.0) -> None:
        if l1 < 0 or l2 < 0:
            raise ValueError(f"l1={l1} and l2={l2} must not be negative")
        self.names, self.l1, self.l2 = tuple(names), l1, l2

    @torch.no_grad()
    def __call__(self, model: nn.Module, lr: float) -> None:
        for name in self.names:
            value = model.get_parameter(name)
            value.copy_(soft_threshold(value, lr * self.l1) / (1 + lr * self.l2))

    def __repr__(self) -> str:
        return f"Proximal(l1={self.l1:g}, l2={self.l2:g}, {len(self.names)} parameters)"
