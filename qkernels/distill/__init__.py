"""Training and knowledge distillation."""

from qkernels.distill.cache import CachedTeacher
from qkernels.distill.composed import DeepSupervision, Regularised
from qkernels.distill.config import TrainConfig, learning_rate
from qkernels.distill.feature_losses import attention_loss, crd_loss, hint_loss, rkd_loss
from qkernels.distill.features import Attention, Contrast, FeatureObjective, Hint, Relations
from qkernels.distill.history import EpochRecord, TargetError, TrainResult
from qkernels.distill.label_loss import LABEL_LOSSES, LabelLoss, label_loss
from qkernels.distill.losses import (
    binary_focal_loss,
    binary_hinton_loss,
    confidence_penalty,
    cosine_loss,
    dkd_loss,
    focal_loss,
    hinton_loss,
    logit_mse,
    mean_answer,
    soft_cross_entropy,
)
from qkernels.distill.objective import LabelObjective, Objective, SoftObjective, StepLoss
from qkernels.distill.recipe import suitable_config
from qkernels.distill.registry import OBJECTIVES, soft_objective
from qkernels.distill.taps import feature_shapes, tap
from qkernels.distill.trainer import train

__all__ = [
    "LABEL_LOSSES",
    "OBJECTIVES",
    "Attention",
    "CachedTeacher",
    "Contrast",
    "DeepSupervision",
    "EpochRecord",
    "FeatureObjective",
    "Hint",
    "LabelLoss",
    "LabelObjective",
    "Objective",
    "Regularised",
    "Relations",
    "SoftObjective",
    "StepLoss",
    "TargetError",
    "TrainConfig",
    "TrainResult",
    "attention_loss",
    "binary_focal_loss",
    "binary_hinton_loss",
    "confidence_penalty",
    "cosine_loss",
    "crd_loss",
    "dkd_loss",
    "feature_shapes",
    "focal_loss",
    "hint_loss",
    "hinton_loss",
    "label_loss",
    "learning_rate",
    "logit_mse",
    "mean_answer",
    "rkd_loss",
    "soft_cross_entropy",
    "soft_objective",
    "suitable_config",
    "tap",
    "train",
]
