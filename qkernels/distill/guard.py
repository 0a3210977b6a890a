"""Training that cannot end worse than it began: the best weights are kept, a ruinous epoch is taken again."""

from __future__ import annotations

import copy
from typing import Any

from qkernels.distill.history import EpochRecord

Score = tuple[float, float]  # validation accuracy and minus its loss

RETAKES = 3  # each at a tenth of the rate before
RISE = 2.0  # a loss so many times that of the first step is no progress
ABOVE_CHANCE = 0.1  # share of what the start knew that must be left


class Guard:
    """The best weights of a run with `TrainConfig.keep="best"`, the start's included, and the rate that is left.

    Attributes:
        scale: factor of the learning rate.
        over: whether an epoch stayed ruinous at the least rate, so that no more are taken.
        notes: what was taken again, and why.
    """

    def __init__(
        self, chance: float, start: Score | None, weights: dict[str, Any], *, by_loss: bool = True
    ) -> None:
        """`start`: of the weights that the run begins with; None where there is no labelled validation image.

        `by_loss`: whether a loss that rises far above its start is a ruin.
        """
        self.chance, self.start, self.by_loss = chance, start, by_loss
        self.first_loss: float | None = None
        self.best: Score | None = start
        self.epoch, self.weights = 0, copy.deepcopy(weights)
        self.scale, self.over, self.notes = 1.0, False, list[str]()

    def ruined(self, record: EpochRecord, first_loss: float) -> str | None:
        """Why an epoch is worse than none, None if it is not. `first_loss` is that of its first step."""
        if self.first_loss is None:
            self.first_loss = first_loss
        limit = max(RISE * abs(self.first_loss), abs(self.first_loss) + 1)
        if self.by_loss and not record.loss <= limit:
            return f"the loss rose from {self.first_loss:.3g} to {record.loss:.3g}"
        if self.start is None or record.val_accuracy is None:
            return None
        known = self.start[0] - self.chance
        if known > ABOVE_CHANCE and record.val_accuracy < self.chance + ABOVE_CHANCE * known:
            return f"the accuracy fell from {self.start[0]:.1%} to {record.val_accuracy:.1%}, which is chance"
        return None

    def retake(self, epoch: int, why: str, rate: float) -> bool:
        """Lower the rate for another attempt at an epoch; False after the last."""
        if self.scale < 1.5 * 10**-RETAKES:
            self.over = True
            self.notes.append(
                f"epoch {epoch} ruins the model at an lr of {rate:.3g} too ({why}): stopped before it"
            )
            return False
        self.scale /= 10
        self.notes.append(
            f"epoch {epoch} is taken again at a tenth of the lr: at {rate:.3g}, {why}"
        )
        return True

    def see(self, record: EpochRecord, weights: dict[str, Any]) -> None:
        """Keep the weights of an epoch that is the best so far; of equal ones the later."""
        score = record.score
        if score is None:
            if self.start is None:  # nothing to compare by
                self.epoch, self.weights = record.epoch, copy.deepcopy(weights)
            return
        if self.best is None or score >= self.best:
            self.best, self.epoch, self.weights = score, record.epoch, copy.deepcopy(weights)

    def said(self) -> tuple[str, ...]:
        """What is to be said at the end of a run: its notes, and that nothing of it is kept."""
        if self.epoch or self.over or self.start is None:
            return tuple(self.notes)
        what = "none of the epochs is better on the validation images than the start, whose weights are kept"
        return (*self.notes, what)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """Go on as `state` says."""
        vars(self).update(state)
