"""What a training run leaves behind, and when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qkernels.distill.config import TrainConfig


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch. Accuracies are shares 0..1; `val_*` are None where not evaluated.

    Accuracies are None where labels are values; of several labels at once they are shares of all labels.

    Without labels, `accuracy` is the share of images on which student and teacher agree.
    """

    epoch: int
    loss: float
    accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    seconds: float

    @property
    def score(self) -> tuple[float, float] | None:
        """What epochs are compared by, the higher the better: accuracy, then loss; None where not evaluated."""
        return None if self.val_loss is None else (self.val_accuracy or 0.0, -self.val_loss)

    @property
    def progress(self) -> float | None:
        """What has to rise: the accuracy, minus the loss where there is none; None where not evaluated."""
        if self.val_accuracy is not None or self.val_loss is None:
            return self.val_accuracy
        return -self.val_loss


@dataclass(frozen=True)
class TrainResult:
    """History of a finished run, epochs before a resume included; `trained` epochs are those of this call.

    With `keep="best"`, `kept` is the epoch whose weights were kept (0: the start); `notes` say what was
    taken again, and that no epoch was better than the start.
    """

    history: tuple[EpochRecord, ...]
    trained: int = field(default=0, compare=False)
    kept: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy after the last epoch, or None without validation images."""
        return self.history[-1].val_accuracy

    @property
    def seconds(self) -> float:
        """Time of all epochs together."""
        return sum(record.seconds for record in self.history)


class TargetError(RuntimeError):
    """The run ended below `TrainConfig.until`: the model is trained and saved, `result` is what it reached."""

    def __init__(self, message: str, result: TrainResult) -> None:
        super().__init__(message)
        self.result = result


def is_over(config: TrainConfig, history: Sequence[EpochRecord]) -> bool:
    """Whether training stops here: a function of the history alone, so that a resumed run decides the same."""
    if len(history) == config.epochs:
        return True
    scores = [r.progress for r in history if r.progress is not None]
    if not scores:
        return False
    if config.until is not None and scores[-1] >= config.until:
        return True
    return config.patience is not None and len(scores) - 1 - scores.index(max(scores)) >= config.patience  # fmt: skip


def check_target(config: TrainConfig, result: TrainResult) -> None:
    """Raise TargetError if the run has ended below the target."""
    if config.until is None:
        return
    scored = [(r.val_accuracy, -r.epoch) for r in result.history if r.val_accuracy is not None]
    best, epoch = max(scored)
    if result.val_accuracy is None or result.val_accuracy < config.until:
        raise TargetError(
            f"until={config.until} was not reached in {len(result.history)} epochs: the best was {best:.4f} in epoch "
            f"{-epoch}; the last epoch is kept, and more epochs, a larger student or a better teacher may do",
            result,
        )
