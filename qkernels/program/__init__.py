"""A chained model as one file that runs without torch: numpy and `qkernels._core` are all it needs."""

from qkernels.program.program import Program

__all__ = ["Program"]
