"""The end of a command whose result is far worse than what it was given."""

from __future__ import annotations

from qkernels.data import ImageData
from qkernels.evaluate import Evaluation, Quality


class RuinedError(RuntimeError):
    """A model was written that is much worse than it should be."""


def check_not_ruined(
    after: Quality,
    before: Quality | None,
    data: ImageData,
    may_lose: float,
    helps: str = "more epochs or a smaller --lr may help",
) -> None:
    """Raise RuinedError where more than `may_lose` points (of accuracy, mAP or R2) are lost, or nothing was learned.

    A `may_lose` of 100 allows everything.
    """
    if may_lose >= 100:
        return
    if before is not None:
        lost = 100 * (before.value - after.value)
        if lost > may_lose:
            raise RuinedError(
                f"the {after.metric} fell by {lost:.1f} points, from {before.value:.2%} to {after.value:.2%}: "
                f"{helps}; --may-lose {int(lost) + 1} takes it as it is"
            )
        return
    floor = _unlearned(after, data)
    if floor is not None:
        raise RuinedError(
            f"{after.value:.2%} is no more than {floor}: nothing was learned; more epochs, another --lr or another "
            "model may help; --may-lose 100 takes it as it is"
        )


def _unlearned(after: Quality, data: ImageData) -> str | None:
    """What a result is no better than; None if it is."""
    if isinstance(after, Evaluation):
        chance = 1 / max(1, data.num_classes)
        if after.interval[0] > chance:
            return None
        return f"chance, {chance:.2%} of {data.num_classes} classes"
    if after.value > after.unlearned:
        return None
    return f"the {after.metric} {after.unlearned:.2%} of answers that do not look at the input"
