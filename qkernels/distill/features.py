"""Distillation of features: each pair of layers has a connector, trained with the student where it has weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from qkernels.distill.composed import Around
from qkernels.distill.feature_losses import attention_loss, crd_loss, hint_loss, rkd_loss
from qkernels.distill.objective import Objective, StepLoss
from qkernels.distill.taps import feature_shapes, pooled, tap

# (shape of the student's feature, of the teacher's; both without the batch) -> module(student, teacher, truth) -> loss
Connector = Callable[[torch.Size, torch.Size], nn.Module]


class Hint(nn.Module):
    """`hint_loss` behind a regressor to the teacher's width: 1x1 convolution, or Linear for [N, D] features.

    A batch norm behind it, as in the code of Tian et al. 2020, keeps large features from blowing up large weights.
    """

    def __init__(self, mine: torch.Size, theirs: torch.Size) -> None:
        super().__init__()
        if mine[1:] != theirs[1:]:
            raise ValueError(
                f"a hint needs features of one height and width, not {list(mine)} and {list(theirs)}"
            )
        width = theirs[0]
        if len(mine) == 1:
            regressor = [nn.Linear(mine[0], width, bias=False), nn.BatchNorm1d(width)]
        else:
            regressor = [nn.Conv2d(mine[0], width, 1, bias=False), nn.BatchNorm2d(width)]
        self.regressor = nn.Sequential(*regressor)

    def forward(self, mine: Tensor, theirs: Tensor, truth: Tensor) -> Tensor:
        return hint_loss(self.regressor(mine), theirs)


class Attention(nn.Module):
    """`attention_loss`; nothing to train."""

    def __init__(self, mine: torch.Size, theirs: torch.Size) -> None:
        super().__init__()

    def forward(self, mine: Tensor, theirs: Tensor, truth: Tensor) -> Tensor:
        return attention_loss(mine, theirs)


class Relations(nn.Module):
    """`rkd_loss` of features averaged over the picture; nothing to train."""

    def __init__(self, mine: torch.Size, theirs: torch.Size) -> None:
        super().__init__()

    def forward(self, mine: Tensor, theirs: Tensor, truth: Tensor) -> Tensor:
        return rkd_loss(pooled(mine), pooled(theirs))


class Contrast(nn.Module):
    """`crd_loss` of features averaged over the picture, embedded in `width` dimensions by a Linear layer each."""

    def __init__(self, mine: torch.Size, theirs: torch.Size, width: int = 128) -> None:
        super().__init__()
        self.mine, self.theirs = nn.Linear(mine[0], width), nn.Linear(theirs[0], width)

    def forward(self, mine: Tensor, theirs: Tensor, truth: Tensor) -> Tensor:
        classes = None if truth.is_floating_point() else truth  # who is a friend, only classes say
        return crd_loss(self.mine(pooled(mine)), self.theirs(pooled(theirs.detach())), classes)


class FeatureObjective(Around):
    """base + weight * mean over pairs of layers of a feature loss.

    `base` must call its one teacher (a `SoftObjective` does), so that one pass of it gives logits and features.
    """

    def __init__(
        self,
        base: Objective,
        student: nn.Module,
        layers: Mapping[str, str],
        connector: Connector,
        *,
        image_shape: tuple[int, int, int],
        weight: float,
        seed: int = 0,
    ) -> None:
        """`layers`: module name of the student -> of the teacher; `seed`: of the connectors' weights.

        Raises ValueError for unknown names and for layers that do not fit the connector.
        """
        super().__init__(base)
        if len(self.teachers) != 1:
            raise ValueError(f"features need one teacher, not {len(self.teachers)}")
        self.layers, self.weight = dict(layers), weight
        mine = feature_shapes(student, list(layers), image_shape)
        theirs = feature_shapes(self.teachers[0], list(layers.values()), image_shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.connectors = nn.ModuleList(map(connector, mine, theirs))

    def extra_repr(self) -> str:
        return f"layers={self.layers}, weight={self.weight}"

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        teacher = self.teachers[0]
        with (
            tap(model, list(self.layers)) as mine,
            tap(teacher, list(self.layers.values())) as theirs,
        ):
            step = self.base(model, images, labels)
        losses = [
            connector(mine[name], theirs[other], step.truth)
            for connector, (name, other) in zip(self.connectors, self.layers.items(), strict=True)
        ]
        return step._replace(loss=step.loss + self.weight * torch.stack(losses).mean())
