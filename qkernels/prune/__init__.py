"""Pruning: single weights that stay 0 (`Masks`), and channels that disappear (`prune_channels`)."""

from qkernels.prune.ablation import dropout
from qkernels.prune.blocks import block_losses, drop_blocks, find_blocks
from qkernels.prune.channels import PANEL, prune_channels
from qkernels.prune.dead import remove_dead_channels
from qkernels.prune.gradual import GradualReport, Prune, cubic, prune_gradually
from qkernels.prune.importance import Importance, importance
from qkernels.prune.masks import Masks
from qkernels.prune.parameters import gammas, weights
from qkernels.prune.proximal import Proximal, soft_threshold
from qkernels.prune.report import ChannelReport, LayerChannels, draw
from qkernels.prune.scores import (
    Scores,
    average,
    entropy,
    gradient,
    magnitude,
    split,
    stability,
    taylor,
)
from qkernels.prune.speed import compare_speed

__all__ = [
    "PANEL",
    "ChannelReport",
    "GradualReport",
    "Importance",
    "LayerChannels",
    "Masks",
    "Proximal",
    "Prune",
    "Scores",
    "average",
    "block_losses",
    "compare_speed",
    "cubic",
    "draw",
    "drop_blocks",
    "dropout",
    "entropy",
    "find_blocks",
    "gammas",
    "gradient",
    "importance",
    "magnitude",
    "prune_channels",
    "prune_gradually",
    "remove_dead_channels",
    "soft_threshold",
    "split",
    "stability",
    "taylor",
    "weights",
]
