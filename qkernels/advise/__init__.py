"""Which of distilling, pruning and quantizing pays on a given model."""

from qkernels.advise.advice import Advice, Trial
from qkernels.advise.search import advise

__all__ = ["Advice", "Trial", "advise"]
