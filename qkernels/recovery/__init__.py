"""Win accuracy back that quantization lost.

Before `quantize`, float model in and out: `equalize`, `smooth`, `clip_outliers`. After it, on the int8 model with the
float model as the measure: `round_weights`, `correct_bias`.
"""

from qkernels.recovery.bias import correct_bias
from qkernels.recovery.chains import Chain, find_chains
from qkernels.recovery.equalize import Equalized, equalize
from qkernels.recovery.outliers import clip_outliers
from qkernels.recovery.rounding import round_weights
from qkernels.recovery.smooth import smooth

__all__ = [
    "Chain",
    "Equalized",
    "clip_outliers",
    "correct_bias",
    "equalize",
    "find_chains",
    "round_weights",
    "smooth",
]
