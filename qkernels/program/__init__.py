"""A chained model as one file that runs without torch: numpy and `qkernels._core` are all it needs."""

from qkernels.program.profile import Profile, StepProfile
from qkernels.program.program import Program

__all__ = ["Profile", "Program", "StepProfile"]
