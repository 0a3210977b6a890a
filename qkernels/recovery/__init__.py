"""Win accuracy back that quantization lost.

Before `quantize`, float model in and out: `equalize`, `smooth`, `clip_outliers`. After it, in place on the int8 model
with the float model as the measure: `round_weights_`, `correct_bias_`. `qkernels.report(model)` says what each did.
"""

from typing import TYPE_CHECKING

from qkernels.recovery.bias import Corrected, correct_bias_
from qkernels.recovery.chains import Chain, find_chains
from qkernels.recovery.equalize import Equalized, equalize
from qkernels.recovery.outliers import Clipped, clip_outliers
from qkernels.recovery.rounding import Rounded, round_weights_
from qkernels.recovery.smooth import Smoothed, smooth
from qkernels.utils.renamed import renamed

__all__ = [
    "Chain",
    "Clipped",
    "Corrected",
    "Equalized",
    "Rounded",
    "Smoothed",
    "clip_outliers",
    "correct_bias_",
    "equalize",
    "find_chains",
    "round_weights_",
    "smooth",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        return renamed(__name__, name)
