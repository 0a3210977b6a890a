"""Everything that decides how a training run goes, as one JSON-serialisable value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qkernels.distill.label_loss import LABEL_LOSSES
from qkernels.distill.registry import OBJECTIVES


class TrainConfig(BaseModel):
    """Settings of `train`. The defaults train a CIFAR ResNet (He et al. 2016, section 4.2).

    `batch_size` and `lr` are those of all processes together: nothing is scaled behind your back.
    When the batch grows k times, k times the lr with a longer warm-up is the usual start
    (Goyal et al. 2017). `keep="best"` takes the best weights on validation images, the start's included, and takes an
    epoch that ruins the model again at a tenth of the rate.
    pydantic raises ValidationError (a ValueError) naming the field at fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd: Nesterov
    lr: float = Field(0.1, gt=0)  # the peak, after the warm-up
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: float = Field(0.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip_grad_norm: float | None = Field(None, gt=0)
    augment: bool = True
    label_loss: str = ""  # a name in LABEL_LOSSES; "": the one that suits the labels
    class_weights: str = ""  # "1,2.5,1", or "balanced" by the training labels
    focal_gamma: float = Field(2.0, ge=0)
    huber_delta: float = Field(1.0, gt=0)
    loss: str = "hinton"  # with a teacher: a name in OBJECTIVES
    temperature: float = Field(4.0, gt=0)  # with a teacher
    alpha: float = Field(0.9, ge=0, le=1)  # share of the teacher's loss, with labels
    features: str = ""  # layers of a feature loss, "layer2,layer3=block4": student=teacher
    feature_weight: float | None = Field(None, ge=0)  # None: as published
    precision: Literal["no", "bf16"] = "no"  # bf16: autocast; weights stay float32
    channels_last: bool = False
    keep: Literal["last", "best"] = (
        "last"  # weights: of the last epoch, or the best of start and epochs
    )
    accumulate: int = Field(1, ge=1)  # parts of a batch that go through one after the other
    sync_batch_norm: bool = False  # statistics over all processes; GPUs only
    find_unused_parameters: bool = False  # for models that do not use all of them in every step
    seed: int = Field(0, ge=0)
    eval_every: int = Field(1, ge=1)  # epochs
    checkpoint_every: int = Field(1, ge=1)  # epochs
    until: float | None = Field(None, gt=0, le=1)  # stop at this validation accuracy
    patience: int | None = Field(None, ge=1)  # validations without a new best, then stop

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        return _one_of(OBJECTIVES, loss)

    @field_validator("label_loss")
    @classmethod
    def _known_of_labels(cls, loss: str) -> str:
        return loss and _one_of(LABEL_LOSSES, loss)

    @field_validator("class_weights")
    @classmethod
    def _weights(cls, text: str) -> str:
        try:
            values = [] if text in ("", "balanced") else [float(part) for part in text.split(",")]
        except ValueError:
            raise ValueError("must be numbers such as 1,2.5,1, or balanced") from None
        if any(not 0 <= value < math.inf for value in values) or (values and not any(values)):
            raise ValueError(f"{text} must be >= 0, and not all 0")
        return text

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}"
            )
        return self


def _one_of(known: Collection[str], loss: str) -> str:
    if loss not in known:
        near = difflib.get_close_matches(loss, known, n=3, cutoff=0.0)
        raise ValueError(f"no loss {loss!r}; the nearest: {', '.join(near)}")
    return loss


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The lr of a step (from 0): linear warm-up, then half a cosine down to 0 at the last epoch.

    A pure function of the step, so a resumed run has no schedule to restore. Cosine: Loshchilov,
    Hutter 2017 (1608.03983), without restarts.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / (config.epochs * steps_per_epoch - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
