"""Attacks on images, training against them, and how much of that int8 keeps."""

from qkernels.adversarial.attack import fgsm, pgd
from qkernels.adversarial.ball import Ball
from qkernels.adversarial.objectives import ARD, RSLAD, AdversarialTraining
from qkernels.adversarial.robustness import Robustness, RobustRow, robustness

__all__ = [
    "ARD",
    "RSLAD",
    "AdversarialTraining",
    "Ball",
    "RobustRow",
    "Robustness",
    "fgsm",
    "pgd",
    "robustness",
]
