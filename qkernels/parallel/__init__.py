"""More than one device, more than one process: a model in stages, many models at once.

Data parallel training is `qkernels.distill.train` under `accelerate launch`.
"""

from qkernels.parallel.many import evaluate_many, share_cores
from qkernels.parallel.stages import Staged, split_at

__all__ = ["Staged", "evaluate_many", "share_cores", "split_at"]
