"""The end of a command whose result is far worse than what it was given."""

from __future__ import annotations

from qkernels.data import ImageData
from qkernels.evaluate import Evaluation


class RuinedError(RuntimeError):
    """A model was trained and written, and is much worse than it should be."""


def check_not_ruined(
    after: Evaluation, before: Evaluation | None, data: ImageData, may_lose: float
) -> None:
    """Raise RuinedError where more than `may_lose` points of accuracy are lost, or nothing beyond chance was learned.

    A `may_lose` of 100 allows everything.
    """
    if may_lose >= 100:
        return
    if before is not None:
        lost = 100 * (before.accuracy - after.accuracy)
        if lost > may_lose:
            raise RuinedError(
                f"the accuracy fell by {lost:.1f} points, from {before.accuracy:.2%} to {after.accuracy:.2%}: more "
                f"epochs or a smaller --lr may help; --may-lose {int(lost) + 1} takes it as it is"
            )
        return
    chance = 1 / max(1, data.num_classes)
    if after.interval[0] <= chance:
        raise RuinedError(
            f"{after.accuracy:.2%} is no more than chance, {chance:.2%} of {data.num_classes} classes: nothing was "
            "learned; more epochs, another --lr or another model may help; --may-lose 100 takes it as it is"
        )
