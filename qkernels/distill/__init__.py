"""Training and knowledge distillation."""

from qkernels.distill.config import TrainConfig, learning_rate
from qkernels.distill.losses import hinton_loss, soft_cross_entropy
from qkernels.distill.objective import Objective, StepLoss
from qkernels.distill.trainer import EpochRecord, TrainResult, train

__all__ = [
    "EpochRecord",
    "Objective",
    "StepLoss",
    "TrainConfig",
    "TrainResult",
    "hinton_loss",
    "learning_rate",
    "soft_cross_entropy",
    "train",
]
